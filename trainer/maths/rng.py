"""Derive every random draw from (seed, purpose, counters), so that nothing has to be carried along or restored.

A slot is a position in an epoch's shuffled list of samples; `derive(seed, "noise", epoch, slot)` is the seed of that
picture's noise whatever process, worker or resumed run computes it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for one purpose ("crop", "noise", ...) at the given counters (epoch, slot, ...)."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def python_rng(seed: int, purpose: str, *counters: int) -> random.Random:
    """A `random.Random` of its own for one purpose."""
    return random.Random(derive(seed, purpose, *counters))


def generator(seed: int, purpose: str, *counters: int) -> Generator:
    """A CPU `torch.Generator` of its own for one purpose; CPU, so that the draw is the same on every device."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))


def randn_slots(seed: int, purpose: str, epoch: int, slots: Sequence[int], shape: Sequence[int]) -> Tensor:
    """N(0, 1) noise [len(slots), *shape], each row drawn from its own slot's stream, on the CPU in float32."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, purpose, epoch, slot)) for slot in slots])
