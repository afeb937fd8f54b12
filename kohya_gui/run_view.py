"""Read how runs stand from their folders, cheaply enough to ask every second."""

from __future__ import annotations

import json
import statistics
import threading
import time
import tomllib
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kohya_gui import runs
from kohya_gui.chart import Curve, Point
from kohya_gui.remaining import Clock, Schedule
from trainer.errors import Problem
from trainer.events import (
    Checkpoint,
    Error,
    Event,
    Finished,
    Line,
    Phase,
    Sample,
    Start,
    Step,
    Stopped,
    Validation,
    Warning,
    read_events,
)
from trainer.run_folder import ENDED, Request, RunFolder, State, Status, list_runs

LOG_LINES = 40
FOLLOWED_RUNS = 8
TAIL_BYTES = 16 * 1024
HEAD_BYTES = 64 * 1024
START_SECONDS = 60.0
REQUESTS: tuple[Request, ...] = ("stop", "save", "sample")

Shown = State | Literal["stopping", "refused"]
"""A state as people are told it. stopping: it lives, and Stop was pressed; refused: it failed before it began."""


@dataclass(frozen=True)
class Pair:
    """A sample prompt's first picture of the run, and its newest when there is a newer one."""

    before: Sample
    newest: Sample | None


@dataclass(frozen=True)
class RunView:
    """Everything the page shows of one run, as its files tell it at one moment.

    activity: the phase, or what the supervisor does before the trainer speaks; activity_since: when that began.
    end_time: when the last step is expected. last_sign: when the run last said anything.
    waiting: requests that the trainer has not taken yet. resume_from: where an ended run can go on.
    """

    folder: RunFolder
    state: State
    shown: Shown
    status: Status | None
    activity: Phase
    activity_since: float
    last_sign: float
    start: Start | None
    step: Step | None
    smooth_loss: float | None
    validation: Validation | None
    curve: tuple[Point, ...]
    seconds_median: float | None
    end_time: float | None
    samples: tuple[Pair, ...]
    model: Checkpoint | None
    resume_point: Checkpoint | None
    warnings: tuple[str, ...]
    cause: str
    problems: tuple[str, ...]
    last_lines: tuple[str, ...]
    stopped: Stopped | None
    finished: Finished | None
    stop_asked: float | None
    waiting: frozenset[Request]
    resume_from: Path | None

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def is_living(self) -> bool:
        return self.state not in ENDED

    @property
    def seconds_taken(self) -> float | None:
        """How long an ended run took: as the trainer counted it, else as its supervisor did."""
        if self.finished is not None:
            return self.finished.seconds
        status = self.status
        return status.ended - status.begun if status is not None and status.ended and status.begun else None

    @property
    def fraction(self) -> float:
        """How much of the steps is done, 0 to 1."""
        if self.state == "finished":
            return 1.0
        if self.start is None or self.step is None or self.start.total_steps <= 0:
            return 0.0
        return min(self.step.step / self.start.total_steps, 1.0)


@dataclass(frozen=True)
class Row:
    """One line of the list of runs."""

    name: str
    state: State
    shown: Shown
    step: int
    total_steps: int
    loss: float | None
    when: float


@dataclass
class _Progress:
    """What a run's events add up to."""

    start: Start | None = None
    phase: Phase | None = None
    phase_since: float = 0.0
    last_sign: float = 0.0
    step: Step | None = None
    validation: Validation | None = None
    curve: Curve = field(default_factory=Curve)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=501))
    clock: Clock = field(default_factory=Clock)
    before: dict[int, Sample] = field(default_factory=dict)
    newest: dict[int, Sample] = field(default_factory=dict)
    model: Checkpoint | None = None
    resume_point: Checkpoint | None = None
    warnings: dict[str, int] = field(default_factory=dict)
    error: Error | None = None
    stopped: Stopped | None = None
    finished: Finished | None = None

    def take(self, line: Line) -> None:
        """Add one event."""
        self.last_sign = line.time
        match line.event:
            case Step() as step:
                self._take_step(step, line.time)
            case Phase() as phase:
                self.clock.take_phase(phase.name, line.time)
                self._enter(phase, line.time)
            case Start() as start:
                self.start = start
                # a twentieth of the run smooths enough to show its trend without hiding its turns
                self.curve = Curve(window=min(max(start.total_steps / 20, 10), 500))
            case Sample() as sample:
                first = self.before.setdefault(sample.index, sample)
                if sample.step > first.step:
                    self.newest[sample.index] = sample
            case Validation() as validation:
                self.validation = validation
            case Warning() as warning:
                said = f"{warning.option}: {warning.message}" if warning.option else warning.message
                self.warnings[said] = self.warnings.get(said, 0) + 1
            case other:
                self._take_end(other)

    def _take_step(self, step: Step, when: float) -> None:
        self.step = step
        self.curve.add(step.step, step.loss)
        self.seconds.append(step.seconds)
        self.clock.take_step(step, when)
        total = self.start.total_steps if self.start else 0
        self._enter(Phase("training", step.step, total), when)

    def _take_end(self, event: Event) -> None:
        match event:
            case Checkpoint(what="model"):
                self.model = event
            case Checkpoint():
                self.resume_point = event
            case Error():
                self.error = event
            case Stopped():
                self.stopped = event
            case Finished():
                self.finished = event

    def _enter(self, phase: Phase, when: float) -> None:
        if self.phase is None or self.phase.name != phase.name:
            self.phase_since = when
        self.phase = phase

    def seconds_median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    def end_time(self, schedule: Schedule) -> float | None:
        return self.clock.end_time(self.start, schedule, self.last_sign) if self.start else None

    def pairs(self) -> tuple[Pair, ...]:
        return tuple(Pair(self.before[index], self.newest.get(index)) for index in sorted(self.before))

    def warning_texts(self) -> tuple[str, ...]:
        return tuple(f"{text} ({count} times)" if count > 1 else text for text, count in self.warnings.items())


