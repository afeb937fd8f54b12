"""When a run will end, from what its events say: steps by themselves, pauses by themselves."""

from __future__ import annotations

import pytest

from kohya_gui.remaining import Clock, Schedule
from trainer.events import Start, Step

START = Start("train_network", "house", 100, 10, 10, 0, 12, "cpu")


def step(number: int, seconds: float = 0.5) -> Step:
    return Step(number, 1, 0.1, 0.1, {}, 0.1, seconds, 512.0)


def clock_of(last: int, *, seconds: float = 0.5) -> Clock:
    """A clock after so many even steps, the last of them at `last * seconds`."""
    clock = Clock()
    for number in range(1, last + 1):
        clock.take_step(step(number, seconds), number * seconds)
    return clock


def end(clock: Clock, schedule: Schedule, last_sign: float = 0.0) -> float:
    found = clock.end_time(START, schedule, last_sign)
    assert found is not None
    return found


def test_without_a_step_nothing_is_known() -> None:
    assert Clock().end_time(START, Schedule(), 0.0) is None


def test_what_is_done_between_steps_counts_as_theirs() -> None:
    clock = Clock()
    for number in range(1, 11):
        clock.take_step(step(number, 0.5), float(number))
    # the first step knows only itself, the others came a second after one another
    assert clock.step_seconds() == pytest.approx((0.5 + 9 * 1) / 10)


def test_sample_now_does_not_make_the_steps_slower() -> None:
    clock = clock_of(20)
    before = end(clock, Schedule())
    clock.take_phase("sampling", 10.0)
    clock.take_phase("sampling", 25.0)
    clock.take_phase("training", 40.0)
    clock.take_step(step(21), 40.5)
    assert clock.step_seconds() == pytest.approx(0.5)
    assert end(clock, Schedule()) == pytest.approx(before + 30)


def test_while_it_pauses_the_end_moves_with_the_clock_only() -> None:
    clock = clock_of(20)
    clock.take_phase("sampling", 10.0)
    assert end(clock, Schedule(), last_sign=16.0) == pytest.approx(16 + 80 * 0.5)
    clock.take_phase("training", 30.0)
    clock.take_step(step(21), 30.5)
    clock.take_phase("sampling", 30.5)
    # the pause before took 20 seconds, and so will this one
    assert end(clock, Schedule(), last_sign=31.0) == pytest.approx(30.5 + 20 + 79 * 0.5)


def test_pauses_to_come_are_added_once_one_was_seen() -> None:
    schedule = Schedule(sample_every_n_epochs=2, save_every_n_steps=50)
    clock = clock_of(20)
    assert end(clock, schedule) == pytest.approx(10 + 80 * 0.5)
    clock.take_phase("sampling", 10.0)
    clock.take_phase("saving", 16.0)
    clock.take_phase("training", 18.0)
    clock.take_step(step(21), 18.5)
    # pictures at 40, 60, 80 and 100, saves at 50 and at the end
    assert end(clock, schedule) == pytest.approx(18.5 + 79 * 0.5 + 4 * 6 + 2 * 2)


def test_a_slow_first_step_says_nothing_of_the_others() -> None:
    clock = Clock()
    for number in range(1, 6):
        clock.take_step(step(number, 60.0 if number == 1 else 0.5), 60 + number * 0.5)
    assert clock.step_seconds() == pytest.approx(0.5)


def test_the_schedule_is_the_trainers() -> None:
    both = Schedule.of({"sample_every_n_steps": 3, "sample_every_n_epochs": 5, "seed": 1, "save_every_n_epochs": "x"})
    assert both == Schedule(sample_every_n_steps=3, sample_every_n_epochs=5)
    assert both.to_come("sampling", step=0, start=START) == 2  # epochs win: at 50 and 100
    assert both.to_come("sampling", step=50, start=START) == 1
    assert both.to_come("saving", step=99, start=START) == 1
    assert Schedule().to_come("sampling", step=0, start=START) == 0
    assert both.to_come("sampling", step=100, start=START) == both.to_come("saving", step=100, start=START) == 0
