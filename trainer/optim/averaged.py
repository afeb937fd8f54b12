"""Optimizers that train at other weights than those to be used: the ones to be used, for as long as they are needed.

Schedule-free optimizers (https://arxiv.org/abs/2405.15682) take gradients between their average and their newest
point, and what is drawn with and saved is the average. Everywhere else a run has the weights that it trains at, so that
resume points hold them as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

InUse = Callable[[], AbstractContextManager[None]]
"""Within it, the model has the weights that people will use."""


def in_use(optimizer: Optimizer) -> InUse:
    """How to see the weights to be used; for most optimizers they are those that train."""
    return partial(_average, optimizer) if hasattr(optimizer, "eval") else contextlib.nullcontext


@contextlib.contextmanager
def _average(optimizer: Any) -> Iterator[None]:
    weights = [weight.detach() for group in optimizer.param_groups for weight in group["params"]]
    trained = [weight.clone() for weight in weights]
    optimizer.eval()
    try:
        yield
    finally:
        # train() calculates its way back, which can miss the last bit
        optimizer.train()
        for weight, value in zip(weights, trained, strict=True):
            weight.copy_(value)
