"""Learning-rate schedules: pure functions of (optimizer step, total steps), stepped once per optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.errors import Problem
from trainer.lazy import torch
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

Name = Literal["constant", "constant_with_warmup", "cosine", "linear"]


class ScheduleOptions(Options):
    """How the learning rate changes over the run."""

    title: ClassVar[str] = "Learning-rate schedule"

    lr_scheduler: Name = opt("constant", label="Schedule")
    """How the rate changes over the run: constant, constant after a warm-up, or falling to 0 by a cosine or a line."""

    lr_warmup_steps: int | float = opt(0, ge=0, label="Warm-up", unit="steps")
    """Steps in which the rate rises from 0; a number below 1 is a part of the whole run (0.1 is a tenth)."""

    def problems(self) -> Iterator[Problem]:
        if self.lr_warmup_steps >= 1 and self.lr_warmup_steps != int(self.lr_warmup_steps):
            yield Problem(
                "lr_warmup_steps",
                "should be a whole number of steps, or a part of the run below 1",
                str(self.lr_warmup_steps),
            )
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            yield Problem(
                "lr_warmup_steps",
                "the constant schedule has no warm-up",
                str(self.lr_warmup_steps),
                remedy="Use lr_scheduler constant_with_warmup, or set lr_warmup_steps to 0",
            )


def warmup_steps(options: ScheduleOptions, total_steps: int) -> int:
    """The warm-up in optimizer steps."""
    value = options.lr_warmup_steps
    return int(value * total_steps) if value < 1 else int(value)


def constant(step: int, total: int) -> float:
    """1 throughout."""
    return 1.0


def linear(step: int, total: int) -> float:
    """1 falling to 0 along a line."""
    return max(0.0, (total - step) / max(1, total))


def cosine(step: int, total: int) -> float:
    """1 falling to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total))))


CURVES: Mapping[str, Callable[[int, int], float]] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "cosine": cosine,
    "linear": linear,
}


def factor(options: ScheduleOptions, step: int, total_steps: int) -> float:
    """What the base rate is multiplied by at an optimizer step, counted from 0."""
    warmup = warmup_steps(options, total_steps)
    if step < warmup:
        return step / warmup
    return CURVES[options.lr_scheduler](step - warmup, total_steps - warmup)


def build(options: ScheduleOptions, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """A torch scheduler to step once after each optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(options, step, total_steps))
