"""Turn a picture file into training pixels: decode, EXIF turn, RGB, resize, crop, mirror.

Shapes: C channels, H height, W width. The rule for colours is decode.py's. Shrinking averages over areas (Pillow's BOX
filter), enlarging uses Lanczos, both as sd-scripts does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.buckets import Geometry, Size
from trainer.data.decode import open_picture, to_rgb
from trainer.errors import DataError
from trainer.lazy import torch
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor

RGB = npt.NDArray[np.uint8]


class PixelOptions(Options):
    """What is done to the pixels of a folder's pictures."""

    flip_aug: bool = opt(False)
    """Mirror each picture left to right half of the time. Not for faces, text or anything with a fixed side."""

    random_crop: bool = opt(False)
    """Cut the surplus off at a random place each time instead of evenly on both sides. Cannot go with cache_latents."""


def load_rgb(path: Path, geometry: Geometry, *, flipped: bool) -> RGB:
    """The pixels [H, W, 3] of a picture after resize, crop and mirroring, 8 bits; needs no torch."""
    try:
        image = open_picture(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if image.size != geometry.source:
        was, now = "x".join(map(str, geometry.source)), "x".join(map(str, image.size))
        raise DataError(f"{path}: was {was} pixels when the folder was looked through and is {now} now")
    rgb = resize(to_rgb(image), geometry.resized).crop(geometry.crop)
    pixels_HWC = np.asarray(rgb, dtype=np.uint8)
    return np.array(pixels_HWC[:, ::-1] if flipped else pixels_HWC, order="C")


def load_pixels(path: Path, geometry: Geometry, *, flipped: bool) -> Tensor:
    """The pixels [C, H, W] of a picture as float32 in [-1, 1]."""
    return to_pixels(load_rgb(path, geometry, flipped=flipped)[None])[0]


def to_pixels(rgb_BHWC: RGB) -> Tensor:
    """8-bit pixels as float32 [B, C, H, W] in [-1, 1]."""
    pixels_BHWC = torch.from_numpy(rgb_BHWC).to(torch.float32)
    return (pixels_BHWC / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def resize(image: Image.Image, size: Size) -> Image.Image:
    """BOX (area average) when both sides shrink or stay, Lanczos otherwise."""
    if image.size == size:
        return image
    shrinks = size[0] <= image.width and size[1] <= image.height
    return image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS)
