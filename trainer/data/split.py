"""Choose the pictures that are kept out of training to validate with: by a hash, so that the choice never wanders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

from trainer.schema import Options, opt


class SplitOptions(Options):
    """Pictures kept out of training."""

    title: ClassVar[str] = "Validation"

    validation_split: float = opt(0.0, ge=0, lt=1, step=0.05)
    """Share of each folder's pictures that is kept out of training, to measure with; regularisation pictures are never
    taken, and one picture always stays. 0 keeps none; 0.1 is usual. Their loss is the validation loss."""

    validation_seed: int | None = opt(None, ge=0)
    """Which pictures validation_split takes: the same for the same seed and file names, whatever the seed of the run.
    Unset means 0."""


def choose(keys: Sequence[str], options: SplitOptions) -> frozenset[int]:
    """Positions of the pictures to validate with. keys: something stable about each, such as its relative path."""
    count = min(round(len(keys) * options.validation_split), len(keys) - 1)
    seed = options.validation_seed or 0
    ranked = sorted(range(len(keys)), key=lambda index: (_hash(seed, keys[index]), keys[index]))
    return frozenset(ranked[: max(count, 0)])


def _hash(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
