"""Optimizers: options, rates per component, arguments checked against the constructor."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch.optim import Optimizer

from trainer.errors import ConfigError
from trainer.methods.adapter import AdapterOptimizerOptions
from trainer.optim.optimizers import (
    KNOWN,
    OptimizerOptions,
    ParamGroup,
    argument_problems,
    build,
    described,
    find,
    known_of,
)


def group(name: str = "unet", rate: float = 0.1) -> ParamGroup:
    weight = torch.nn.Parameter(torch.ones(2))
    return ParamGroup(name=name, component="denoiser", parameters=(weight,), learning_rate=rate)


def said(**values: object) -> list[str]:
    return [str(problem) for problem in AdapterOptimizerOptions(**values).problems()]


def test_defaults_are_kohyas() -> None:
    options = OptimizerOptions()
    assert not said()
    assert (options.optimizer_type, options.learning_rate, options.max_grad_norm) == ("AdamW", 2e-6, 1.0)


def test_rates() -> None:
    assert OptimizerOptions(learning_rate=1e-4).rate("denoiser") == 1e-4
    options = AdapterOptimizerOptions(learning_rate=1e-4, unet_lr=0.0)
    assert (options.rate("denoiser"), options.rate("text_encoder")) == (0.0, 1e-4)
    options = AdapterOptimizerOptions(learning_rate=1e-4, text_encoder_lr=5e-5)
    assert (options.rate("denoiser"), options.rate("text_encoder_2")) == (1e-4, 5e-5)


FROM_MODULES = (
    *("bitsandbytes.optim.Adam8bit", "pytorch_optimizer.AdEMAMix"),
    *("transformers.optimization.Adafactor", "torch.optim.adamw.AdamW"),
)


@pytest.mark.parametrize("name", [*KNOWN, "RMSprop", *FROM_MODULES])
def test_every_optimizer_learns_and_goes_on_where_it_was_saved(name: str) -> None:
    """A least-squares problem gets better, and all steps are the same as some, saved and loaded, and the rest."""
    pytest.importorskip((known_of(name) or KNOWN["AdamW"]).module.partition(".")[0])
    typed = name if "." in name else name.upper()
    # AdaFactor's steps are in proportion to weights, which begin at 0 here
    options = OptimizerOptions(
        optimizer_type=typed, optimizer_args=["scale_parameter=False"] * name.lower().endswith("adafactor")
    )
    rate = {"finds rate": 1.0, "averages": 0.05}.get(options.trait, 0.01)
    num_steps = 60 if options.trait == "finds rate" else 21

    def problem() -> tuple[list[ParamGroup], Optimizer]:
        weight = torch.nn.Parameter(torch.zeros(64, 80))  # 8 bits from 4096 numbers on
        bias = torch.nn.Parameter(torch.zeros(80))
        groups = [ParamGroup("unet", "unet", (weight,), rate), ParamGroup("textencoder", "te", (bias,), rate / 2)]
        return groups, build(options, groups)

    def steps(groups: list[ParamGroup], optimizer: Optimizer, numbers: range) -> float:
        loss = 0.0
        for number in numbers:
            x = torch.randn(32, 64, generator=torch.Generator().manual_seed(number % 3))
            (weight,), (bias,) = (group.parameters for group in groups)
            error = (x @ (weight - 0.1) + bias - 1).square().mean()
            error.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = float(error.detach())
        return loss

    groups, optimizer = problem()
    rates = (None, None) if options.finds_steps else (rate, rate / 2)
    assert [(g["lr"], g["name"]) for g in optimizer.param_groups] == [(rates[0], "unet"), (rates[1], "textencoder")]
    first = steps(groups, optimizer, range(3))
    weights, state = [g.parameters[0].detach().clone() for g in groups], copy.deepcopy(optimizer.state_dict())
    last = steps(groups, optimizer, range(3, num_steps))
    slow = ("DAdaptAdaGrad", "SGDScheduleFree")
    assert last < (0.9995 if name in slow else 0.99) * first

    again, other = problem()
    with torch.no_grad():
        for group, weight in zip(again, weights, strict=True):
            group.parameters[0].copy_(weight)
    other.load_state_dict(state)
    steps(again, other, range(3, num_steps))
    for one, two in zip(groups, again, strict=True):
        assert torch.equal(one.parameters[0], two.parameters[0])


def test_arguments_we_add_give_way_to_written_ones() -> None:
    (built,) = build(OptimizerOptions(optimizer_type="SGDNesterov"), [group()]).param_groups
    assert (built["nesterov"], built["momentum"]) == (True, 0.9)
    (built,) = build(
        OptimizerOptions(optimizer_type="sgdnesterov", optimizer_args=["momentum=0.5"]), [group()]
    ).param_groups
    assert (built["nesterov"], built["momentum"]) == (True, 0.5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AdamX", "got AdamX.*Did you mean Adam"),
        ("LBFGS", "is not an optimizer"),
        ("os.path.Join", "anybody's code.*Name a class of torch.optim"),
        ("torch.optimizers.Adam", "anybody's code"),
        ("prodigyplus.ProdigyPlusScheduleFree", "anybody's code"),
        ("pytorch_optimizer.Nothing", "pytorch_optimizer has no Nothing"),
        ("pytorch_optimizer.load_optimizer", "is not an optimizer"),
        ("torch.optim.LBFGS", "more of a step"),
        ("pytorch_optimizer.SPlus", "other weights for training"),
    ],
)
def test_unknown_optimizers(name: str, words: str) -> None:
    (problem,) = argument_problems(OptimizerOptions(optimizer_type=name))
    assert re.search(words, str(problem))


def test_what_sets_optimizers_apart_is_known_of_every_class() -> None:
    """The table against the classes themselves, so that a new release of the library is noticed."""
    classes = {n: c for n, c in vars(pytorch_optimizer).items() if isinstance(c, type) and issubclass(c, Optimizer)}
    finds = {name for name, found in classes.items() if "d0" in inspect.signature(found).parameters}
    averages = {name for name, found in classes.items() if hasattr(found, "eval")}
    traits = {name: OptimizerOptions(optimizer_type=f"pytorch_optimizer.{name}").trait for name in classes}
    assert {name for name, trait in traits.items() if trait == "finds rate"} == finds
    assert {name for name, trait in traits.items() if trait == "averages"} == averages - {
        "SPlus",
        "ScheduleFreeWrapper",
    }
    assert OptimizerOptions(optimizer_type="torch.optim.Adafactor").trait == ""


def test_small_factors_on_a_rate_that_is_found_are_said() -> None:
    problems = list(AdapterOptimizerOptions(optimizer_type="prodigy", unet_lr=0.05, text_encoder_lr=0.0).problems())
    assert [(p.option, p.severity) for p in problems] == [("learning_rate", "warning"), ("unet_lr", "warning")]
    assert not said(optimizer_type="DAdaptation", learning_rate=1.0, text_encoder_lr=0.5)
    assert not said(optimizer_type="AdamW", learning_rate=1e-4)


def test_arguments_as_kohyas_tools_write_them() -> None:
    typed = ["decouple=True", "use_bias_correction=True", "weight_decay=0.01", "d_coef=2", "safeguard_warmup=True"]
    (built,) = build(OptimizerOptions(optimizer_type="Prodigy", optimizer_args=typed), [group()]).param_groups
    assert (built["weight_decouple"], built["bias_correction"], built["d_coef"]) == (True, True, 2)
    (built,) = build(OptimizerOptions(optimizer_type="DAdaptLion"), [group()]).param_groups
    assert (built["betas"], built["weight_decouple"]) == ((0.9, 0.99), True)


def test_adafactor_finds_its_steps_unless_told_not_to() -> None:
    options = OptimizerOptions(optimizer_type="adafactor")
    assert options.finds_steps and not list(options.problems())
    assert described(options) == "transformers.optimization.Adafactor(relative_step=True)"
    own = OptimizerOptions(optimizer_type="adafactor", optimizer_args=["relative_step=False"], max_grad_norm=0.0)
    assert not own.finds_steps and not list(own.problems())
    (built,) = build(own, [group(rate=0.25)]).param_groups
    assert (built["lr"], built["relative_step"]) == (0.25, False)


@pytest.mark.parametrize(
    ("values", "option", "severity"),
    [
        ({"unet_lr": 1e-4}, "unet_lr", "warning"),
        ({"learning_rate": 1e-4, "text_encoder_lr": 0.0}, "learning_rate", "warning"),
        ({"optimizer_args": ["relative_step=False"]}, "max_grad_norm", "warning"),
        (
            {"optimizer_args": ["relative_step=False", "warmup_init=True"], "max_grad_norm": 0.0},
            "optimizer_args",
            "error",
        ),
    ],
)
def test_what_adafactor_does_not_use_is_said(values: dict[str, Any], option: str, severity: str) -> None:
    (problem,) = AdapterOptimizerOptions(optimizer_type="AdaFactor", **values).problems()
    assert (problem.option, problem.severity) == (option, severity)


def test_classes_in_modules_of_their_own_are_found() -> None:
    import bitsandbytes

    assert find(OptimizerOptions(optimizer_type="bitsandbytes.optim.lamb.LAMB")).find() is bitsandbytes.optim.LAMB


def test_what_is_written_into_files() -> None:
    options = OptimizerOptions(optimizer_type="sgdnesterov", optimizer_args=["weight_decay=0.1"])
    assert described(options) == "torch.optim.sgd.SGD(nesterov=True,momentum=0.9,weight_decay=0.1)"


def test_arguments() -> None:
    options = OptimizerOptions(optimizer_args=["weight_decay=0.5", "betas=0.8,0.9", "eps = 1e-3", "amsgrad=True"])
    assert not list(options.problems())
    (built,) = build(options, [group()]).param_groups
    assert (built["weight_decay"], built["betas"], built["eps"], built["amsgrad"]) == (0.5, (0.8, 0.9), 1e-3, True)


def test_the_missions_own_arguments_parse() -> None:
    (built,) = build(OptimizerOptions(optimizer_args=["weight_decay=0.01", "betas=.9,.999"]), [group()]).param_groups
    assert (built["weight_decay"], built["betas"]) == (0.01, (0.9, 0.999))


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


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, "AdamW"),
        ({"use_8bit_adam": True}, "AdamW8bit"),
        ({"use_lion_optimizer": True}, "Lion"),
        ({"use_8bit_adam": True, "optimizer_type": "adamw8bit"}, "AdamW8bit"),
        ({"use_8bit_adam": True, "optimizer_type": "AdamW"}, "AdamW8bit"),  # a written-out default
    ],
)
def test_older_flags(values: dict[str, Any], kind: str) -> None:
    options = OptimizerOptions(**values)
    assert options.kind == kind and find(options) is KNOWN[kind] and not list(options.problems())


@pytest.mark.parametrize(
    "values",
    [
        {"use_8bit_adam": True, "use_lion_optimizer": True},
        {"use_lion_optimizer": True, "optimizer_type": "CAME"},
    ],
)
def test_two_optimizers_are_one_too_many(values: dict[str, Any]) -> None:
    (problem,) = OptimizerOptions(**values).problems()
    assert problem.option == "optimizer_type" and "several" in problem.message
