"""Weights to be used, where an optimizer trains at others: seen for a while, and then exactly what they were."""

from __future__ import annotations

import contextlib

import pytest
import torch

from trainer.optim.averaged import in_use
from trainer.optim.optimizers import OptimizerOptions, ParamGroup, build


def train(name: str, *, steps: int, look: bool = False) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    """A few steps of a small problem; look: see the weights to be used after each of them."""
    weight = torch.nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    optimizer = build(OptimizerOptions(optimizer_type=name), [ParamGroup("unet", "unet", (weight,), 0.1)])
    for number in range(steps):
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(number))
        (x @ weight - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if look:
            with in_use(optimizer)():
                pass
    return weight, optimizer


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"])
def test_looking_changes_no_bit(name: str) -> None:
    looked, optimizer = train(name, steps=9, look=True)
    plain, other = train(name, steps=9)
    assert torch.equal(looked, plain)
    assert optimizer.param_groups[0]["train_mode"] and other.param_groups[0]["train_mode"]
    for key, value in optimizer.state[looked].items():
        assert torch.equal(value, other.state[plain][key]), key


def test_what_is_used_is_the_average() -> None:
    """With SGD, what is used after two steps of equal weight is the mean of the two newest points."""
    weight, optimizer = train("SGDScheduleFree", steps=2)
    newest = optimizer.state[weight]["z"].clone()
    _, one_step = train("SGDScheduleFree", steps=1)
    (earlier,) = (state["z"] for state in one_step.state.values())
    trained = weight.detach().clone()
    with in_use(optimizer)():
        torch.testing.assert_close(weight.detach(), (earlier + newest) / 2)
    assert torch.equal(weight, trained)


def test_an_error_while_looking_puts_the_weights_back() -> None:
    weight, optimizer = train("AdamWScheduleFree", steps=3)
    trained = weight.detach().clone()
    with pytest.raises(ValueError, match="drawing"), in_use(optimizer)():
        assert not torch.equal(weight, trained)
        raise ValueError("drawing")
    assert torch.equal(weight, trained) and optimizer.param_groups[0]["train_mode"]


def test_before_the_first_step_there_is_nothing_else() -> None:
    weight, optimizer = train("AdamWScheduleFree", steps=0)
    trained = weight.detach().clone()
    with in_use(optimizer)():
        assert torch.equal(weight, trained)
    assert optimizer.param_groups[0]["train_mode"]


def test_most_optimizers_use_what_they_train() -> None:
    _, optimizer = train("AdamW", steps=1)
    assert in_use(optimizer) is contextlib.nullcontext
