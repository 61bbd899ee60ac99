"""Image processor of DPS: turns any picture into a square in [-1, 1], and pixels back into pictures."""

import base64
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
import transformers
from PIL import ExifTags, Image

from .library_dps import ImagesKwargs, infer_channel_dimension_format, is_valid_image


MAX_MEGAPIXELS = 100
URL_TIMEOUT_SECONDS = 30
FITS = ("crop", "stretch", "pad-grey", "pad-white", "pad-edge")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # those that pixels depend on
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientations in EXIF, as numbers of `Image.Transpose`
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # in `info` of a picture


def open_picture(source: str | bytes | Path, fetch_urls: bool = False) -> Image.Image:
    """Opens a picture from a path, the bytes of a file, base64 or a data URL, and decodes all of it.

    Raises:
        ValueError: the picture is corrupt, truncated, too large or missing, or a URL while `fetch_urls` is off.
    """
    name = "of bytes" if isinstance(source, bytes) else repr(str(source)[:200])
    try:
        data = source if isinstance(source, bytes) else _read(source, fetch_urls)
        try:
            return to_rgb(Image.open(BytesIO(data)))
        except Exception:
            # PIL may refuse only the metadata of a PNG, such as a long text.
            if not data.startswith(PNG_SIGNATURE):
                raise
            return to_rgb(Image.open(BytesIO(_without_metadata(data))))
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


def _without_metadata(data: bytes) -> bytes:
    """A PNG without its metadata."""
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")  # length, name, content, checksum
        name, checksum = data[start + 4 : start + 8], data[end - 4 : end]
        intact = zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(checksum, "big")
        if name in PNG_CHUNKS and (intact or name != b"eXIf"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _read(source: str | Path, fetch_urls: bool) -> bytes:
    """The bytes of a file, those that a URL points to, or those that base64 encodes."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if not fetch_urls:
            remedy = "Open the picture yourself, or set image_processor.fetch_urls = True."
            raise ValueError(f"URLs are not fetched; got {source!r}. {remedy}")
        with urlopen(Request(source, headers={"User-Agent": "dps_hf"}), timeout=URL_TIMEOUT_SECONDS) as response:
            return response.read()
    head, _, encoded = str(source).partition(",")
    is_data = head.startswith("data:")
    if isinstance(source, Path) or (not is_data and os.path.exists(source)):
        return Path(source).read_bytes()
    try:
        content = base64.b64decode("".join((encoded if is_data else source).split()), validate=True)
    except ValueError as error:  # binascii.Error is one; letters beyond ASCII raise a plain one
        raise (OSError(f"broken base64: {error}") if is_data else FileNotFoundError()) from None
    if not is_data and len(content) < 26:  # shorter than any picture file: a name that happens to be base64
        raise FileNotFoundError
    return content


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture of any PIL mode to upright 8-bit RGB: its first frame, on white where it is transparent.

    Raises:
        ValueError: the picture has no pixels or more than 100 million, or is corrupt or truncated.
    """
    width, height = image.size
    if width == 0 or height == 0:
        raise ValueError(f"A picture must have pixels; got {width}x{height}. Give one of at least 1x1.")
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        rule = f"A picture may have {MAX_MEGAPIXELS} megapixels at most"
        raise ValueError(f"{rule}; got {width * height / 1e6:.0f} megapixels, {width}x{height}. Scale it down first.")
    try:
        if getattr(image, "is_animated", False):
            image.seek(0)
        tiles = getattr(image, "tile", None)
        packing = tiles[0][3] if tiles else None  # as PIL's decoders name it: "L;2" for grey of 2 bits
        image.load()
    except Exception as error:  # a decoder may raise anything
        raise ValueError(f"The picture is corrupt or truncated: {error}. Save it again.") from None
    image, transparent = _upright(image), _transparent_value(image, packing)
    if image.mode.startswith("I") or image.mode == "F":  # PIL's own conversion clips at 255
        values = np.asarray(image)
        image = Image.fromarray(to_8_bit(values))
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif transparent != image.info.get("transparency"):
        image = image.copy()  # leaves the caller's picture unchanged
        image.info["transparency"] = transparent
    if image.mode == "La":
        image = image.convert("LA")  # PIL converts it to nothing else
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF says; `ImageOps.exif_transpose` fails if another tag has a wrong type."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        value = int(value[0] if isinstance(value, (bytes, str, tuple)) else value)
    except Exception:  # the parser may raise anything
        return image
    if value not in TURNS:
        return image
    turned = image.transpose(TURNS[value])
    turned.info = {key: value for key, value in image.info.items() if key not in ORIENTATION_KEYS}
    return turned


def _transparent_value(image: Image.Image, packing: str | tuple | None):
    """The pixel value that a picture declares transparent, `None` if there is none.

    PIL gives the value that is in a PNG file, but scales the pixels. Of colours of 16 bits it reads the upper 8.
    """
    value = image.info.get("transparency")
    if image.mode == "1" and isinstance(value, int):
        return 255 if value else 0
    if image.mode == "L" and isinstance(value, int):
        return value * {"L;2": 85, "L;4": 17}.get(packing, 1)
    if image.mode == "RGB" and isinstance(value, tuple) and (packing == "RGB;16B" or max(value) > 255):
        return tuple(channel >> 8 for channel in value)
    return value


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """Converts fractions in [0, 1], 8-bit values or 16-bit values to `uint8`; a ValueError refuses all others."""
    if values.dtype.kind not in "buif":
        raise ValueError(f"A picture must be made of numbers; got an array of {values.dtype}. Convert it first.")
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 65535):
        rule = "Values of a picture must lie in [0, 1], [0, 255] or [0, 65535]"
        raise ValueError(f"{rule}; got {low} to {high}. Scale them.")
    if high <= 1 and values.dtype.kind in "fb":
        values = values * 255.0
    elif high > 255 or (values.dtype.itemsize == 2 and values.dtype.kind == "u"):
        values = values / 257
    return values.round().astype(np.uint8)


