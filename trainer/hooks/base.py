"""What a hook is: something done beside the training at its beginning, after a step, or at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Moment:
    """Where the run stands when hooks are called.

    step counts optimizer steps done, over resumed runs too; epoch counts from 1. epoch_ended and last say what this
    step was; wanted holds what a person asked for since the step before ("save", "sample"). figures: what method and
    optimizer have to say besides for the log, by TensorBoard name.
    """

    step: int
    epoch: int
    epoch_ended: bool
    last: bool
    loss: float = 0.0
    loss_average: float = 0.0
    grad_norm: float = 0.0
    seconds: float = 0.0
    lr: Mapping[str, float] | None = None
    wanted: frozenset[str] = frozenset()
    figures: Mapping[str, float] = field(default_factory=dict)


class Hook:
    """All hooks are called on every process; a hook that writes does so on the first only."""

    def begin(self, moment: Moment) -> None:
        """Before the first step; moment.step is 0, or where a resumed run goes on."""

    def after_step(self, moment: Moment) -> None:
        """After each optimizer step."""

    def end(self, moment: Moment, *, stopped: bool) -> None:
        """After the last step, or when the run was asked to stop."""


def due(moment: Moment, *, every_n_steps: int | None, every_n_epochs: int | None) -> bool:
    """Whether something that happens every n steps or n epochs happens now."""
    by_step = every_n_steps is not None and moment.step > 0 and moment.step % every_n_steps == 0
    by_epoch = every_n_epochs is not None and moment.epoch_ended and moment.epoch % every_n_epochs == 0
    return by_step or by_epoch
