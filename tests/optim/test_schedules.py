"""Schedules against the learning rates sd-scripts gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.optim.schedules import CURVES, ScheduleOptions, build, factor, warmup_steps
from trainer.schema import validate

CURVE_CASES = [
    case
    for case in json.loads(Path("tests/vectors/lr_curves.json").read_text())
    if case.get("scheduler") in CURVES and "lr" in case
]


def options(case: dict[str, Any]) -> ScheduleOptions:
    arguments = dict(zip(case["args"][::2], case["args"][1::2], strict=True))
    text = arguments.get("--lr_warmup_steps", "0")
    return ScheduleOptions(lr_scheduler=case["scheduler"], lr_warmup_steps=float(text) if "." in text else int(text))


def test_there_are_cases() -> None:
    assert {case["scheduler"] for case in CURVE_CASES} == set(CURVES) - {"constant"} | (
        {"constant"} & {case["scheduler"] for case in CURVE_CASES}
    )
    assert len(CURVE_CASES) >= 10


@pytest.mark.parametrize("case", CURVE_CASES, ids=lambda case: f"{case['scheduler']} {' '.join(case['args'])}")
def test_curves(case: dict[str, Any]) -> None:
    total = len(case["lr"])
    ours = [factor(options(case), step, total) for step in range(total)]
    assert ours == pytest.approx(case["lr"], abs=1e-9)


@pytest.mark.parametrize("name", CURVES)
def test_scheduler_steps_with_the_optimizer(name: str) -> None:
    chosen = ScheduleOptions(lr_scheduler=name, lr_warmup_steps=0 if name == "constant" else 2)
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1.0, 0.5)])
    scheduler = build(chosen, optimizer, 10)
    for step in range(10):
        expected = factor(chosen, step, 10)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([expected, 0.5 * expected])
        optimizer.step()
        scheduler.step()


def test_warmup() -> None:
    assert warmup_steps(ScheduleOptions(lr_warmup_steps=0.25), 10) == 2
    assert warmup_steps(ScheduleOptions(lr_warmup_steps=3), 10) == 3
    assert warmup_steps(ScheduleOptions(lr_warmup_steps=0), 10) == 0
    assert warmup_steps(ScheduleOptions(lr_warmup_steps=2.0), 10) == 2


def test_a_run_shorter_than_its_warmup_and_beyond_its_end() -> None:
    chosen = ScheduleOptions(lr_scheduler="cosine", lr_warmup_steps=20)
    assert factor(chosen, 5, 10) == 0.25
    assert factor(chosen, 30, 10) == 0.0
    assert factor(ScheduleOptions(lr_scheduler="linear"), 11, 10) == 0.0
    assert factor(ScheduleOptions(lr_scheduler="cosine"), 11, 10) <= 1.0


def test_problems() -> None:
    (problem,) = ScheduleOptions(lr_warmup_steps=10).problems()
    assert "constant_with_warmup" in str(problem)
    (problem,) = ScheduleOptions(lr_scheduler="cosine", lr_warmup_steps=1.5).problems()
    assert "whole number of steps" in str(problem)
    assert not list(ScheduleOptions(lr_scheduler="cosine", lr_warmup_steps=0.1).problems())
    _, (problem,) = validate(ScheduleOptions, {"lr_warmup_steps": "10%"})
    assert problem.option == "lr_warmup_steps"
