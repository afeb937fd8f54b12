"""Turn a picture file into training pixels and their mask: decode, turn, resize, crop, change colours, mirror.

Shapes: B pictures, C channels, H height, W width. Picture and mask go through one Geometry, so that they stay aligned.
The rule for colours is decode.py's. Shrinking averages over areas (Pillow's BOX filter), enlarging uses Lanczos, both
as sd-scripts does. Nothing here is drawn: who draws hands in a PixelWork.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.buckets import Geometry, Size
from trainer.data.decode import open_picture, split_alpha, to_rgb
from trainer.errors import DataError, Problem
from trainer.lazy import torch
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
MaskSource = Path | Literal["alpha"] | None
Interpolation = Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"]

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}


class PixelOptions(Options):
    """What is done to the pixels of a folder's pictures."""

    flip_aug: bool = opt(False)
    """Mirror each picture left to right half of the time. Not for faces, text or anything with a fixed side."""

    random_crop: bool = opt(False)
    """Cut the surplus off at a random place each time instead of evenly on both sides. Cannot go with cache_latents."""

    color_aug: bool = opt(False)
    """Change a third of the pictures a little in hue (up to 16 degrees) or brightness (gamma 0.95 to 1.05), anew each
    time. Cannot go with cache_latents."""

    face_crop_aug_range: str | list[float] | None = opt(None)
    """Cut around the face that the file name gives as name_<centre x>_<centre y>_<width>_<height>, so that the shorter
    side is this many times the face, drawn between two numbers, as in 2.0,4.0. Only without enable_bucket; cannot go
    with cache_latents. Pictures with other names are cropped as usual."""

    alpha_mask: bool = opt(False)
    """Train only where a picture is opaque: its transparency is the mask of the loss, and colours under it are kept.
    Off: transparent areas are trained as white."""

    resize_interpolation: Interpolation | None = opt(None)
    """How pictures are scaled. Unset: area when they shrink, lanczos when they grow. bilinear and linear are the same,
    as are bicubic and cubic."""

    def face_zoom(self) -> tuple[float, float] | None:
        """face_crop_aug_range as two numbers, None when unset; ValueError for anything else."""
        given = self.face_crop_aug_range
        if given is None:
            return None
        low, high = (float(part) for part in (given.split(",") if isinstance(given, str) else given))
        if not 0 < low <= high < float("inf"):
            raise ValueError(given)
        return low, high

    def pixel_problems(self, *, cached: bool, bucketed: bool) -> Iterator[Problem]:
        """What of these settings does not go together, with cached latents, or with buckets."""
        drawn = {
            "random_crop": self.random_crop,
            "color_aug": self.color_aug,
            "face_crop_aug_range": self.face_crop_aug_range is not None,
        }
        for name in (name for name, is_set in drawn.items() if is_set and cached):
            said = "cannot go with cache_latents: a cached picture has one crop and one colour"
            yield Problem(name, said, remedy=f"Turn off {name} or cache_latents")
        try:
            zoom = self.face_zoom()
        except ValueError:
            said = "should be two numbers above 0, the smaller one first"
            remedy = "Write 2.0,4.0, or [2.0, 4.0] in a TOML"
            yield Problem("face_crop_aug_range", said, repr(self.face_crop_aug_range), remedy=remedy)
            return
        if zoom and bucketed:
            yield Problem(
                "face_crop_aug_range", "cannot go with enable_bucket", remedy="Turn off one of them for this folder"
            )


@dataclass(frozen=True)
class ColourChange:
    """A change of one picture's colours: hue by this many degrees, then every value to the power gamma."""

    hue_degrees: float = 0.0
    gamma: float = 1.0


@dataclass(frozen=True)
class PixelWork:
    """Everything that decides the pixels of one use of a picture.

    mask: a file whose red channel is the mask, "alpha" for the picture's own transparency, None without one.
    """

    path: Path
    geometry: Geometry
    flipped: bool = False
    colour: ColourChange | None = None
    interpolation: Interpolation | None = None
    mask: MaskSource = None


def draw_colour(rng: random.Random) -> ColourChange | None:
    """A change for a third of the pictures: half of those in hue, half in gamma."""
    if rng.random() >= 0.33:
        return None
    if rng.random() < 0.5:
        return ColourChange(hue_degrees=rng.uniform(-16, 16))
    return ColourChange(gamma=rng.uniform(0.95, 1.05))


