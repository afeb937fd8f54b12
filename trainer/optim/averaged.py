"""Weights to be used that are not those that train: seen for as long as they are needed.

What is drawn with, measured and saved may be an average of the weights on their way. Schedule-free optimizers
(https://arxiv.org/abs/2405.15682) keep one themselves, and take gradients between it and their newest point; for the
others one can be kept beside (Polyak & Juditsky, 1992). Everywhere else a run has the weights that it trains at, and
resume points hold them as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.errors import Problem, RunError
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class AverageOptions(Options):
    """An average of what trains."""

    title: ClassVar[str] = "Average (EMA)"

    use_ema: bool = opt(False, label="Use the average (EMA)")
    """Keep an exponential moving average of what trains, and draw samples with it, validate it and save it in place of
    the newest weights: steadier results, at high rates above all. Resume points hold both. It takes the memory of what
    trains once more, in float32."""

    ema_decay: float = opt(0.9999, ge=0, lt=1, step=0.0001)
    """Share of the average that stays at each step; 0.9999 averages over about the last 10000 steps, 0.99 over 100, and
    0 is the newest weights. At the n-th step it is at most n / (n + 9), so that short runs have an average, too."""

    def problems(self) -> Iterator[Problem]:
        """A decay of no average."""
        if not self.use_ema and self.ema_decay != type(self).model_fields["ema_decay"].default:
            said, remedy = "is not used without use_ema", "Set use_ema, or leave ema_decay out"
            yield Problem("ema_decay", said, str(self.ema_decay), remedy=remedy)


def averaging_problems(options: AverageOptions, trait: str, optimizer: str) -> Iterator[Problem]:
    """An average of an average. trait: the optimizer's."""
    if options.use_ema and trait == "averages":
        remedy = "Leave use_ema out, or choose another optimizer"
        yield Problem("use_ema", f"{optimizer} keeps an average itself", "true", remedy=remedy)


class Averaging:
    """The weights to be used are those that train."""

    def update(self) -> None:
        """Called after each step."""

    def in_use(self) -> AbstractContextManager[None]:
        """Within it, the model has the weights that people will use."""
        return contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """What a resume point keeps, beside optimizer and weights."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""


class OptimizersAverage(Averaging):
    """A schedule-free optimizer's."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The optimizer's average, and then to the last bit what was there."""
        weights = _weights(self._optimizer)
        trained = [weight.detach().clone() for weight in weights]
        self._optimizer.eval()
        try:
            yield
        finally:
            # train() calculates its way back, which can miss the last bit
            self._optimizer.train()
            for weight, value in zip(weights, trained, strict=True):
                weight.detach().copy_(value)


class MovingAverage(Averaging):
    """An exponential moving average in float32 of all that an optimizer steps."""

    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self._averages = [weight.detach().float().clone() for weight in weights]
        self._updates = 0

    def update(self) -> None:
        """Take the newest weights in; the average of the first steps is nearer to them."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 9))
        get_ema_multi_avg_fn(decay)(self._averages, [weight.detach().float() for weight in self._weights], None)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The average in the weights' place; float32 weights are not copied for it."""
        trained = [weight.data for weight in self._weights]
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.data = average.to(weight.dtype)
        try:
            yield
        finally:
            for weight, value in zip(self._weights, trained, strict=True):
                weight.data = value

    def state_dict(self) -> dict[str, Any]:
        """The average and how often it was updated."""
        return {"updates": self._updates, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuses a state without an average, or one of something else."""
        shapes = [average.shape for average in state.get("averages", ())]
        if shapes != [average.shape for average in self._averages]:
            remedy = "Turn use_ema off to go on with it"
            raise RunError("the resume point holds no average of these weights", option="use_ema", remedy=remedy)
        self._updates = int(state["updates"])
        for average, value in zip(self._averages, state["averages"], strict=True):
            average.copy_(value)


def averaging_of(options: AverageOptions, optimizer: Optimizer) -> Averaging:
    """How to see the weights to be used; for most runs they are those that train."""
    if options.use_ema:
        return MovingAverage(_weights(optimizer), options.ema_decay)
    return OptimizersAverage(optimizer) if hasattr(optimizer, "eval") else Averaging()


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]
