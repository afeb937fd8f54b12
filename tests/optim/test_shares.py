"""Unequal rates with optimizers that find one rate: a group at half the rate takes half the step."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch.optim import Optimizer

from trainer.optim.optimizers import KNOWN, OptimizerOptions, ParamGroup, build
from trainer.optim.shares import found_rates

FINDING = [name for name, known in KNOWN.items() if known.trait == "finds rate"]


def pair(name: str, *, rates: tuple[float, ...] = (1.0, 0.5), arguments: tuple[str, ...] = ()) -> Optimizer:
    """An optimizer over equal weights, a group for each rate, which shall get equal gradients."""
    pytest.importorskip(KNOWN[name].module.partition(".")[0])
    start = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    names = ("unet", "textencoder", "textencoder plus")
    groups = [ParamGroup(n, n, (torch.nn.Parameter(start.clone()),), r) for n, r in zip(names, rates, strict=False)]
    return build(OptimizerOptions(optimizer_type=name, optimizer_args=list(arguments)), groups)


def moved(optimizer: Optimizer, steps: int) -> list[torch.Tensor]:
    """How far each group's weight goes under the same gradients."""
    weights = [group["params"][0] for group in optimizer.param_groups]
    before = [weight.detach().double() for weight in weights]
    for number in range(steps):
        gradient = 1 + torch.randn(8, 8, generator=torch.Generator().manual_seed(number))
        for weight in weights:
            weight.grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
    return [weight.detach().double() - was for weight, was in zip(weights, before, strict=True)]


@pytest.mark.parametrize("name", FINDING)
def test_half_the_rate_is_half_the_step(name: str) -> None:
    """In steps that grow as d is found; without decay, which depends on where the weights are."""
    optimizer = pair(name, arguments=("d0=1e-3", "weight_decay=0.0"))
    whole, half = moved(optimizer, 12)
    assert whole.abs().max() > 1e-3 and float(optimizer.param_groups[0]["d"]) > 1e-3
    torch.testing.assert_close(half, whole / 2, rtol=2e-3, atol=1e-5)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("name", "decouple"),
    [("DAdaptation", True), ("DAdaptLion", True), ("Prodigy", True), ("DAdaptLion", False), ("DAdaptSGD", False)],
)
def test_weight_decay_keeps_to_the_share(name: str, *, decouple: bool) -> None:
    """Decay of weights, or of the loss by them, is the same function of the weights in every group."""
    arguments = ("d0=1e-3", f"decouple={decouple}")
    whole, half = moved(pair(name, arguments=(*arguments, "weight_decay=0.5")), 1)
    torch.testing.assert_close(half, whole / 2, rtol=2e-3, atol=1e-6)
    without, _ = moved(pair(name, arguments=arguments), 1)
    assert not torch.allclose(without, whole, rtol=1e-4, atol=1e-7)


def test_a_rate_of_zero_is_not_trained() -> None:
    whole, half, none = moved(pair("Prodigy", rates=(1.0, 0.5, 0.0)), 3)
    assert whole.abs().max() > 0 and half.abs().max() > 0 and not none.any()


def test_the_highest_rate_need_not_be_the_first() -> None:
    half, whole = moved(pair("DAdaptation", rates=(0.5, 1.0), arguments=("d0=1e-3",)), 5)
    torch.testing.assert_close(half, whole / 2, rtol=2e-3, atol=1e-6)


def test_equal_rates_are_the_librarys_own_steps() -> None:
    ours = pair("Prodigy", rates=(0.5, 0.5))
    theirs = pytorch_optimizer.Prodigy([group["params"][0].detach().clone() for group in ours.param_groups], lr=0.5)
    moved(ours, 5)
    theirs.param_groups = [{**theirs.param_groups[0], "params": [p]} for p in theirs.param_groups[0]["params"]]
    moved(theirs, 5)
    for one, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert torch.equal(one["params"][0], other["params"][0]) and one["d"] == other["d"]


def test_the_log_tells_the_rates_that_are_found() -> None:
    optimizer = pair("Prodigy")
    moved(optimizer, 3)
    found = found_rates(optimizer)
    d = float(optimizer.param_groups[0]["d"])
    assert found == {"lr/d*lr/unet": d, "lr/d*lr/textencoder": d * 0.5} and d > 1e-6
    plain: Any = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "name": "unet"}], lr=0.1)
    assert found_rates(plain) == {}