def load_picture(work: PixelWork) -> tuple[RGB, Mask | None]:
    """(pixels [H, W, 3], mask [H, W] or None) of one use, 8 bits each; needs no torch."""
    image = _open(work.path, work.geometry.source)
    rgb, alpha = split_alpha(image) if work.mask == "alpha" else (to_rgb(image), None)
    rgb = _fit(rgb, work)
    if work.colour:
        rgb = change_colour(rgb, work.colour)
    return _as_array(rgb, work), _mask(work, alpha)


def load_mask(work: PixelWork) -> Mask | None:
    """The mask alone, for pictures whose latents are cached."""
    if work.mask is None:
        return None
    alpha = split_alpha(_open(work.path, work.geometry.source))[1] if work.mask == "alpha" else None
    return _mask(work, alpha)


def load_pixels(work: PixelWork) -> Tensor:
    """The pixels [C, H, W] of a picture as float32 in [-1, 1]."""
    return to_pixels(load_picture(work)[0][None])[0]


def to_pixels(rgb_BHWC: RGB) -> Tensor:
    """8-bit pixels as float32 [B, C, H, W] in [-1, 1]."""
    pixels_BHWC = torch.from_numpy(rgb_BHWC).to(torch.float32)
    return (pixels_BHWC / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def to_masks(masks_BHW: Mask) -> Tensor:
    """8-bit masks as float32 [B, H, W] in [0, 1]."""
    return torch.from_numpy(masks_BHW).to(torch.float32) / 255.0


def resize(image: Image.Image, size: Size, interpolation: Interpolation | None = None) -> Image.Image:
    """By the named filter; else BOX (area average) when both sides shrink or stay, Lanczos otherwise."""
    if image.size == size:
        return image
    if interpolation:
        return image.resize(size, _FILTERS[interpolation])
    shrinks = size[0] <= image.width and size[1] <= image.height
    return image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS)


def change_colour(rgb: Image.Image, change: ColourChange) -> Image.Image:
    """A picture with its hue turned and its values bent."""
    if change.hue_degrees:
        hue, saturation, value = rgb.convert("HSV").split()
        steps = round(change.hue_degrees * 256 / 360)
        hue = hue.point([(level + steps) % 256 for level in range(256)])
        rgb = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if change.gamma != 1.0:
        rgb = rgb.point([round(255 * (level / 255) ** change.gamma) for level in range(256)] * 3)
    return rgb


def _open(path: Path, source: Size) -> Image.Image:
    try:
        image = open_picture(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if image.size != source:
        was, now = "x".join(map(str, source)), "x".join(map(str, image.size))
        raise DataError(f"{path}: was {was} pixels when the folder was looked through and is {now} now")
    return image


def _mask(work: PixelWork, alpha: Image.Image | None) -> Mask | None:
    """The mask through the picture's geometry; a picture without transparency has a white one."""
    if work.mask is None:
        return None
    named = work.path
    if work.mask != "alpha":
        named = work.mask
        alpha = _read_mask(_open(work.mask, work.geometry.source))
    if alpha is None:
        alpha = Image.new("L", work.geometry.source, 255)
    if alpha.getextrema()[1] == 0:
        raise DataError(f"{named}: this mask is black everywhere, so that nothing of the picture would be trained")
    return _as_array(_fit(alpha, work), work)


def is_black(path: Path) -> bool:
    """Whether a mask file lets nothing through."""
    return _read_mask(open_picture(path)).getextrema()[1] == 0


def _read_mask(image: Image.Image) -> Image.Image:
    """The red channel, as sd-scripts takes it; the same as any other of a grey picture."""
    return to_rgb(image).getchannel("R")


def _fit(image: Image.Image, work: PixelWork) -> Image.Image:
    return resize(image, work.geometry.resized, work.interpolation).crop(work.geometry.crop)


def _as_array(image: Image.Image, work: PixelWork) -> npt.NDArray[np.uint8]:
    values = np.asarray(image, dtype=np.uint8)
    return np.array(values[:, ::-1] if work.flipped else values, order="C")