def array_to_picture(array: np.ndarray | torch.Tensor, input_data_format=None) -> Image.Image:
    """Converts an array `(height, width, channels)` or `(channels, height, width)` of 1, 3 or 4 channels to a picture.

    A ValueError refuses other shapes, and values that [`to_8_bit`] does not take.
    """
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if 0 in array.shape:
        raise ValueError(f"A picture must have pixels; got an array of shape {array.shape}.")
    if (input_data_format or infer_channel_dimension_format(array, num_channels=(1, 3, 4))) == "channels_first":
        array = np.moveaxis(array, 0, -1)
    return Image.fromarray(to_8_bit(array.squeeze(-1) if array.shape[-1] == 1 else np.ascontiguousarray(array)))


def to_square(image: Image.Image, fit: str, side: int, resample: int | None = None) -> Image.Image:
    """Makes an RGB picture square, as [`DPSImageProcessor`] describes; with bars it has `side` pixels."""
    if fit not in FITS:
        raise ValueError(f"fit and drawing_fit must be one of {', '.join(FITS)}; got {fit!r}. Try 'crop'.")
    width, height = image.size
    if width == height or fit == "pad-grey":  # Janus adds grey bars itself
        return image
    if fit == "crop":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return image.crop((left, top, left + short, top + short))
    if fit == "stretch":
        return image.resize((side, side), resample)
    pixels = np.asarray(image)
    edges = pixels[[0, -1]] if width > height else pixels[:, [0, -1]]  # the two sides that get bars
    median = np.median(edges.reshape(-1, 3), axis=0).astype(int).tolist()
    colour = "white" if fit == "pad-white" else tuple(median)
    wide, high = (max(round(length * side / max(width, height)), 1) for length in image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image.resize((wide, high), resample), ((side - wide) // 2, (side - high) // 2))
    return square


class DPSImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    min_size: int
    fit: str
    drawing_fit: str


class DPSImageProcessor(transformers.JanusImageProcessorPil):
    """[`~transformers.JanusImageProcessorPil`] for any picture, and for other ways to make it square.

    It has one backend, so that a picture gives the same pixels with and without torchvision. Every picture is first
    converted to 8-bit RGB, so floats in [0, 1] need no `do_rescale=False`.

    Args:
        fit (`str`, defaults to `"pad-grey"`): how a picture becomes a square. `"crop"` keeps its centre, `"stretch"`
            scales each side by itself, `"pad-grey"`, `"pad-white"` and `"pad-edge"` add bars. The colour of
            `"pad-edge"` is the median of the pixels along the two sides that get bars.
        drawing_fit (`str`, defaults to `"crop"`): the same for pictures that become codes. `"pad-grey"` in checkpoints
            that do not name it.
        fetch_urls (`bool`, defaults to `False`): whether pictures that are given as URLs are fetched.
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = DPSImageProcessorKwargs
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 64, "width": 64}
    min_size = 1
    do_convert_rgb = True
    fit = "pad-grey"
    drawing_fit = "crop"
    fetch_urls = False

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        return super().from_dict({"drawing_fit": "pad-grey", **image_processor_dict}, **kwargs)

    def fetch_images(self, image_url_or_urls):
        """Opens pictures in nested lists: paths, URLs, base64, bytes, or dicts of `bytes` or `path` (`datasets`)."""
        image = image_url_or_urls
        if isinstance(image, (list, tuple)):
            return [self.fetch_images(one) for one in image]
        if isinstance(image, dict) and not {"bytes", "path"}.isdisjoint(image):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
            if image is None:
                raise ValueError("A picture that is a dict must have bytes or a path; got neither.")
        if isinstance(image, (str, bytes, Path)):
            return open_picture(image, self.fetch_urls)
        if not is_valid_image(image):
            kinds = "a PIL image, an array, a path, a data URL, base64, bytes, or a dict of bytes or path"
            raise TypeError(f"A picture must be {kinds}; got {type(image).__name__}.")
        return image[None] if getattr(image, "ndim", 3) == 2 else image

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs) -> np.ndarray:
        """Makes one picture square: 8-bit RGB, `(3, height, width)`."""
        if not isinstance(image, Image.Image):
            if kwargs.get("do_rescale") is False and "float" in str(image.dtype):
                raise ValueError("Floats in [0, 1] are recognised. Leave do_rescale=False out.")
            image = array_to_picture(image, input_data_format)
        image, resizes = to_rgb(image), kwargs.get("do_resize", True)
        size, resample = kwargs.get("size", self.size), kwargs.get("resample") or self.resample
        if resizes and size["height"] != size["width"]:
            raise ValueError(f"size must be a square; got {size['height']}x{size['width']}. Make both sides equal.")
        side = size["height"] if resizes else max(image.size)
        image = to_square(image, kwargs.get("fit", self.fit), side, resample)
        if resizes:
            # As in Janus' own image processor, which converts to arrays and back for each of these steps.
            scale, shortest = side / max(image.size), kwargs.get("min_size", self.min_size)
            image = image.resize(tuple(max(round(length * scale), shortest) for length in image.size), resample)
        if image.width != image.height and kwargs.get("do_pad", True):
            side = max(image.size)
            square = Image.new("RGB", (side, side), self.background_color)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        return np.moveaxis(np.asarray(image), -1, 0)

    def _prepare_image_like_inputs(self, images, expected_ndims: int = 3, **kwargs) -> list[np.ndarray]:
        """As in the library, but in as many threads as torch uses, as PIL resizes without Python's lock."""
        images = self._prepare_images_structure(images, expected_ndims=expected_ndims)
        threads = min(torch.get_num_threads(), len(images))
        if threads < 2:
            return [self.process_image(image, **kwargs) for image in images]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(partial(self.process_image, **kwargs), images))

    def _preprocess(
        self, images, do_rescale, rescale_factor, do_normalize, image_mean, image_std, return_tensors, **kwargs
    ) -> transformers.BatchFeature:
        # A value has the same result in every pixel, so it is computed once for each of the 256 values.
        table = np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(3, axis=0)
        if do_rescale:
            table = self.rescale(table, rescale_factor)
        if do_normalize:
            table = self.normalize(table, image_mean, image_std)
        pixels: list[np.ndarray] | np.ndarray = [np.empty(image.shape, table.dtype) for image in images]
        if return_tensors is not None and len({image.shape for image in images}) == 1:
            pixels = np.empty((len(images), *images[0].shape), table.dtype)
        for image, channels in zip(images, pixels, strict=True):
            for values, channel, converted in zip(image, channels, table[:, 0], strict=True):
                np.take(converted, values, out=channel, mode="clip")  # the other modes copy `out`
        return transformers.BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def postprocess(self, images, return_tensors: str | None = None, **kwargs):
        """Converts pixels `(3, height, width)` in [-1, 1] to 8 bits, or to pictures with `"PIL.Image.Image"`."""
        outputs = super().postprocess(images, do_rescale=False, **kwargs)
        if not isinstance(outputs, transformers.BatchFeature):  # pictures already
            return outputs
        # The library truncates, which would make half of all pixels darker by one.
        pixels = [np.rint(image.clip(0, 1) * 255).astype(np.uint8) for image in outputs["pixel_values"]]
        if return_tensors == "PIL.Image.Image":
            pixels, return_tensors = [Image.fromarray(np.moveaxis(image, 0, -1)) for image in pixels], None
        return transformers.BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)
