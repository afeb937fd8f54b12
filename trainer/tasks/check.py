"""Look at a run's configuration without starting it: `python -m trainer check --config_file X --json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import config as run_config
from trainer.errors import EXIT_CODE, Problem, TrainerError
from trainer.store import read_config
from trainer.tasks.base import Command, all_problems, with_seed

SCANNED = 300
"""Data sets of at most this many pictures are scanned for the plan; larger ones when the run starts."""


def main(argv: Sequence[str]) -> int:
    """Print findings (and the plan, where nothing is wrong); exit code 2 when a finding stops the run."""
    parser = argparse.ArgumentParser(prog="python -m trainer check", description=COMMAND.about, allow_abbrev=False)
    parser.add_argument("--config_file", required=True, help="The run's TOML file.")
    parser.add_argument("--task", default="train_network", help="The task it is for.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of lines.")
    words = parser.parse_args(list(argv))
    findings, plan = look(words.task, Path(words.config_file))
    if words.json:
        sys.stdout.write(json.dumps({"findings": [p.as_dict() for p in findings], "plan": plan}) + "\n")
    else:
        lines = [f"{p.severity}: {p}" for p in findings] or [f"nothing is wrong; {plan}"]
        sys.stdout.write("\n".join(lines) + "\n")
    return EXIT_CODE if any(p.severity == "error" for p in findings) else 0


def look(task_name: str, config_file: Path) -> tuple[list[Problem], dict[str, Any] | None]:
    """(findings, plan) of a configuration file; the plan is None when something stops the run."""
    from trainer.tasks import tasks

    task = tasks()[task_name]
    try:
        values = read_config(config_file)
    except TrainerError as error:
        return list(error.problems), None
    try:
        config = run_config.build(task.config, values)
    except TrainerError:
        return all_problems(task.config, values, task.check), None
    findings = [*run_config.warnings_of(config), *task.check(config)]
    if any(p.severity == "error" for p in findings):
        return findings, None
    try:
        return findings, plan_of(config)
    except TrainerError as error:
        return [*findings, *error.problems], None


def plan_of(config: Any) -> dict[str, Any] | None:
    """Pictures, steps and epochs of a run, from the real data set; None where it is too large to scan here."""
    from trainer.data.config import read_dataset
    from trainer.data.dataset import TrainingSet
    from trainer.data.gather import count_pictures
    from trainer.tasks.schedule import epoch_planner, schedule_of

    dataset = read_dataset(config.data, sources=config.sources)
    if sum(count_pictures(s) for d in dataset.datasets for s in d.subsets) > SCANNED:
        return None
    training_set = TrainingSet.build(dataset)
    config = with_seed(config, "length")
    schedule = schedule_of(config.length, epoch_planner(training_set, config, processes=1))
    summary = training_set.summary()
    return {
        "pictures": summary.pictures,
        "uses": summary.uses,
        "reg_pictures": summary.reg_pictures,
        "reg_uses": summary.reg_uses,
        "captions_from_files": summary.captions_from_files,
        "captions_from_class_tokens": summary.captions_from_class_tokens,
        "captions_empty": summary.captions_empty,
        "validation_pictures": summary.validation_pictures,
        "steps_per_epoch": schedule.steps_per_epoch,
        "epochs": schedule.epochs,
        "total_steps": schedule.total_steps,
        "notes": list(summary.notes),
    }


COMMAND = Command("check", "Look at a run's configuration without starting it.", main)
