"""Schedules against the learning rates sd-scripts gave."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from trainer.errors import ConfigError
from trainer.optim.optimizers import OptimizerOptions, ParamGroup
from trainer.optim.optimizers import build as build_optimizer
from trainer.optim.schedules import (
    USED_BY,
    Name,
    ScheduleOptions,
    argument_problems,
    build,
    in_steps,
    problems_with,
)
from trainer.schema import specs_of, validate

ALL_CASES: list[dict[str, Any]] = json.loads(Path("tests/vectors/lr_curves.json").read_text())
CURVE_CASES = [case for case in ALL_CASES if "lr" in case and "adafactor" not in case.get("scheduler", "")]
NAMES = [name for name in get_args(Name) if name != "adafactor"]  # AdaFactor's own has tests below


def options(case: dict[str, Any]) -> ScheduleOptions:
    """A recorded command line as options."""
    if "scheduler_type" in case:
        return ScheduleOptions(lr_scheduler_type=case["scheduler_type"], lr_scheduler_args=case["args"])
    flags = dict(zip(case["args"][::2], case["args"][1::2], strict=True))
    values: dict[str, Any] = {"lr_scheduler": case["scheduler"]}
    for flag, text in flags.items():
        name = flag.removeprefix("--")
        values[name] = [text] if name == "lr_scheduler_args" else float(text) if "." in text else int(text)
    if "lr_scheduler_power" in values:
        values["lr_scheduler_power"] = float(values["lr_scheduler_power"])
    return ScheduleOptions(**values)


def curve(chosen: ScheduleOptions, total: int, steps: int | None = None) -> list[float]:
    """The rates of the first steps, of a base rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = build(chosen, optimizer, total)
    found = []
    for _ in range(total if steps is None else steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def test_there_are_cases() -> None:
    assert {case["scheduler"] for case in CURVE_CASES if "scheduler" in case} >= set(NAMES) - {
        "constant",  # recorded with a warm-up only, which it refuses, as we do
        "cosine_with_min_lr",  # recorded without its ratio only
    }
    assert len(CURVE_CASES) >= 30


@pytest.mark.parametrize("case", CURVE_CASES, ids=lambda case: f"{case.get('scheduler')} {' '.join(case['args'])}")
def test_curves(case: dict[str, Any]) -> None:
    assert curve(options(case), len(case["lr"])) == pytest.approx(case["lr"], abs=1e-9)


def test_cosine_with_min_lr_is_the_closed_form() -> None:
    chosen = ScheduleOptions(lr_scheduler="cosine_with_min_lr", lr_scheduler_min_lr_ratio=0.1)
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 50)) for step in range(50)]
    assert curve(chosen, 50) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_each_group_keeps_its_share(name: Name) -> None:
    more: dict[str, Any] = {"lr_scheduler_min_lr_ratio": 0.1} if name == "cosine_with_min_lr" else {}
    if name == "piecewise_constant":
        more["lr_scheduler_args"] = ['step_rules="1:4,0.1"']
    chosen = ScheduleOptions(lr_scheduler=name, lr_warmup_steps=0 if name == "constant" else 2, **more)
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1.0, 0.5)])
    scheduler = build(chosen, optimizer, 10)
    for _ in range(10):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 2)
        optimizer.step()
        scheduler.step()


def test_lengths() -> None:
    assert in_steps(0.25, 10) == 2
    assert in_steps(3, 10) == 3
    assert in_steps(0, 10) == 0
    assert in_steps(2.0, 10) == 2


def test_a_run_shorter_than_its_warmup_and_beyond_its_end() -> None:
    assert curve(ScheduleOptions(lr_scheduler="cosine", lr_warmup_steps=20), 10)[5] == 0.25
    assert curve(ScheduleOptions(lr_scheduler="linear"), 10, 12)[11] == 0.0


