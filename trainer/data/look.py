"""What a scan finds out about one picture file; runs in worker processes, so it imports little and never torch."""

from __future__ import annotations

import hashlib
import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from trainer.data.decode import alpha_range, open_frames
from trainer.errors import DataError

_HASH_SIDE = 32
_FLAT = 8
_COSINES_8S = np.cos(np.pi / _HASH_SIDE * np.outer(np.arange(8), np.arange(_HASH_SIDE) + 0.5))
"""The first eight rows of the discrete cosine transform."""


class Facts(NamedTuple):
    """One picture as its bytes tell it. reason: why it cannot be used, "" for a good one; alpha: (least, greatest)
    opacity; looks: 64 bits that are nearly the same for pictures that look the same, None for one without features."""

    width: int = 0
    height: int = 0
    sha256: str = ""
    is_animated: bool = False
    alpha: tuple[int, int] = (255, 255)
    looks: int | None = None
    reason: str = ""


class Job(NamedTuple):
    """A file to look at. known: what was found the last time, used again when the bytes are the same."""

    folder: str
    name: str
    max_image_pixels: int
    known: Facts | None = None


def look(job: Job) -> Facts:
    """Read and decode one picture, once; a file whose bytes are known is not decoded."""
    try:
        with open(os.path.join(job.folder, job.name), "rb") as file:
            data = file.read()
    except OSError as error:
        return Facts(reason=f"cannot be read ({error.strerror})")
    if not data:
        return Facts(reason="is empty (0 bytes)")
    sha256 = hashlib.sha256(data).hexdigest()
    if job.known and job.known.sha256 == sha256:
        return job.known
    try:
        image, is_animated = open_frames(io.BytesIO(data), max_image_pixels=job.max_image_pixels)
    except DataError as error:
        return Facts(reason=str(error))
    return Facts(image.width, image.height, sha256, is_animated, alpha_range(image), _looks(image))


def _looks(image: Image.Image) -> int | None:
    """The perceptual hash of a small grey version; green stands for brightness, which is cheaper and as good here."""
    step = max(1, min(image.size) // (3 * _HASH_SIDE))  # three samples a side for each number are enough, and quick
    few = image.resize((image.width // step, image.height // step), Image.Resampling.NEAREST) if step > 1 else image
    grey = few.getchannel("G") if "G" in few.getbands() else few.convert("L")
    small = grey.reduce((max(1, grey.width // _HASH_SIDE), max(1, grey.height // _HASH_SIDE)))
    low, high = small.getextrema()
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    if high - low < _FLAT:
        return None
    return perceptual_hash(small)


def perceptual_hash(grey: Image.Image) -> int:
    """64 bits of which waves a grey picture has more than the middling much: imagehash's phash, which imports scipy."""
    pixels_HW = np.asarray(grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS), np.float64)
    low_88 = _COSINES_8S @ pixels_HW @ _COSINES_8S.T
    middle = np.sort(low_88, axis=None)[31:33].mean()  # the median, in a tenth of the time
    return int.from_bytes(np.packbits(low_88 > middle).tobytes(), "big")
