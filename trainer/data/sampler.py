"""Lay out an epoch as whole optimizer steps of micro-batches; pure, so that plans do not depend on who runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer.maths.rng import python_rng

if TYPE_CHECKING:
    from trainer.data.dataset import TrainingSet


@dataclass(frozen=True)
class Slot:
    """One use of a sample: `slot` is its position in the epoch's shuffled list, `sample` its index in the set."""

    slot: int
    sample: int


@dataclass(frozen=True)
class MicroBatch:
    """Pictures of one bucket that go through the model together.

    weight: 1.0, or 0.0 for the stand-in of a process that has none in this round. step: the optimizer step it belongs
    to, counted from 0 over the whole run, for what is scheduled by it.
    """

    epoch: int
    slots: tuple[Slot, ...]
    bucket: tuple[int, int]
    weight: float = 1.0
    step: int = 0


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: `micro_batches[rank]` are those of one process, equally many for each.

    The loss of a step is the sum over its micro-batches of weight * loss, divided by num_present.
    """

    micro_batches: tuple[tuple[MicroBatch, ...], ...]
    num_present: int


def shuffle_into_batches(
    groups: Sequence[tuple[Sequence[int], int]], *, seed: int, epoch: int
) -> list[tuple[Slot, ...]]:
    """Each group is (samples of one bucket, batch size): shuffled, cut into batches (the last may be short), and all
    batches shuffled. Slots are numbered along the result."""
    rng = python_rng(seed, "order", epoch)
    batches: list[list[int]] = []
    for members, batch_size in groups:
        shuffled = list(members)
        rng.shuffle(shuffled)
        batches += [shuffled[i : i + batch_size] for i in range(0, len(shuffled), batch_size)]
    rng.shuffle(batches)
    numbered: list[tuple[Slot, ...]] = []
    slot = 0
    for batch in batches:
        numbered.append(tuple(Slot(slot + i, sample) for i, sample in enumerate(batch)))
        slot += len(batch)
    return numbered


def plan_epoch(
    training_set: TrainingSet, *, seed: int, epoch: int, accumulation: int, processes: int, first_step: int = 0
) -> list[StepPlan]:
    """The steps of one epoch. Two processes do in one round what one process does in two.

    first_step: how many optimizer steps the epochs before it have.
    """
    assert accumulation >= 1 and processes >= 1
    size = accumulation * processes
    batches = [
        MicroBatch(epoch, slots, training_set.samples[slots[0].sample].geometry.bucket, step=first_step + index // size)
        for index, slots in enumerate(training_set.epoch_slots(seed, epoch))
    ]
    return [_plan_step(batches[i : i + size], processes) for i in range(0, len(batches), size)]


def _plan_step(present: list[MicroBatch], processes: int) -> StepPlan:
    """Deal the micro-batches out round by round; a process without one in the last round repeats one at weight 0."""
    missing = -len(present) % processes
    dealt = present + [replace(present[0], weight=0.0)] * missing
    return StepPlan(tuple(tuple(dealt[rank::processes]) for rank in range(processes)), num_present=len(present))
