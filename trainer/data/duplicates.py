"""Find pictures that are copies of each other, or nearly: same bytes, or perceptual hashes few bits apart.

The hash is the same as imagehash's phash of each picture (https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html),
made in the scan's decode pass. Comparing all pairs is bit counting over packed words, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.scan import Picture

MAX_DISTANCE = 4
"""Bits of 64 in which near twins may differ: copies that were scaled or compressed again differ in 0 to 4."""

_BLOCK = 128


@dataclass(frozen=True)
class Twins:
    """Two pictures that look the same. distance: differing bits of the hash; same_bytes: the files are equal."""

    first: Picture
    second: Picture
    distance: int
    same_bytes: bool


def find_twins(pictures: Sequence[Picture], *, max_distance: int = MAX_DISTANCE) -> Iterator[Twins]:
    """Every pair of near twins, in the order of the pictures; each later twin is named with the first one it equals."""
    distinct = list({picture.path: picture for picture in pictures}.values())
    seen: dict[str, Picture] = {}
    twin_of: dict[int, tuple[int, int]] = {}
    hashed = [index for index, picture in enumerate(distinct) if picture.looks is not None]
    looks = np.array([distinct[index].looks for index in hashed], dtype=np.uint64)
    for start in range(0, len(hashed), _BLOCK):
        block = looks[start : start + _BLOCK]
        distances = np.bitwise_count(block[:, None] ^ looks[None, start:])
        for row, column in np.argwhere(distances <= max_distance):
            if column > row:
                pair = (hashed[start + int(row)], int(distances[row, column]))
                twin_of.setdefault(hashed[start + int(column)], pair)
    for index, picture in enumerate(distinct):
        same = seen.setdefault(picture.sha256, picture)
        if same is not picture:
            yield Twins(same, picture, 0, same_bytes=True)
        elif index in twin_of:
            first, distance = twin_of[index]
            yield Twins(distinct[first], picture, distance, same_bytes=False)
