"""Adapter options, and dropouts by their statistics."""

from __future__ import annotations

import pytest
import torch

from trainer.adapters.base import AdapterOptions, add_dropouts, build_adapter, known_adapters


def said(**values: object) -> list[str]:
    return [str(problem) for problem in AdapterOptions(**values).problems()]


def test_defaults_are_kohyas() -> None:
    options = AdapterOptions()
    assert not said()
    assert (options.network_module, options.network_dim, options.network_alpha) == ("networks.lora", 4, 1.0)


def test_problems() -> None:
    (unknown,) = said(network_module="networks.lara")
    assert "networks.lara" in unknown and "Did you mean networks.lora?" in unknown
    (alpha,) = said(network_alpha=0.0)
    assert "network_alpha: 0 would switch the network off" in alpha and "Leave it unset" in alpha
    (both,) = said(network_train_unet_only=True, network_train_text_encoder_only=True)
    assert "nothing would train" in both


def test_network_args_are_aliases() -> None:
    options = AdapterOptions(network_args=["rank_dropout=0.25", "module_dropout=0"])
    assert not list(options.problems())
    merged = options.merged()
    assert (merged.rank_dropout, merged.module_dropout, merged.network_args) == (0.25, 0, [])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("conv_dim", "no argument of this network"),
        ("rank_drop=0.1", "Did you mean rank_dropout?"),
        ("rank_dropout=2", "rank_dropout should be at least 0, less than 1"),
        ("rank_dropout=much", "rank_dropout should be a number"),
    ],
)
def test_bad_network_args(argument: str, words: str) -> None:
    (problem,) = said(network_args=[argument])
    assert words in problem


def test_arguments_given_twice() -> None:
    (problem,) = said(rank_dropout=0.5, network_args=["rank_dropout=0.25"])
    assert "twice with different values" in problem
    assert not said(rank_dropout=0.25, network_args=["rank_dropout=0.25"])


@pytest.mark.parametrize("kind", known_adapters())
def test_every_adapter_can_be_built(kind: str) -> None:
    assert build_adapter(AdapterOptions(network_module=kind), seed=0).kind == kind


def dropped(layer: torch.nn.Module, inputs: torch.Tensor, **options: float) -> torch.Tensor:
    """`layer` copies its input, so what comes out is the mask."""
    torch.manual_seed(0)
    add_dropouts(layer, AdapterOptions(**options))
    with torch.no_grad():
        return layer(inputs)


def identity(width: int) -> torch.nn.Module:
    layer = torch.nn.Linear(width, width, bias=False)
    torch.nn.init.eye_(layer.weight)
    return layer


def test_value_dropout() -> None:
    mask = dropped(identity(50), torch.ones(40, 50), network_dropout=0.25)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (mask == 0).float().mean() == pytest.approx(0.25, abs=0.05)


def test_rank_dropout_is_one_draw_per_sample_and_rank() -> None:
    mask = dropped(identity(50), torch.ones(40, 6, 50), rank_dropout=0.25)
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (mask[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.05)


def test_rank_dropout_of_a_convolution() -> None:
    layer = torch.nn.Conv2d(50, 50, 1, bias=False)
    torch.nn.init.dirac_(layer.weight)
    mask = dropped(layer, torch.ones(40, 50, 3, 2), rank_dropout=0.5)
    assert torch.equal(mask, mask[:, :, :1, :1].expand_as(mask))
    assert (mask[..., 0, 0] == 0).float().mean() == pytest.approx(0.5, abs=0.05)


def test_module_dropout_is_all_or_nothing_and_unscaled() -> None:
    layer = identity(3)
    add_dropouts(layer, AdapterOptions(module_dropout=0.25))
    torch.manual_seed(0)
    with torch.no_grad():
        sums = [layer(torch.ones(2, 3)).sum().item() for _ in range(1000)]
    assert set(sums) == {0.0, 6.0}
    assert sums.count(0.0) / 1000 == pytest.approx(0.25, abs=0.04)


def test_no_dropout_outside_training() -> None:
    layer = identity(3).eval()
    add_dropouts(layer, AdapterOptions(module_dropout=0.9, rank_dropout=0.9, network_dropout=0.9))
    assert torch.equal(layer(torch.ones(2, 3)), torch.ones(2, 3))


def test_a_dropped_module_still_has_gradients() -> None:
    layer = identity(3)
    add_dropouts(layer, AdapterOptions(module_dropout=0.99))
    layer(torch.ones(2, 3)).sum().backward()
    assert layer.weight.grad is not None


def test_unset_dropouts_cost_nothing() -> None:
    layer = identity(3)
    add_dropouts(layer, AdapterOptions(rank_dropout=0.0))
    assert not layer._forward_hooks
