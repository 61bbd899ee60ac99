"""Image processor of DPS: any picture to a grey letterboxed square in [-1, 1], and back."""

import base64
import os
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps

from .library_dps import BatchFeature, JanusImageProcessorPil, infer_channel_dimension_format, is_valid_image


MAX_MEGAPIXELS = 100
URL_TIMEOUT_SECONDS = 30


def open_picture(source: str | bytes | Path, fetch_urls: bool = False) -> Image.Image:
    """Opens a path, the bytes of a file, base64 or a data URL, and checks it whole.

    Raises:
        ValueError: the picture is corrupt, truncated, too large or not there, or it is a URL and `fetch_urls` is off.
    """
    name = (
        "of bytes"
        if isinstance(source, bytes)
        else repr(str(source) if len(str(source)) < 200 else f"{str(source)[:60]}...")
    )
    try:
        if isinstance(source, str):
            source = _read(source, fetch_urls)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(image)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"No picture at {name}. Give a path, a PIL image, bytes, base64 or a data URL.") from None
    except URLError as error:
        raise ValueError(f"The picture at {name} could not be fetched: {error}. Open it yourself.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # warnings may be errors
        raise ValueError(f"The picture {name} is too large: {error} Scale it down first.") from None
    except ValueError:
        raise
    except Exception as error:  # a decoder may raise anything
        raise ValueError(f"The picture {name} is corrupt or of an unknown format: {error}. Save it again.") from None


def _read(source: str, fetch_urls: bool) -> str | bytes:
    """The bytes that a string stands for, or the path that it is."""
    if source.startswith(("http://", "https://")):
        if not fetch_urls:
            raise ValueError(
                f"URLs are not fetched; got {source!r}. Open the picture yourself, or set image_processor.fetch_urls = True."
            )
        with urlopen(Request(source, headers={"User-Agent": "dps_hf"}), timeout=URL_TIMEOUT_SECONDS) as response:
            return response.read()
    is_data = source.startswith("data:")
    if not is_data and os.path.exists(source):
        return source
    try:
        content = base64.b64decode("".join(source.partition(",")[2 if is_data else 0].split()), validate=True)
    except ValueError as error:  # binascii.Error is one; letters beyond ASCII raise a plain one
        raise (OSError(f"broken base64: {error}") if is_data else FileNotFoundError()) from None
    if not is_data and len(content) < 26:  # shorter than any picture file: a name that happens to be base64
        raise FileNotFoundError
    return content


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any PIL mode as upright 8-bit RGB: the first frame, transparency on white, 16 bits scaled to 8.

    Raises:
        ValueError: the picture has no pixels or more than 100 million, or is corrupt or truncated.
    """
    width, height = image.size
    if width == 0 or height == 0:
        raise ValueError(f"A picture must have pixels; got {width}x{height}. Give one of at least 1x1.")
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise ValueError(
            f"A picture may have {MAX_MEGAPIXELS} megapixels at most; got {width}x{height}, "
            f"{width * height / 1e6:.0f} megapixels. Scale it down first."
        )
    try:
        if getattr(image, "is_animated", False):
            image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # a decoder may raise anything
        raise ValueError(f"The picture is corrupt or truncated: {error}. Save it again.") from None
    if image.mode.startswith("I") or image.mode == "F":  # PIL's own conversion would cut everything above 255 to white
        image = Image.fromarray(to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """Values of any number type as `uint8`: fractions in [0, 1], 8 bits, or 16 bits.

    Raises:
        ValueError: some are no numbers, not finite, negative or above 65535.
    """
    if values.dtype.kind not in "buif":
        raise ValueError(f"A picture must be made of numbers; got an array of {values.dtype}. Convert it first.")
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 65535):
        raise ValueError(
            f"Values of a picture must lie in [0, 1], [0, 255] or [0, 65535]; got {low} to {high}. Scale them."
        )
    if high <= 1 and values.dtype.kind in "fb":
        values = values * 255.0
    elif high > 255 or (values.dtype.itemsize == 2 and values.dtype.kind == "u"):
        values = values / 257
    return values.round().astype(np.uint8)


def array_to_picture(array: np.ndarray | torch.Tensor, input_data_format=None) -> Image.Image:
    """An array `(height, width, channels)` or `(channels, height, width)` of 1, 3 or 4 channels as a PIL image.

    Raises:
        ValueError: no pixels, another shape, or values out of range.
    """
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if 0 in array.shape:
        raise ValueError(f"A picture must have pixels; got an array of shape {array.shape}.")
    if (input_data_format or infer_channel_dimension_format(array, num_channels=(1, 3, 4))) == "channels_first":
        array = np.moveaxis(array, 0, -1)
    return Image.fromarray(to_8_bit(array.squeeze(-1) if array.shape[-1] == 1 else np.ascontiguousarray(array)))


class DPSImageProcessor(JanusImageProcessorPil):
    """[`~transformers.JanusImageProcessorPil`] (letterbox in grey, `postprocess` back to pictures), for whatever people send.

    One backend everywhere, so that a picture gives the same pixels with torchvision and without. Every picture is 8-bit
    RGB first, whatever it was: floats in [0, 1] need no `do_rescale=False`.

    Args:
        fetch_urls (`bool`, defaults to `False`): whether pictures that are given as URLs are fetched.
    """

    _auto_class = "AutoImageProcessor"
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 64, "width": 64}
    min_size = 1
    do_convert_rgb = True
    fetch_urls = False

    def fetch_images(self, image_url_or_urls):
        """Opens what is given as path, URL, data URL, base64 or bytes; leaves the nesting of lists as it is."""
        image = image_url_or_urls
        if isinstance(image, (list, tuple)):
            return [self.fetch_images(one) for one in image]
        if isinstance(image, (str, bytes, Path)):
            return open_picture(image, self.fetch_urls)
        if not is_valid_image(image):
            raise TypeError(
                f"A picture must be a PIL image, an array, a path, a data URL, base64 or bytes; got {type(image).__name__}."
            )
        return image[None] if getattr(image, "ndim", 3) == 2 else image

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs) -> np.ndarray:
        if not isinstance(image, Image.Image):
            if kwargs.get("do_rescale") is False and "float" in str(image.dtype):
                raise ValueError("Floats in [0, 1] are known as such. Leave do_rescale=False out.")
            image = array_to_picture(image, input_data_format)
        return super().process_image(to_rgb(image), do_convert_rgb=True, **kwargs)

    def postprocess(self, images, return_tensors: str | None = None, **kwargs):
        """Pixels `(3, height, width)` in [-1, 1], one or many, to 8 bits, or to pictures with `return_tensors="PIL.Image.Image"`."""
        outputs = super().postprocess(images, do_rescale=False, **kwargs)
        if not isinstance(outputs, BatchFeature):  # pictures already
            return outputs
        # Rounded: the library cuts, which would turn half of all pixels darker by one.
        pixels = [np.rint(image.clip(0, 1) * 255).astype(np.uint8) for image in outputs["pixel_values"]]
        if return_tensors == "PIL.Image.Image":
            return BatchFeature({"pixel_values": [Image.fromarray(np.moveaxis(image, 0, -1)) for image in pixels]})
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


__all__ = ["DPSImageProcessor", "array_to_picture", "open_picture", "to_rgb"]