def test_a_schedule_goes_on_where_it_was_saved() -> None:
    chosen = ScheduleOptions(lr_scheduler="warmup_stable_decay", lr_warmup_steps=3, lr_decay_steps=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = build(chosen, optimizer, 20)
    for _ in range(12):
        optimizer.step()
        scheduler.step()
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    again = build(chosen, other, 20)
    other.load_state_dict(optimizer.state_dict())
    again.load_state_dict(scheduler.state_dict())
    for _ in range(8):
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for one in (optimizer, scheduler, other, again):
            one.step()


def test_problems() -> None:
    (problem,) = ScheduleOptions(lr_warmup_steps=10).problems()
    assert "constant_with_warmup" in str(problem)
    (problem,) = ScheduleOptions(lr_scheduler="cosine", lr_warmup_steps=1.5).problems()
    assert "whole number of steps" in str(problem)
    assert not list(ScheduleOptions(lr_scheduler="cosine", lr_warmup_steps=0.1).problems())
    _, (problem,) = validate(ScheduleOptions, {"lr_warmup_steps": "10%"})
    assert problem.option == "lr_warmup_steps"
    (problem,) = ScheduleOptions(lr_scheduler="cosine_with_min_lr").problems()
    assert problem.option == "lr_scheduler_min_lr_ratio"
    (problem,) = ScheduleOptions(lr_scheduler="piecewise_constant").problems()
    assert "step_rules" in str(problem)


def test_what_the_schedule_does_not_use_is_said() -> None:
    (problem,) = ScheduleOptions(lr_scheduler="cosine", lr_scheduler_power=2.0).problems()
    assert (problem.option, problem.severity) == ("lr_scheduler_power", "warning")
    assert set(USED_BY) < {spec.name for spec in specs_of(ScheduleOptions)}


@pytest.mark.parametrize("warmup_init", [True, False])
def test_adafactors_own_schedule_is_sd_scripts(*, warmup_init: bool) -> None:
    """The rate before the first step, then what AdaFactor takes; it goes on where it was saved."""
    (case,) = (c for c in ALL_CASES if c.get("scheduler", "").startswith("adafactor") and "lr" in c)
    chosen = validated(lr_scheduler=case["scheduler"])
    assert (chosen.lr_scheduler, chosen.lr_scheduler_args) == ("adafactor", ["initial_lr=1e-3"])
    options = OptimizerOptions(optimizer_type="AdaFactor", optimizer_args=[f"warmup_init={warmup_init}"])

    def begin() -> tuple[torch.nn.Parameter, Any, Any]:
        weight = torch.nn.Parameter(torch.zeros(4, 4))
        optimizer = build_optimizer(options, [ParamGroup("unet", "unet", (weight,), 1.0)])
        return weight, optimizer, build(chosen, optimizer, 100)

    def rates(weight: torch.nn.Parameter, optimizer: Any, scheduler: Any, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(float(optimizer.param_groups[0]["lr"]))
            weight.grad = torch.ones(4, 4)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return found

    weight, optimizer, scheduler = begin()
    found = rates(weight, optimizer, scheduler, 6)
    expected = case["lr"][:6] if warmup_init else [1e-3, *[1e-2 * 1e-3] * 5]  # 1e-3: the least a weight counts for
    assert found == pytest.approx(expected, rel=1e-4)

    again, other, its_scheduler = begin()
    with torch.no_grad():
        again.copy_(weight)
    other.load_state_dict(optimizer.state_dict())
    its_scheduler.load_state_dict(scheduler.state_dict())
    assert rates(again, other, its_scheduler, 5) == rates(weight, optimizer, scheduler, 5)
    assert torch.equal(weight, again)


def test_the_first_rate_in_the_log_is_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = build_optimizer(
        OptimizerOptions(optimizer_type="AdaFactor"), [ParamGroup("unet", "unet", (weight,), 0.5)]
    )
    build(ScheduleOptions(), optimizer, 10, initial_rate=0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


def validated(**values: Any) -> ScheduleOptions:
    """As a configuration is read."""
    found, problems = validate(ScheduleOptions, values)
    assert isinstance(found, ScheduleOptions) and not problems
    return found


def test_other_names_of_adafactors_schedule_and_of_the_arguments() -> None:
    assert validated(lr_scheduler="adafactor_scheduler").lr_scheduler == "adafactor"
    _, (problem,) = validate(ScheduleOptions, {"lr_scheduler": "adafactors"})
    assert "adafactor" in problem.message
    (spec,) = (spec for spec in specs_of(ScheduleOptions) if spec.name == "lr_scheduler_args")
    assert spec.aliases == ("scheduler_args",)
    (problem,) = ScheduleOptions(lr_scheduler="adafactor", lr_warmup_steps=5).problems()
    assert "warmup_init" in str(problem)


RELATIVE, OWN = (
    {"optimizer_type": "AdaFactor"},
    {"optimizer_type": "AdaFactor", "optimizer_args": ["relative_step=False"]},
)
COSINE, TORCHS = {"lr_scheduler": "cosine"}, {"lr_scheduler_type": "CosineAnnealingLR"}


@pytest.mark.parametrize(
    ("optimizer", "schedule", "found"),
    [
        (RELATIVE, {}, []),
        (RELATIVE, {"lr_scheduler": "adafactor"}, []),
        (RELATIVE, COSINE, [("lr_scheduler", "error")]),
        (RELATIVE, TORCHS, [("lr_scheduler_type", "error")]),
        (OWN, COSINE, []),
        (OWN, {"lr_scheduler": "adafactor"}, [("lr_scheduler", "error")]),
        ({}, {"lr_scheduler": "adafactor"}, [("lr_scheduler", "error")]),
        ({"optimizer_type": "AdamWScheduleFree"}, {}, []),
        ({"optimizer_type": "AdamWScheduleFree"}, COSINE, [("lr_scheduler", "warning")]),
        ({"optimizer_type": "Prodigy"}, COSINE, []),
        ({"optimizer_type": "Prodigy"}, {**TORCHS, "lr_scheduler_args": ["T_max=9"]}, []),
        (
            {"optimizer_type": "Prodigy"},
            {**TORCHS, "lr_scheduler_args": ["T_max=9", "eta_min=0.1"]},
            [("lr_scheduler_type", "error")],
        ),
    ],
)
def test_schedules_and_optimizers_that_do_not_go_together(
    optimizer: dict[str, Any], schedule: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    said = problems_with(ScheduleOptions(**schedule), OptimizerOptions(**optimizer))
    assert [(problem.option, problem.severity) for problem in said] == found


def test_warmup_counts_optimizer_steps() -> None:
    for warmup in (4, 0.1):
        chosen = ScheduleOptions(lr_scheduler="constant_with_warmup", lr_warmup_steps=warmup)
        assert curve(chosen, 40, 6) == [0, 0.25, 0.5, 0.75, 1, 1]


def test_schedules_of_torch_are_checked() -> None:
    (problem,) = argument_problems(ScheduleOptions(lr_scheduler_type="CosineAnealingLR", lr_scheduler_args=["T_max=9"]))
    assert "Did you mean CosineAnnealingLR?" in str(problem)
    (problem,) = argument_problems(ScheduleOptions(lr_scheduler_type="CosineAnnealingLR", lr_scheduler_args=["T0=9"]))
    assert "T_max" in str(problem)
    with pytest.raises(ConfigError, match="T_max"):
        curve(ScheduleOptions(lr_scheduler_type="CosineAnnealingLR"), 10)
