"""When a run will end: by the time of its steps alone, and beside it the samples and saves that are still to come."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trainer.events import Start, Step

Pause = Literal["sampling", "saving"]
PAUSES: tuple[Pause, ...] = get_args(Pause)
STEPS = 100
PAUSES_KEPT = 5
HICCUP = 3.0
"""A step of more than so many medians (the first one, or one while the machine slept) says nothing of the next."""


@dataclass(frozen=True)
class Schedule:
    """How often a run pauses by itself; None: never."""

    sample_every_n_steps: int | None = None
    sample_every_n_epochs: int | None = None
    save_every_n_steps: int | None = None
    save_every_n_epochs: int | None = None
    save_n_epoch_ratio: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Schedule:
        """From the flat values of a run's config.toml."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if isinstance(config.get(name), int)})

    def to_come(self, pause: Pause, *, step: int, start: Start) -> int:
        """How many of these pauses come after a step, the one at the end included."""
        if step >= start.total_steps:
            return 0
        if pause == "sampling":
            # as the trainer does it: epochs win, and a schedule ends with pictures
            steps = None if self.sample_every_n_epochs else self.sample_every_n_steps
            epochs, at_end = self.sample_every_n_epochs, int(bool(self.sample_every_n_epochs or steps))
        else:
            steps, epochs, at_end = self.save_every_n_steps, self.save_every_n_epochs, 1
            if ratio := self.save_n_epoch_ratio:
                epochs = max(1, start.epochs // ratio)
        every = [n for n in (steps, (epochs or 0) * start.steps_per_epoch) if n]
        return at_end + sum((start.total_steps - 1) // n - step // n for n in every)


@dataclass
class Clock:
    """What a run's events say of how long its steps and pauses take."""

    step: int = 0
    running_since: float = 0.0
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))
    _paused: dict[Pause, deque[float]] = field(default_factory=dict)
    _pause: Pause | None = None
    _pause_since: float = 0.0
    _step_when: float = 0.0

    def take_step(self, step: Step, when: float) -> None:
        """A step was done. From one to the next counts, with what little is done between them; after a pause the step's
        own seconds do."""
        self._end_pause(when)
        is_next = step.step == self.step + 1 and self._seconds and self.running_since == self._step_when
        self._seconds.append(when - self._step_when if is_next else step.seconds)
        self.step, self.running_since, self._step_when = step.step, when, when

    def take_phase(self, name: str, when: float) -> None:
        """The run is busy with something."""
        if name == self._pause:
            return
        self._end_pause(when)
        for pause in PAUSES:
            if pause == name:
                self._pause, self._pause_since = pause, when

    def _end_pause(self, when: float) -> None:
        if self._pause is not None:
            self._paused.setdefault(self._pause, deque(maxlen=PAUSES_KEPT)).append(when - self._pause_since)
            self._pause, self.running_since = None, when

    def end_time(self, start: Start, schedule: Schedule, last_sign: float) -> float | None:
        """When the last step and what comes with it are expected to be done; None before the first step."""
        if not self._seconds:
            return None
        begin = self.running_since
        if self._pause is not None:
            begin = max(self._pause_since + self._usual(self._pause), last_sign)
        pauses = sum(schedule.to_come(p, step=self.step, start=start) * self._usual(p) for p in PAUSES)
        return begin + max(start.total_steps - self.step, 0) * self.step_seconds() + pauses

    def step_seconds(self) -> float:
        """The mean of the last steps, hiccups left out."""
        limit = HICCUP * statistics.median(self._seconds)
        return statistics.fmean([s for s in self._seconds if s <= limit])

    def _usual(self, pause: Pause) -> float:
        """How long such a pause takes; nothing while none was seen."""
        return statistics.fmean(self._paused[pause]) if pause in self._paused else 0.0