@dataclass
class _Followed:
    """A run being read: how far, and what it came to."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    offset: int = 0
    progress: _Progress = field(default_factory=_Progress)
    schedule: Schedule | None = None

    def read_on(self, folder: RunFolder) -> None:
        """Take in what was said since the last call."""
        events_file = folder.events_file
        if events_file.exists() and events_file.stat().st_size < self.offset:
            self.offset, self.progress, self.schedule = 0, _Progress(), None
        lines, self.offset = read_events(events_file, self.offset)
        for line in lines:
            self.progress.take(line)
        # the trainer writes its whole configuration before it says that it starts
        if self.schedule is None and self.progress.start is not None:
            self.schedule = Schedule.of(_config(folder))


class RunReader:
    """Reads the runs under a folder; it remembers what it read, never what it was told: the files are the truth."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._followed: OrderedDict[str, _Followed] = OrderedDict()
        self._ended: dict[str, tuple[float, Row]] = {}
        self._lock = threading.Lock()

    def folder(self, name: str) -> RunFolder | None:
        """The run of that name; None for anything that does not name a folder right under the root."""
        if not name or name != Path(name).name or name.startswith("."):
            return None
        folder = RunFolder(self.root / name)
        return folder if folder.job_file.exists() or folder.status_file.exists() else None

    def view(self, name: str) -> RunView | None:
        """How a run stands now; None when there is no such run."""
        folder = self.folder(name)
        if folder is None:
            return None
        followed = self._follow(name)
        with followed.lock:
            # the status first: a run that ends between the two reads is then seen as ended only with all its events
            status = folder.status()
            followed.read_on(folder)
            return _view(folder, status, followed.progress, followed.schedule or Schedule())

    def rows(self, limit: int = 60) -> list[Row]:
        """The newest runs, newest first; from their status and the ends of their events alone."""
        return [self._row(folder) for folder in list_runs(self.root)[:limit]]

    def newest_living(self) -> str:
        """The name of the newest run that has not ended, "" when all have."""
        for folder in list_runs(self.root)[:60]:
            status = folder.status()
            if status is not None and status.state not in ENDED:
                return folder.path.name
        return ""

    def newest(self) -> str:
        """The name of the newest run, "" when there is none."""
        return next((folder.path.name for folder in list_runs(self.root)), "")

    def _row(self, folder: RunFolder) -> Row:
        name = folder.path.name
        written = _modified(folder.status_file)
        known = self._ended.get(name)
        if known is not None and known[0] == written:
            return known[1]
        status = folder.status()
        state, _ = _state(folder, status)
        newest = _newest_events(folder.events_file)
        step = next((event for event in newest if isinstance(event, Step)), None)
        error = next((event for event in newest if isinstance(event, Error)), None)
        total_steps = _total_steps(folder.events_file)
        row = Row(
            name=name,
            state=state,
            shown=_shown(state, folder, status, error, has_begun=total_steps > 0),
            step=step.step if step else 0,
            total_steps=total_steps,
            loss=step.loss_average if step else None,
            # a run from the command line has no job file
            when=status.begun if status is not None and status.begun else _modified(folder.job_file),
        )
        if state in ENDED:
            self._ended[name] = (written, row)
        return row

    def _follow(self, name: str) -> _Followed:
        with self._lock:
            followed = self._followed.setdefault(name, _Followed())
            self._followed.move_to_end(name)
            while len(self._followed) > FOLLOWED_RUNS:
                self._followed.popitem(last=False)
            return followed


