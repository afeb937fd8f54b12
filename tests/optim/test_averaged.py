"""Weights to be used, where an optimizer trains at others: seen for a while, and then exactly what they were."""

from __future__ import annotations

import pytest
import torch

from trainer.errors import RunError
from trainer.optim.averaged import AverageOptions, Averaging, MovingAverage, averaging_of, averaging_problems
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
            with averaging_of(AverageOptions(), optimizer).in_use():
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
    with averaging_of(AverageOptions(), optimizer).in_use():
        torch.testing.assert_close(weight.detach(), (earlier + newest) / 2)
    assert torch.equal(weight, trained)


def test_an_error_while_looking_puts_the_weights_back() -> None:
    weight, optimizer = train("AdamWScheduleFree", steps=3)
    trained = weight.detach().clone()
    with pytest.raises(ValueError, match="drawing"), averaging_of(AverageOptions(), optimizer).in_use():
        assert not torch.equal(weight, trained)
        raise ValueError("drawing")
    assert torch.equal(weight, trained) and optimizer.param_groups[0]["train_mode"]


def test_before_the_first_step_there_is_nothing_else() -> None:
    weight, optimizer = train("AdamWScheduleFree", steps=0)
    trained = weight.detach().clone()
    with averaging_of(AverageOptions(), optimizer).in_use():
        assert torch.equal(weight, trained)
    assert optimizer.param_groups[0]["train_mode"]


def test_most_optimizers_use_what_they_train() -> None:
    _, optimizer = train("AdamW", steps=1)
    assert type(averaging_of(AverageOptions(), optimizer)) is Averaging


def test_the_moving_average_by_hand_and_nothing_is_left_behind() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    average = MovingAverage([weight], decay=0.15)
    expected = weight.detach().double().clone()
    for step, decay in ((1, 1 / 10), (2, 0.15), (3, 0.15)):
        weight.data = torch.tensor([1.0, -2.0]) * (step + 1)
        average.update()
        expected = decay * expected + (1 - decay) * weight.detach().double()
    place = weight.data_ptr()
    with pytest.raises(ValueError, match="drawing"), average.in_use():
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-6, atol=1e-6)
        raise ValueError("drawing")
    assert weight.tolist() == [4.0, -8.0] and weight.data_ptr() == place


def test_weights_of_half_precision_have_an_average_in_float32() -> None:
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average = MovingAverage([weight], decay=0.999)
    average.load_state_dict({"updates": 10**6, "averages": [torch.ones(3)]})
    weight.data = torch.full((3,), 2.0, dtype=torch.bfloat16)
    for _ in range(3):
        average.update()
    (kept,) = average.state_dict()["averages"]
    torch.testing.assert_close(kept, torch.full((3,), 2 - 0.999**3), rtol=1e-6, atol=0)
    with average.in_use():
        assert weight.dtype == torch.bfloat16
    assert weight.tolist() == [2.0] * 3


def test_what_does_not_go_together() -> None:
    options = AverageOptions(use_ema=True)
    (problem,) = averaging_problems(options, "averages", "AdamWScheduleFree")
    assert problem.option == "use_ema"
    assert not list(averaging_problems(options, "", "AdamW"))
    assert [p.option for p in AverageOptions(ema_decay=0.9).problems()] == ["ema_decay"]
    average = MovingAverage([torch.ones(3)], decay=0.9)
    for state in ({}, {"updates": 1, "averages": [torch.ones(4)]}):
        with pytest.raises(RunError, match="no average"):
            average.load_state_dict(state)
