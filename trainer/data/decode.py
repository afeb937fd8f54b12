"""Open a picture file: decoded completely, turned upright, and its colours brought to 8-bit RGB.

The rule for colours: transparent areas lie over white; greys of 16 or 32 bits are scaled to 8 by their full range and
floats from 0 to 1; CMYK goes to sRGB, by its embedded profile where it has a good one; palettes and other modes are
converted by Pillow. Profiles of RGB pictures are not applied, as with sd-scripts. Never imports torch.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from trainer.errors import DataError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", *((".avif",) if features.check("avif") else ()))
MAX_IMAGE_PIXELS = 178_956_970
"""Pictures with more pixels are refused before they are decoded: a small file can hold a picture that fills memory."""

# what Pillow's decoders raise for damaged files, besides what a missing file raises
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_EXIF_ORIENTATION = 0x0112


def open_picture(file: Path | io.BytesIO, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode a picture completely and turn it as its EXIF data say. The first frame of an animation.

    Raises DataError with the reason only; who knows the path says it.
    """
    return open_frames(file, max_image_pixels=max_image_pixels)[0]


def open_frames(file: Path | io.BytesIO, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[Image.Image, bool]:
    """open_picture, and whether there are more frames than the first."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                width, height = image.size
                if width * height > max_image_pixels:
                    raise DataError(f"{width}x{height} pixels are more than the {max_image_pixels:,} allowed")
                image.load()
                # the second frame of an MPO is a camera's preview or the other eye's view
                is_animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
                ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise DataError("this file is not there any more") from None
    except Image.DecompressionBombError:
        raise DataError(f"has more pixels than the {max_image_pixels:,} allowed") from None
    except UnidentifiedImageError:
        raise DataError("is not a picture that can be read, whatever its name says") from None
    except DECODE_ERRORS as error:
        raise DataError(f"is damaged ({_short(error)})") from None
    return image, is_animated


def _short(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def header_size(path: Path) -> tuple[int, int] | None:
    """Size as people see it, from the header alone; None where that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                return (height, width) if orientation(image) >= 5 else (width, height)
    except DECODE_ERRORS:
        return None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 (upright) without one; 5 to 8 lie on their side."""
    if image.format == "PNG" and "exif" not in image.info:  # asking further would decode the picture
        return 1
    found = image.getexif().get(_EXIF_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB, transparency laid over white."""
    image = _to_eight_bits(image)
    if not image.has_transparency_data:
        return _convert(image)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(RGB with the colours that lie under transparent areas, opacity as 8-bit grey or None where all is opaque)."""
    image = _to_eight_bits(image)
    if not image.has_transparency_data:
        return _convert(image), None
    rgba = image.convert("RGBA")
    return rgba.convert("RGB"), rgba.getchannel("A")


def alpha_range(image: Image.Image) -> tuple[int, int]:
    """(least, greatest) opacity of a picture; 255 is opaque."""
    if not image.has_transparency_data:
        return 255, 255
    alpha = image if "A" in image.getbands() else image.convert("RGBA")
    low, high = alpha.getchannel("A").getextrema()
    assert isinstance(low, int) and isinstance(high, int)
    return low, high


def _convert(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile") if image.mode == "CMYK" else None
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a profile that cannot be used: Pillow's formula
        return image.convert("RGB")
    assert converted is not None
    return converted


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Deep greys scaled to 8 bits, where Pillow's convert would cut them off: 16-bit by their full range, 32-bit
    integers likewise (that is how Pillow reads some 16-bit PNGs), floats as 0 to 1."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64) / 257.0
    elif image.mode == "F":
        values = np.asarray(image, dtype=np.float64) * 255.0
    else:
        return image
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
