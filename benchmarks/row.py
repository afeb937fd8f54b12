"""One line of the table, and how its two numbers are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table. ours, bare: seconds; goal: the ratio aimed at; gate: the one CI fails above."""

    name: str
    ours: float
    bare: float
    goal: float
    gate: float

    @property
    def ratio(self) -> float:
        return self.ours / self.bare


def measure_pairs(ours: Callable[[], float], bare: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The minimum of each over interleaved rounds, so that a busy machine hits both."""
    pairs = [(ours(), bare()) for _ in range(rounds)]
    return min(o for o, _ in pairs), min(b for _, b in pairs)
