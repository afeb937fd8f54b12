"""Crop around a face whose place the file name says, as face detection tools write it: name_<cx>_<cy>_<w>_<h>.png."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from trainer.data.buckets import Geometry, Size

_TAIL = re.compile(r"^(?P<name>.*)_(\d+)_(\d+)_(\d+)_(\d+)$")
_JITTER = 20


@dataclass(frozen=True)
class Face:
    """Centre and size of a face in pixels of the picture. name: the file's name without the four numbers."""

    name: str
    centre: tuple[int, int]
    size: Size


def face_of(path: Path) -> Face | None:
    """The face that a file name speaks of, None when it does not end in four numbers."""
    match = _TAIL.match(path.stem)
    if match is None:
        return None
    x, y, width, height = (int(match.group(index)) for index in range(2, 6))
    return Face(match.group("name"), (x, y), (width, height)) if width and height else None


def crop_to_face(geometry: Geometry, face: Face, *, zoom: tuple[float, float], rng: random.Random) -> Geometry:
    """The picture scaled so that the shorter side of its bucket is zoom times the face, cut out around the face.

    It covers its bucket whatever the zoom, and is not enlarged for the face's sake. The centre is moved at random by
    up to a twentieth of the face.
    """
    (width, height), (bucket_width, bucket_height) = geometry.source, geometry.bucket
    longest = max(face.size)
    cover = max(bucket_width / width, bucket_height / height)
    low, high = (min(max(cover, 1.0), max(cover, min(geometry.bucket) / (longest * z))) for z in reversed(zoom))
    scale = rng.uniform(low, high)
    resized = (max(bucket_width, round(width * scale)), max(bucket_height, round(height * scale)))
    reach = longest * scale / _JITTER
    corner = []
    for centre, side, room in zip(face.centre, geometry.bucket, resized, strict=True):
        start = round(centre * scale + rng.uniform(-reach, reach) - side / 2)
        corner.append(min(max(start, 0), room - side))
    left, top = corner
    return Geometry(geometry.source, resized, (left, top, left + bucket_width, top + bucket_height))