def _view(folder: RunFolder, status: Status | None, progress: _Progress, schedule: Schedule) -> RunView:
    state, silent = _state(folder, status)
    begun = status.begun if status else _modified(folder.job_file)
    activity, since = _activity(state, status, progress, begun)
    error = progress.error
    return RunView(
        folder=folder,
        state=state,
        shown=_shown(state, folder, status, error, has_begun=progress.start is not None),
        status=status,
        activity=activity,
        activity_since=since,
        last_sign=max(progress.last_sign, _modified(folder.console_log), begun),
        start=progress.start,
        step=progress.step,
        smooth_loss=progress.curve.smooth,
        validation=progress.validation,
        curve=progress.curve.points(),
        seconds_median=progress.seconds_median(),
        end_time=progress.end_time(schedule),
        samples=progress.pairs(),
        model=progress.model,
        resume_point=progress.resume_point,
        warnings=progress.warning_texts(),
        cause=silent or (error.message if error else "") or (status.cause if status else ""),
        problems=tuple(_problem_text(p) for p in error.problems) if error else (),
        last_lines=tuple(folder.last_lines(LOG_LINES)),
        stopped=progress.stopped,
        finished=progress.finished,
        stop_asked=runs.stop_asked(folder),
        waiting=frozenset(request for request in REQUESTS if folder.asked(request)),
        resume_from=_resume_from(folder, state, progress.resume_point),
    )


def _shown(state: State, folder: RunFolder, status: Status | None, error: Error | None, *, has_begun: bool) -> Shown:
    if state not in ENDED:
        return "stopping" if runs.stop_asked(folder) is not None else state
    # a TrainerError names problems; what crashed names none, and a job that could not be started has no exit code
    refused = error.problems if error else status is not None and status.exit_code is None
    return "refused" if state == "failed" and not has_begun and refused else state


def _resume_from(folder: RunFolder, state: State, saved: Checkpoint | None) -> Path | None:
    """The newest resume point that an ended run left, else the one it began from; only of runs that the page started,
    since only their paths are whole."""
    if state not in ENDED or state == "finished" or not folder.job_file.exists():
        return None
    path = saved.path if saved else str(_config(folder).get("resume", ""))
    return Path(path) if path and Path(path).is_dir() else None


def _config(folder: RunFolder) -> dict[str, Any]:
    """The flat values of a run's config.toml; nothing where it cannot be read."""
    try:
        data = tomllib.loads(folder.config_file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
    return {key: value for name, group in data.items() for key, value in _flat(name, group)}


def _flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else [(name, value)]


def _state(folder: RunFolder, status: Status | None) -> tuple[State, str]:
    """The state, and the cause where a run never wrote one."""
    if status is not None:
        return status.state, ""
    if time.time() - _modified(folder.job_file) < START_SECONDS:
        return "starting", ""
    return "died", "it never began: its supervisor left no status"


def _activity(state: State, status: Status | None, progress: _Progress, begun: float) -> tuple[Phase, float]:
    if state == "queued":
        other = f" for {status.waiting_for}" if status and status.waiting_for else ""
        return Phase(f"waiting{other}"), begun
    if progress.phase is not None:
        return progress.phase, progress.phase_since
    return Phase("starting the trainer"), progress.last_sign or begun


def _total_steps(path: Path) -> int:
    """The planned steps, from the head of the events; 0 while it is not known."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for raw in head[: head.rfind(b"\n") + 1].splitlines():
        if b'"start"' in raw[:40]:
            return int(json.loads(raw).get("total_steps", 0))
    return 0


def _newest_events(path: Path) -> list[Event]:
    """The newest events, newest first, from the end of the file alone."""
    if not path.exists():
        return []
    offset = max(0, path.stat().st_size - TAIL_BYTES)
    if offset:
        with path.open("rb") as file:
            file.seek(offset)
            offset += len(file.readline())
    return [line.event for line in reversed(read_events(path, offset)[0])]


def read_trigger(folder: RunFolder) -> str:
    """The word that calls what was learned: the class tokens of the first subset that is not for regularisation."""
    try:
        data = tomllib.loads(folder.dataset_file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return ""
    for dataset in data.get("datasets", []):
        for subset in dataset.get("subsets", []):
            if not subset.get("is_reg") and subset.get("class_tokens"):
                return str(subset["class_tokens"])
    return ""


def _problem_text(problem: Mapping[str, Any]) -> str:
    known = {f.name for f in fields(Problem)}
    values = {key: value for key, value in problem.items() if key in known}
    return str(Problem(**{"option": "", "message": "", **values}))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
