"""What a run says while it goes: typed events, one JSON line each in `events.jsonl`, append-only.

The page, the tests and any other reader follow a run by these lines alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TextIO

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Event:
    """What every event has. `time` is seconds since the epoch."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Start(Event):
    """The run has checked its configuration. total_steps counts optimizer steps; first_step > 0 if it was resumed."""

    kind = "start"
    task: str
    output_name: str
    total_steps: int
    steps_per_epoch: int
    epochs: int
    first_step: int
    num_pictures: int
    device: str
    trainable_parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase(Event):
    """What the run is busy with; done/total count what the phase counts (pictures, steps), 0 where nothing counts."""

    kind = "phase"
    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Step(Event):
    """One optimizer step. loss: mean over the step's pictures; loss_average: over the last (at most 100) steps;
    seconds: since the step before; memory_mb: peak of the device, or of the process on a CPU."""

    kind = "step"
    step: int
    epoch: int
    loss: float
    loss_average: float
    lr: Mapping[str, float]
    grad_norm: float
    seconds: float
    memory_mb: float


@dataclass(frozen=True)
class Sample(Event):
    """A sample picture; path is relative to the run folder."""

    kind = "sample"
    step: int
    index: int
    path: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Validation(Event):
    """The mean loss of pictures that do not train, at fixed noise and timesteps; step 0 is before training."""

    kind = "validation"
    step: int
    epoch: int
    loss: float
    num_pictures: int


@dataclass(frozen=True)
class Checkpoint(Event):
    """A saved model (what="model") or resume point (what="state"); path is absolute."""

    kind = "checkpoint"
    step: int
    what: str
    path: str
    size_bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Warning(Event):
    """Something the person should know that does not stop the run."""

    kind = "warning"
    message: str
    option: str = ""


@dataclass(frozen=True)
class Error(Event):
    """Why a run ended badly; problems as in `errors.Problem.as_dict`."""

    kind = "error"
    message: str
    problems: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Stopped(Event):
    """The run was asked to stop. state: its resume point, "" for a task that goes on from the files it has made."""

    kind = "stopped"
    step: int
    state: str


@dataclass(frozen=True)
class Finished(Event):
    """The run reached its last step; path is the finished model's."""

    kind = "finished"
    step: int
    path: str
    seconds: float


KINDS: Mapping[str, type[Event]] = {
    cls.kind: cls for cls in (Start, Phase, Step, Sample, Validation, Checkpoint, Warning, Error, Stopped, Finished)
}


class Events:
    """Writes events; each line is flushed, so a reader never waits for a buffer. `path=None` writes nothing
    (other ranks than 0); the events of people's interest also go to the log."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path else None
        self._last_phase = ("", 0.0)

    def emit(self, event: Event) -> None:
        """Append one event."""
        if self._file is None:
            return
        line = {"kind": event.kind, "time": round(time.time(), 3), **asdict(event)}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        _log(event)

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """A phase's progress, at most five times a second but always its first and last count."""
        last_name, last_time = self._last_phase
        now = time.monotonic()
        if name == last_name and done < total and now - last_time < 0.2:
            return
        self._last_phase = (name, now)
        self.emit(Phase(name, done, total))

    def warning(self, message: str, option: str = "") -> None:
        """Say something that does not stop the run."""
        self.emit(Warning(message, option))

    def close(self) -> None:
        """Close the file; later events are dropped."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _log(event: Event) -> None:
    match event:
        case Phase(name, done, total):
            log.info("%s%s", name, f" {done}/{total}" if total else "")
        case Step():
            rate = ", ".join(f"{k} {v:.3g}" for k, v in event.lr.items())
            text = "step %d, epoch %d, loss %.4f (average %.4f), lr %s, %.2f s"
            log.info(text, event.step, event.epoch, event.loss, event.loss_average, rate, event.seconds)
        case Sample():
            log.info("sample %s: %s", event.path, event.prompt)
        case Validation():
            log.info("validation loss %.4f after step %d (%d pictures)", event.loss, event.step, event.num_pictures)
        case Checkpoint():
            log.info("saved %s %s (%.1f MB)", event.what, event.path, event.size_bytes / 1e6)
        case Warning():
            log.warning("%s%s", f"{event.option}: " if event.option else "", event.message)
        case Error():
            log.error("%s", event.message)
        case Stopped():
            log.info("stopped after step %d%s", event.step, f"; resume with --resume {event.state}" * bool(event.state))
        case Finished():
            log.info("finished after step %d: %s", event.step, event.path)
        case Start():
            log.info("%d pictures, %d steps on %s", event.num_pictures, event.total_steps, event.device)


@dataclass(frozen=True)
class Line:
    """An event as read back: when it was said, and what."""

    time: float
    event: Event


def read_events(path: Path, offset: int = 0) -> tuple[list[Line], int]:
    """Events from a byte offset on, and the offset to go on from. A half-written last line waits for the next call;
    kinds and fields this version does not know are passed over, so newer runs can be read."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    return list(_parse(complete)), offset + len(complete)


def _parse(data: bytes) -> Iterator[Line]:
    for raw in data.splitlines():
        try:
            entry = json.loads(raw)
        except json.JSONDecodeError:
            continue
        kind = KINDS.get(entry.get("kind", ""))
        if kind is None:
            continue
        known = {f.name for f in fields(kind)}
        yield Line(entry["time"], kind(**{k: v for k, v in entry.items() if k in known}))
