"""Schedules against the learning rates sd-scripts gave."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from trainer.errors import ConfigError
from trainer.optim.schedules import USED_BY, Name, ScheduleOptions, argument_problems, build, in_steps
from trainer.schema import specs_of, validate

ALL_CASES: list[dict[str, Any]] = json.loads(Path("tests/vectors/lr_curves.json").read_text())
CURVE_CASES = [case for case in ALL_CASES if "lr" in case and "adafactor" not in case.get("scheduler", "")]
NAMES = get_args(Name)


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


def test_schedules_of_torch_are_checked() -> None:
    (problem,) = argument_problems(ScheduleOptions(lr_scheduler_type="CosineAnealingLR", lr_scheduler_args=["T_max=9"]))
    assert "Did you mean CosineAnnealingLR?" in str(problem)
    (problem,) = argument_problems(ScheduleOptions(lr_scheduler_type="CosineAnnealingLR", lr_scheduler_args=["T0=9"]))
    assert "T_max" in str(problem)
    with pytest.raises(ConfigError, match="T_max"):
        curve(ScheduleOptions(lr_scheduler_type="CosineAnnealingLR"), 10)
