"""Unequal rates for optimizers that find one rate for everything: D-Adaptation and Prodigy.

Such an optimizer estimates one distance d to the solution and takes one learning rate for all of its groups. A group
that is to learn at a share of the highest rate is handed over in other units: with theta = u phi the optimizer sees phi
and its gradient u g, and its step times u is what theta moves. Where steps follow the gradient's direction only, u is
the share; in DAdaptSGD, where they grow with it, u is its square root. The estimate of d stays what its authors prove
it to be, for a problem in these units. DAdaptAdam's own layer_scale in the dadaptation package is the same change.
D-Adaptation: https://arxiv.org/abs/2301.07733, Prodigy: https://arxiv.org/abs/2306.06101
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

_GROWS_WITH_GRADIENT = ("DAdaptSGD",)


def share_one_rate(optimizer: Optimizer) -> None:
    """Let each group of an optimizer that finds one rate learn at its own share of it."""
    highest = max(group["lr"] for group in optimizer.param_groups)
    root = 2 if type(optimizer).__name__ in _GROWS_WITH_GRADIENT else 1
    own = [Share(group["lr"] / highest, root) if highest else Share(1.0, root) for group in optimizer.param_groups]
    if any(share.of_rate != 1 for share in own):
        shared = _Shared(own)
        optimizer.register_step_pre_hook(shared.before_step)
        optimizer.register_step_post_hook(shared.after_step)
    optimizer.register_load_state_dict_post_hook(_on_its_device)


def found_rates(optimizer: Optimizer) -> dict[str, float]:
    """What each group really learns at, where the optimizer finds the rate: by TensorBoard name, as in sd-scripts."""
    groups = optimizer.param_groups
    return {f"lr/d*lr/{group['name']}": float(group["d"] * group["lr"]) for group in groups if "d" in group}


@dataclass(frozen=True)
class Share:
    """A group's share of the highest rate, and its units."""

    of_rate: float
    root: int

    @property
    def unit(self) -> float:
        # what does not learn has no gradient to hand over, and any units do
        return math.pow(self.of_rate, 1 / self.root) or 1.0

    def of_decay(self, group: dict[str, Any]) -> float:
        """What weight decay is to be multiplied with: by units where it goes by way of the gradient, else by rate."""
        # dadaptation says decouple, pytorch_optimizer both others; the Adans' decay never goes by the gradient
        by_gradient = group.get("decouple") is False or ("fixed_decay" in group and not group["weight_decouple"])
        if by_gradient:
            return self.unit**2
        return 1.0 if group.get("fixed_decay") else self.of_rate


class _Shared:
    """The change of units around each step of an optimizer, as its hooks."""

    def __init__(self, shares: list[Share]) -> None:
        self._shares = shares
        self._kept: list[tuple[float, float, list[Tensor]]] = []

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Hand over in the groups' units, at the highest rate."""
        highest = max(group["lr"] for group in optimizer.param_groups)
        self._kept = []
        for group, share in zip(optimizer.param_groups, self._shares, strict=True):
            weights = group["params"] if share.of_rate != 1 else []
            self._kept.append((group["lr"], group["weight_decay"], [p.detach().clone() for p in weights]))
            group["lr"] = highest
            group["weight_decay"] *= share.of_decay(group)
            for weight in weights:
                weight.detach().div_(share.unit)
                weight.grad = None if weight.grad is None or not share.of_rate else weight.grad.mul_(share.unit)

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Take over the step, in our units; gradients are done with."""
        for group, share, kept in zip(optimizer.param_groups, self._shares, self._kept, strict=True):
            group["lr"], group["weight_decay"], before = kept
            for weight, was in zip(group["params"] if before else (), before, strict=True):
                # the step is added: a weight that did not move is the same to the last bit
                step = weight.detach().sub_(was / share.unit).mul_(share.unit)
                step.add_(was)
        self._kept = []


def _on_its_device(optimizer: Optimizer) -> None:
    """torch moves what belongs to weights to their device, but not the sums that these optimizers keep for a group."""
    device = optimizer.param_groups[0]["params"][0].device
    for group in optimizer.param_groups:
        group.update({key: value.to(device) for key, value in group.items() if isinstance(value, torch.Tensor)})
