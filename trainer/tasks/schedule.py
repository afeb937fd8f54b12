"""How long a run is, which pictures each step takes, and whether what it will save fits on the disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer import host
from trainer.errors import Problem
from trainer.hooks.saving import SavingOptions, plan_saves
from trainer.loop import LengthOptions

if TYPE_CHECKING:
    from trainer.data.dataset import TrainingSet
    from trainer.data.sampler import StepPlan
    from trainer.tasks.debug_dataset import DebugDatasetConfig
    from trainer.tasks.training_config import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """How long a run is. epoch_ends: epoch (from 1) -> the step it ends with."""

    total_steps: int
    steps_per_epoch: int
    epoch_ends: Mapping[int, int]

    @property
    def epochs(self) -> int:
        return len(self.epoch_ends)


def schedule_of(length: LengthOptions, plan_epoch: Callable[[int], Sequence[Any]]) -> Schedule:
    """The run's steps. Epochs may differ by a step where regularisation pictures take turns, so they are counted."""
    ends: dict[int, int] = {}
    steps = 0
    limit = math.inf if length.max_train_epochs else length.max_train_steps
    first = len(plan_epoch(0))
    while len(ends) < (length.max_train_epochs or math.inf) and steps < limit:
        steps += len(plan_epoch(len(ends)))
        ends[len(ends) + 1] = steps
    total = int(min(steps, limit))
    return Schedule(total, first, {epoch: min(end, total) for epoch, end in ends.items()})


def epoch_planner(
    training_set: TrainingSet, config: TrainingConfig | DebugDatasetConfig, *, processes: int
) -> Callable[[int], list[StepPlan]]:
    """plan_epoch(epoch) of this run; the last plans are kept, since schedule, loop and loader ask for the same."""
    from functools import lru_cache

    from trainer.data.sampler import plan_epoch

    seed = config.length.seed
    assert seed is not None
    accumulation = config.length.gradient_accumulation_steps
    starts = [0]

    @lru_cache(maxsize=4)
    def plan(epoch: int) -> list[StepPlan]:
        while len(starts) <= epoch:
            plan(len(starts) - 1)
        first = starts[epoch]
        steps = plan_epoch(
            training_set, seed=seed, epoch=epoch, accumulation=accumulation, processes=processes, first_step=first
        )
        if len(starts) == epoch + 1:
            starts.append(first + len(steps))
        return steps

    return plan


def disk_problem(
    saving: SavingOptions, schedule: Schedule, first_step: int, *, num_saved: int, num_trained: int, copies: int = 3
) -> Problem | None:
    """Whether all planned saves fit on the disk. num_saved: numbers in a saved model; num_trained: in what trains, of
    which a resume point holds so many copies in float32 (the weights, and two averages of the usual optimizers)."""
    plan = plan_saves(saving, schedule.epoch_ends, first_step=first_step, total_steps=schedule.total_steps)
    size = {"float": 4, "fp16": 2, "bf16": 2}[saving.save_precision or "float"] * num_saved
    models = min(len(plan.models), _kept(saving, schedule, saving.save_last_n_epochs, saving.save_last_n_steps))
    states = min(len(plan.states), _kept(saving, schedule, saving.last_epoch_states, saving.last_step_states))
    needed = models * size + max(1, states) * num_trained * 4 * copies
    free = host.free_bytes(saving.output_dir)
    if free > needed:
        return None
    said = f"{models} planned saves need about {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
    remedy = "Make room, choose another folder, save less often, or keep fewer with save_last_n_epochs"
    return Problem("output_dir", said, str(saving.output_dir), remedy=remedy)


def _kept(saving: SavingOptions, schedule: Schedule, last_n_epochs: int | None, last_n_steps: int | None) -> int:
    """How many saves lie on the disk at once: those that are kept, the one being written, and the last."""
    epochs, steps = saving.epochs_between(schedule.epochs), saving.save_every_n_steps
    of_epochs = schedule.epochs // epochs if epochs else 0
    of_steps = schedule.total_steps // steps if steps else 0
    if last_n_epochs:
        of_epochs = min(of_epochs, last_n_epochs + 1)
    if last_n_steps and steps:
        of_steps = min(of_steps, last_n_steps // steps + 2)
    return of_epochs + of_steps + 1
