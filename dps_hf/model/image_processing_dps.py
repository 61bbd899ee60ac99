"""Image processor of DPS: any picture to a grey letterboxed square in [-1, 1], and back."""

import base64
import binascii
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import JanusImageProcessorPil
from transformers.image_utils import is_valid_image, load_image

MAX_MEGAPIXELS = 100


def open_picture(source: str | bytes | Path, fetch_urls: bool = False) -> Image.Image:
    """Opens a path, the bytes of a file or a data URL (`data:image/...;base64,...`), and checks it whole.

    Raises:
        ValueError: the picture is corrupt, truncated, too large or not there, or it is a URL and `fetch_urls` is off.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if not fetch_urls:
            raise ValueError(
                f"URLs are not fetched; got {source!r}. Open the picture yourself, or set image_processor.fetch_urls = True."
            )
        return load_image(source)
    name = repr(source if len(str(source)) < 200 else str(source)[:60] + "...") if not isinstance(source, bytes) else "bytes"
    try:
        if isinstance(source, str) and source.startswith("data:image/"):
            source = base64.b64decode(source.partition(",")[2], validate=True)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise ValueError(f"No picture at {name}. Give a path, a PIL image, bytes or a data URL.") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"The picture {name} is too large: {error} Scale it down first.") from None
    except (UnidentifiedImageError, binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"The picture {name} is corrupt or of an unknown format: {error}. Save it again.") from None


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
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"The picture is corrupt or truncated: {error}. Save it again.") from None
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # PIL's own conversion would cut everything above 255 to white.
        values = values / 257 if image.mode.startswith("I;16") or values.max() > 255 else values
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class DPSImageProcessor(JanusImageProcessorPil):
    """[`~transformers.JanusImageProcessorPil`] (letterbox in grey, `postprocess` back to pictures), for whatever people send.

    One backend everywhere, so that a picture gives the same pixels with torchvision and without.

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
        """Opens what is given as path, URL, data URL or bytes; leaves the nesting of lists as it is."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, bytes, Path)):
            return open_picture(image_url_or_urls, self.fetch_urls)
        if is_valid_image(image_url_or_urls):
            return image_url_or_urls
        raise TypeError(
            f"A picture must be a PIL image, an array, a path, a data URL or bytes; got {type(image_url_or_urls).__name__}."
        )

    def process_image(self, image, *args, **kwargs) -> np.ndarray:
        if isinstance(image, Image.Image):
            image = to_rgb(image)
        elif min(image.shape) == 0:
            raise ValueError(f"A picture must have pixels; got an array of shape {tuple(image.shape)}.")
        return super().process_image(image, *args, **kwargs)


__all__ = ["DPSImageProcessor", "open_picture", "to_rgb"]
