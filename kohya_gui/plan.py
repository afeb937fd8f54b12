"""One sentence before Start: how many pictures and steps, and how long that takes as far as anybody knows."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from kohya_gui.pictures import Seen
from kohya_gui.request import MODEL, Request, path_of, read_prompts, spec
from kohya_gui.settings import Settings
from trainer.errors import TrainerError
from trainer.events import Step, read_events
from trainer.run_folder import RunFolder, list_runs
from trainer.store import Values, read_config

SAME = ("resolution", "train_batch_size", "network_dim", "gradient_checkpointing", "mixed_precision")
MOST_RUNS = 20


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run; steps is None while something it needs is missing or wrong."""

    pictures: int
    repeats: int
    class_pictures: int
    batch: int
    steps_per_epoch: int
    epochs: int | None
    steps: int
    samples: int


def make_plan(request: Request, seen: Seen, classes: Seen) -> Plan | None:
    """The plan, None while a number is missing or wrong (its own field says so). Buckets can add a few steps."""
    batch = seen.batch_size or _number(request, "train_batch_size")
    repeats = spec("num_repeats").parse(request.num_repeats) if request.num_repeats.strip() else 1
    accumulation = _number(request, "gradient_accumulation_steps") or 1
    if not (seen.pictures and _is_count(batch) and _is_count(repeats) and _is_count(accumulation)):
        return None
    used = seen.repeated if seen.is_dataset else seen.pictures * repeats
    class_pictures = seen.class_pictures or classes.pictures
    total = used * (2 if class_pictures else 1)
    per_epoch = math.ceil(math.ceil(total / batch) / accumulation)
    epochs = _number(request, "max_train_epochs")
    if epochs is not None and not _is_count(epochs):
        return None
    steps = per_epoch * epochs if epochs else _number(request, "max_train_steps")
    if not _is_count(steps):
        return None
    samples = len(read_prompts(request.prompts)[0])
    return Plan(
        seen.pictures, 0 if seen.is_dataset else repeats, class_pictures, batch, per_epoch, epochs, steps, samples
    )


def sentence(plan: Plan, seconds_per_step: float | None) -> str:
    """The plan in words."""
    times = f" × {plan.repeats} repeats" if plan.repeats > 1 else ""
    classes = ", each with a class picture," if plan.class_pictures else ""
    many = f"in batches of {plan.batch}" if plan.batch > 1 else "one at a time"
    epochs = f" in {_count(plan.epochs, 'epoch')} of {_count(plan.steps_per_epoch, 'step')}" if plan.epochs else ""
    samples = f"{_count(plan.samples, 'sample picture')} each time" if plan.samples else "no sample pictures"
    if seconds_per_step is None:
        time = "How long it takes is unknown until the first steps are measured"
    else:
        time = f"About {_duration(plan.steps * seconds_per_step)}, going by the last run like this"
    return (
        f"{_count(plan.pictures, 'picture')}{times}{classes} {many}: "
        f"about {_count(plan.steps, 'step')}{epochs}, {samples}. {time}."
    )


def measured_seconds(request: Request, settings: Settings) -> float | None:
    """Median seconds of a step in the newest run of the same model, size, batch and rank; None when there is none."""
    for run in list_runs(settings.runs)[:MOST_RUNS]:
        try:
            values = read_config(run.config_file)
        except TrainerError:
            continue
        if _is_like(request, values, settings):
            seconds = _step_seconds(run)
            if seconds is not None:
                return seconds
    return None


def _is_like(request: Request, values: Values, settings: Settings) -> bool:
    model = values.get(MODEL)
    if model is None or Path(str(model.value)) != path_of(str(request.value(MODEL, "")), settings):
        return False
    return all(str(values[n].value) == str(request.value(n, spec(n).default)) for n in SAME if n in values)


def _step_seconds(run: RunFolder) -> float | None:
    lines, _ = read_events(run.events_file)
    seconds = [line.event.seconds for line in lines if isinstance(line.event, Step)]
    return statistics.median(seconds) if len(seconds) >= 3 else None


def _number(request: Request, name: str) -> int | None:
    value = request.value(name, spec(name).default)
    return value  # type: ignore[no-any-return]


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count(number: int | None, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
