"""Optimizers: options, rates per component, arguments checked against the constructor."""

from __future__ import annotations

import pytest
import torch

from trainer.errors import ConfigError
from trainer.optim.optimizers import KNOWN, OptimizerOptions, ParamGroup, build, known_name


def group(name: str = "unet", rate: float = 0.1) -> ParamGroup:
    weight = torch.nn.Parameter(torch.ones(2))
    return ParamGroup(name=name, component="denoiser", parameters=(weight,), learning_rate=rate)


def said(**values: object) -> list[str]:
    return [str(problem) for problem in OptimizerOptions(**values).problems()]


def test_defaults_are_kohyas() -> None:
    options = OptimizerOptions()
    assert not said()
    assert (options.optimizer_type, options.learning_rate, options.max_grad_norm) == ("AdamW", 2e-6, 1.0)


def test_rates() -> None:
    options = OptimizerOptions(learning_rate=1e-4, unet_lr=0.0)
    assert (options.rate("denoiser"), options.rate("text_encoder")) == (0.0, 1e-4)
    options = OptimizerOptions(learning_rate=1e-4, text_encoder_lr=5e-5)
    assert (options.rate("denoiser"), options.rate("text_encoder_2")) == (1e-4, 5e-5)


@pytest.mark.parametrize("name", KNOWN)
def test_every_optimizer_steps(name: str) -> None:
    assert known_name(name.lower()) == known_name(name.upper()) == name
    groups = [group(rate=0.1), group("textencoder", 0.01)]
    optimizer = build(OptimizerOptions(optimizer_type=name.upper()), groups)
    assert [(g["lr"], g["name"]) for g in optimizer.param_groups] == [(0.1, "unet"), (0.01, "textencoder")]
    for each in groups:
        each.parameters[0].grad = torch.ones(2)
    optimizer.step()
    assert all(each.parameters[0].max() < 1 for each in groups)


def test_unknown_optimizer() -> None:
    (problem,) = said(optimizer_type="AdamX")
    assert "got AdamX" in problem and "Known: AdamW. Did you mean AdamW?" in problem


def test_arguments() -> None:
    options = OptimizerOptions(optimizer_args=["weight_decay=0.5", "betas=0.8,0.9", "eps = 1e-3", "amsgrad=True"])
    assert not list(options.problems())
    (built,) = build(options, [group()]).param_groups
    assert (built["weight_decay"], built["betas"], built["eps"], built["amsgrad"]) == (0.5, (0.8, 0.9), 1e-3, True)


def test_the_first_equals_sign_splits() -> None:
    options = OptimizerOptions(optimizer_args=["text='a=b'"])
    assert options.arguments() == {"text": "a=b"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["weight_decay"], "should be key=value (got weight_decay)"),
        (["=3"], "should be key=value"),
        (["a=b c"], "Text needs quotes"),
        (["a=__import__('os')"], "cannot be read"),
        (["eps=1", "eps=2"], "eps is given twice"),
    ],
)
def test_arguments_that_cannot_be_read(arguments: list[str], words: str) -> None:
    (problem,) = said(optimizer_args=arguments)
    assert words in problem


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("weight_decoy=1", "AdamW has no argument weight_decoy .*It has betas, eps, weight_decay"),
        ("lr=1", "set with learning_rate"),
        ("betas=2,3", "Invalid beta"),
        ("eps='x'", "optimizer_args"),
    ],
)
def test_arguments_the_constructor_refuses(argument: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(OptimizerOptions(optimizer_args=[argument]), [group()])
