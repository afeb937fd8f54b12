"""Small copies of pictures, encoded anew, in data addresses: no file of the user's is ever served."""

from __future__ import annotations

import base64
import io
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps

from trainer.data.decode import MAX_IMAGE_PIXELS, to_rgb

SMALL = 132
LARGE = 720
_UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError)


def thumb(path: Path) -> str:
    """A picture for a grid, "" when it cannot be read; kept for the next time it is shown."""
    try:
        return _thumb(path, path.stat().st_mtime_ns)
    except _UNREADABLE:
        return ""


def preview(path: Path) -> str:
    """A picture to look at, "" when it cannot be read."""
    try:
        return _encode(path, LARGE)
    except _UNREADABLE:
        return ""


@lru_cache(maxsize=2000)
def _thumb(path: Path, _changed: int) -> str:
    return _encode(path, SMALL)


def _encode(path: Path, pixels: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError("too many pixels")
            image.draft("RGB", (pixels, pixels))  # JPEGs are decoded small, which is many times faster
            small = ImageOps.exif_transpose(image)
            if small.mode.startswith(("I", "F")):  # deep greys look as they train
                small = to_rgb(small)
            small.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    to_rgb(small).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
