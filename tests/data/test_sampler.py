"""Whole optimizer steps: every micro-batch once, whatever the processes and the accumulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.data.conftest import MakePicture
from trainer.data.dataset import TrainingSet
from trainer.data.sampler import MicroBatch, StepPlan, plan_epoch

Build = Callable[..., TrainingSet]


@pytest.fixture
def training_set(picture: MakePicture, build: Build) -> TrainingSet:
    for index in range(7):
        picture(f"train/2_a/{index}.png", (64, 64 if index < 4 else 128))
    return build(train_batch_size=2, enable_bucket=True, min_bucket_reso=32, bucket_reso_steps=16)


def present(step: StepPlan) -> list[MicroBatch]:
    """The micro-batches that count, in the order of one process."""
    rounds = zip(*step.micro_batches, strict=True)
    return [micro for together in rounds for micro in together if micro.weight]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 100])
def test_every_micro_batch_counts_once(training_set: TrainingSet, processes: int, accumulation: int) -> None:
    plan = plan_epoch(training_set, seed=5, epoch=1, accumulation=accumulation, processes=processes)
    batches = training_set.epoch_slots(5, 1)
    assert [micro.slots for step in plan for micro in present(step)] == batches
    assert len(plan) == -(-len(batches) // (accumulation * processes))
    for step in plan:
        assert len(step.micro_batches) == processes
        assert len({len(of_rank) for of_rank in step.micro_batches}) == 1
        assert step.num_present == len(present(step))
        assert all(len(of_rank) <= accumulation for of_rank in step.micro_batches)


def test_two_processes_equal_twice_the_accumulation(training_set: TrainingSet) -> None:
    two = plan_epoch(training_set, seed=5, epoch=0, accumulation=1, processes=2)
    one = plan_epoch(training_set, seed=5, epoch=0, accumulation=2, processes=1)
    assert [present(step) for step in two] == [present(step) for step in one]
    assert [step.num_present for step in two] == [step.num_present for step in one]


def test_a_lone_process_has_no_stand_ins(training_set: TrainingSet) -> None:
    for step in plan_epoch(training_set, seed=5, epoch=0, accumulation=5, processes=1):
        assert all(micro.weight == 1.0 for micro in step.micro_batches[0])


def test_micro_batches_carry_their_optimizer_step(training_set: TrainingSet) -> None:
    plan = plan_epoch(training_set, seed=5, epoch=2, accumulation=2, processes=2, first_step=30)
    for index, step in enumerate(plan):
        assert {micro.step for of_rank in step.micro_batches for micro in of_rank} == {30 + index}


def test_captions_that_follow_the_step_do_not_depend_on_the_processes(picture: MakePicture, build: Build) -> None:
    for index in range(6):
        picture(f"train/3_a/{index}.png", caption="k,a,b,c,d,e,f")
    training_set = build(
        shuffle_caption=True, keep_tokens=1, token_warmup_step=0.5, caption_dropout_rate=0.1, train_batch_size=2
    )
    training_set = replace(training_set, total_steps=10)

    def captions(accumulation: int, processes: int) -> list[str]:
        drawn: list[str] = []
        for epoch in range(2):
            steps = plan_epoch(
                training_set, seed=5, epoch=epoch, accumulation=accumulation, processes=processes, first_step=5 * epoch
            )
            for micro in (micro for step in steps for micro in present(step)):
                drawn += [training_set.view(s, seed=5, epoch=epoch, step=micro.step).caption for s in micro.slots]
        return drawn

    assert captions(2, 1) == captions(1, 2)
    lengths = [caption.count(",") + 1 for caption in captions(2, 1) if caption]
    assert max(lengths[:3]) == 2 and min(lengths[-6:]) == 7
