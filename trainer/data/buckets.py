"""Decide which bucket (training size) a picture goes to, how it is resized and which box of it is kept.

The sizes and choices are sd-scripts' own; where it raised (a bucket of side 0, a maximum below the resolution) the
nearest legal bucket is taken. All sizes are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from trainer.errors import Problem
from trainer.schema import Options, opt

Size = tuple[int, int]


class BucketOptions(Options):
    """Sorting pictures by shape, for all datasets or one."""

    title: ClassVar[str] = "Buckets"

    enable_bucket: bool = opt(False, level="basic")
    """Sort the pictures into buckets of about the same area and different shapes, so that little is cut off. Off:
    every picture is resized and cropped to the resolution. Usually on, unless all pictures have one shape."""

    min_bucket_reso: int = opt(256, ge=8, step=64, unit="pixels")
    """Shortest side a bucket may have, in pixels; rounded down to a multiple of bucket_reso_steps. 256 is usual. Not
    used with bucket_no_upscale."""

    max_bucket_reso: int = opt(1024, ge=8, step=64, unit="pixels")
    """Longest side a bucket may have, in pixels; rounded up to a multiple of bucket_reso_steps. 1024 for a resolution
    of 512, 2048 for 1024. Not used with bucket_no_upscale."""

    bucket_reso_steps: int = opt(64, ge=8, step=8, unit="pixels")
    """Bucket sides are multiples of this many pixels. 64 for SD 1 and 2, 32 or 64 for SDXL; smaller steps cut off less
    and make more buckets."""

    bucket_no_upscale: bool = opt(False)
    """Never enlarge a picture: smaller pictures get buckets of their own size, rounded down to bucket_reso_steps."""

    def sides(self) -> tuple[int, int]:
        """(shortest, longest) bucket side on the grid of bucket_reso_steps."""
        steps = self.bucket_reso_steps
        return max(steps, self.min_bucket_reso // steps * steps), -(-self.max_bucket_reso // steps) * steps

    def problems_for(self, resolution: Size) -> Iterator[Problem]:
        """What of these settings does not go with this resolution."""
        if not self.enable_bucket:
            for side in sorted({s for s in resolution if s % 8}):
                remedy = f"Use {side // 8 * 8} or {(side // 8 + 1) * 8}, or set enable_bucket"
                yield Problem("resolution", "should be a multiple of 8 pixels", str(side), remedy=remedy)
            return
        if self.bucket_reso_steps % 8:
            yield Problem("bucket_reso_steps", "should be a multiple of 8 pixels", str(self.bucket_reso_steps))
        if self.bucket_no_upscale:
            return
        low, high = self.sides()
        text = f"{resolution[0]}x{resolution[1]}"
        if low > min(resolution):
            remedy = f"Set min_bucket_reso to at most {min(resolution)}"
            yield Problem("min_bucket_reso", f"is more than the resolution {text}", str(low), remedy=remedy)
        if high < max(resolution):
            remedy = f"Set max_bucket_reso to at least {max(resolution)}"
            yield Problem("max_bucket_reso", f"is less than the resolution {text}", str(high), remedy=remedy)


@dataclass(frozen=True)
class Geometry:
    """How one picture becomes training pixels; used alike for the picture, its mask and its conditioning.

    source: size after the EXIF turn. resized: size before the crop. crop: the box (left, top, right, bottom) of the
    resized picture that is kept; its size is the bucket.
    """

    source: Size
    resized: Size
    crop: tuple[int, int, int, int]

    @property
    def bucket(self) -> Size:
        left, top, right, bottom = self.crop
        return right - left, bottom - top

    @property
    def slack(self) -> Size:
        """How many pixels are cut off in all, per axis."""
        return self.resized[0] - self.bucket[0], self.resized[1] - self.bucket[1]

    def cropped_at(self, left: int, top: int) -> Geometry:
        """The same picture with its crop box elsewhere."""
        width, height = self.bucket
        assert 0 <= left <= self.slack[0] and 0 <= top <= self.slack[1]
        return replace(self, crop=(left, top, left + width, top + height))


def bucket_list(resolution: Size, *, min_side: int, max_side: int, steps: int) -> tuple[Size, ...]:
    """All buckets of at most resolution's area with sides from min_side to max_side, sorted."""
    area = resolution[0] * resolution[1]
    square = min(math.isqrt(area), max(max_side, steps)) // steps * steps
    square = max(square, steps)
    found = {(square, square)}
    for width in range(min_side, max_side + 1, steps):
        height = min(max_side, area // width // steps * steps)
        if height >= min_side:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def assign(source: Size, resolution: Size, options: BucketOptions) -> Geometry:
    """The geometry of a picture of this size: its bucket with a centred crop."""
    if not options.enable_bucket:
        return _centred(source, _cover(source, resolution), resolution)
    if options.bucket_no_upscale:
        return _assign_without_upscale(source, resolution, options.bucket_reso_steps)
    low, high = options.sides()
    return assign_to(source, _buckets(resolution, low, high, options.bucket_reso_steps))


@lru_cache(maxsize=64)
def _buckets(resolution: Size, low: int, high: int, steps: int) -> tuple[Size, ...]:
    return bucket_list(resolution, min_side=low, max_side=high, steps=steps)


def assign_to(source: Size, buckets: Sequence[Size]) -> Geometry:
    """The bucket of the list with the nearest width/height (the first of equals), the picture scaled to cover it."""
    if source in buckets:
        return _centred(source, source, source)
    aspect = source[0] / source[1]
    bucket = min(buckets, key=lambda size: abs(size[0] / size[1] - aspect))
    return _centred(source, _cover(source, bucket), bucket)


def _assign_without_upscale(source: Size, resolution: Size, steps: int) -> Geometry:
    width, height = source
    area = resolution[0] * resolution[1]
    resized = source if width * height <= area else _shrink_to_area(width / height, area, steps)
    bucket = max(steps, resized[0] // steps * steps), max(steps, resized[1] // steps * steps)
    if resized[0] < bucket[0] or resized[1] < bucket[1]:  # a side below one step has to grow to it
        resized = _cover(source, bucket)
    return _centred(source, resized, bucket)


def _shrink_to_area(aspect: float, area: int, steps: int) -> Size:
    """The size of this aspect and at most about this area that has one side on the grid and cuts off less."""
    ideal_width = math.sqrt(area * aspect)
    width = _down(ideal_width, steps)
    height = _down(area / ideal_width, steps)
    by_width = _aspect_error(width, _down(width / aspect, steps), aspect)
    by_height = _aspect_error(_down(height * aspect, steps), height, aspect)
    if by_width == by_height == math.inf:
        return (steps, _round(steps / aspect)) if aspect < 1 else (_round(steps * aspect), steps)
    return (width, _round(width / aspect)) if by_width < by_height else (_round(height * aspect), height)


def _aspect_error(width: int, height: int, aspect: float) -> float:
    return abs(width / height - aspect) if width and height else math.inf


def _cover(source: Size, bucket: Size) -> Size:
    """The source scaled until it just covers the bucket."""
    wider = source[0] / source[1] > bucket[0] / bucket[1]
    scale = bucket[1] / source[1] if wider else bucket[0] / source[0]
    return max(bucket[0], _round(source[0] * scale)), max(bucket[1], _round(source[1] * scale))


def _centred(source: Size, resized: Size, bucket: Size) -> Geometry:
    left, top = (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2
    return Geometry(source, resized, (left, top, left + bucket[0], top + bucket[1]))


def _round(value: float) -> int:
    return int(value + 0.5)


def _down(value: float, steps: int) -> int:
    """Rounded to a whole number first, then down to the grid."""
    return _round(value) // steps * steps
