"""A run's folder: the whole contract between the page and the trainer.

    runs/<time>-<output_name>/
      in    config.toml  dataset.toml  prompts.txt  job.json   and request files: stop  save  sample
      out   status.json  events.jsonl  console.log  samples/  files.json  environment.json  sources.json
Models and resume points go to output_dir; files.json lists them with sizes and hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import filelock

from trainer import host
from trainer.errors import RunError

State = Literal["queued", "starting", "running", "finished", "stopped", "failed", "killed", "died"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed", "killed", "died")
Request = Literal["stop", "save", "sample"]

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"COM{i}" for i in range(10)), *(f"LPT{i}" for i in range(10))}


@dataclass(frozen=True)
class Status:
    """status.json. pid and started name the process that owns the run (supervisor, or the trainer without one).

    cause: one sentence on why a run ended badly. last_lines: the end of the console then.
    """

    state: State
    pid: int
    started: float
    exit_code: int | None = None
    cause: str = ""
    last_lines: tuple[str, ...] = ()
    waiting_for: str = ""
    begun: float = 0.0
    ended: float | None = None


@dataclass(frozen=True)
class SavedFile:
    """One entry of files.json."""

    path: str
    what: str
    step: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Job:
    """job.json: the command a supervisor starts. env holds additions only, never secrets."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    locks: tuple[str, ...] = ()


def check_name(name: str) -> str:
    """What is wrong with an output_name, "" when nothing is; a name is one file name on every system."""
    if not name.strip():
        return "must not be empty"
    if len(name) > 120:
        return "must be at most 120 characters long"
    if re.search(r'[\x00-\x1f<>:"/\\|?*]', name):
        return 'must not contain / \\ : * ? " < > | or control characters'
    if name.strip(". ") != name or name.split(".")[0].upper() in _RESERVED:
        return "must not begin or end with a dot or blank, nor be a name reserved by Windows"
    return ""


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a small file so that a reader sees the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sha256_file(path: Path) -> str:
    """The hash of a whole file, as it is now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class RunFolder:
    """The files of one run by name."""

    path: Path

    @classmethod
    def create(cls, root: Path, output_name: str) -> RunFolder:
        """A new folder runs/<time>-<output_name>; a used name gets -2, -3, ..."""
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{output_name}"
        for number in range(1, 1000):
            folder = root / (stem if number == 1 else f"{stem}-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return cls(folder)
        raise RunError(f"no free name for a run folder in {root}")

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def dataset_file(self) -> Path:
        return self.path / "dataset.toml"

    @property
    def prompts_file(self) -> Path:
        return self.path / "prompts.txt"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def console_log(self) -> Path:
        return self.path / "console.log"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def files_file(self) -> Path:
        return self.path / "files.json"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def sources_file(self) -> Path:
        return self.path / "sources.json"

    # requests: the page (or a person with `touch`) writes a file, the trainer takes it away after the step

    def ask(self, request: Request) -> None:
        """Leave a request for the running trainer."""
        (self.path / request).touch()

    def asked(self, request: Request) -> bool:
        """Whether a request waits."""
        return (self.path / request).exists()

    def take(self, request: Request) -> bool:
        """Whether a request waited; it is taken away."""
        try:
            (self.path / request).unlink()
        except FileNotFoundError:
            return False
        return True

    # status

    def write_status(self, status: Status) -> None:
        """Replace status.json."""
        write_atomically(self.status_file, json.dumps(asdict(status), indent=1))

    def status(self) -> Status | None:
        """status.json as it reads now; state "died" when its process is gone without an end state."""
        try:
            data = json.loads(self.status_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        status = Status(**{**data, "last_lines": tuple(data["last_lines"])})
        if status.state in ENDED or host.is_alive(status.pid, status.started):
            return status
        cause = "the process is gone without saying why (killed, out of memory, or the machine went down)"
        return replace(status, state="died", cause=cause, last_lines=tuple(self.last_lines()))

    def last_lines(self, count: int = 20) -> list[str]:
        """The last lines of the console, read from the end of the file."""
        if not self.console_log.exists():
            return []
        with self.console_log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
        # a progress bar rewrites its line with \r: only what it last showed counts
        return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.removesuffix("\n").split("\n")][-count:]

    # what the run made

    def add_file(self, saved: SavedFile) -> None:
        """Add (or replace) a saved file in files.json."""
        kept = [entry for entry in self.files() if entry.path != saved.path]
        write_atomically(self.files_file, json.dumps([asdict(f) for f in [*kept, saved]], indent=1))

    def remove_file(self, path: str) -> None:
        """Take a pruned file off files.json."""
        kept = [asdict(entry) for entry in self.files() if entry.path != path]
        write_atomically(self.files_file, json.dumps(kept, indent=1))

    def files(self) -> list[SavedFile]:
        """Everything this run saved and kept, in order."""
        if not self.files_file.exists():
            return []
        return [SavedFile(**entry) for entry in json.loads(self.files_file.read_text(encoding="utf-8"))]

    # the job

    def write_job(self, job: Job) -> None:
        """Write what the supervisor shall start."""
        write_atomically(self.job_file, json.dumps(asdict(job), indent=1))

    def job(self) -> Job:
        """What the supervisor shall start."""
        data = json.loads(self.job_file.read_text(encoding="utf-8"))
        return Job(tuple(data["argv"]), data["cwd"], data["env"], tuple(data["locks"]))


def list_runs(root: Path) -> list[RunFolder]:
    """All run folders under a root, newest first."""
    if not root.is_dir():
        return []
    folders = [p for p in root.iterdir() if (p / "job.json").exists() or (p / "status.json").exists()]
    return [RunFolder(p) for p in sorted(folders, key=lambda p: p.name, reverse=True)]


# locks: one run per output folder and per device at a time


class Lock:
    """An operating-system lock on a file; the system frees it when its process ends, however it ends.

    Beside it stands who holds it: pid, start time and run, for people and messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = path.with_name(path.name + ".json")
        self._lock = filelock.FileLock(path, timeout=0)

    def holder(self) -> dict[str, Any] | None:
        """Who holds it ({"pid", "started", "run"}), None when nobody living does."""
        try:
            entry: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return entry if host.is_alive(entry["pid"], entry["started"]) else None

    def take(self, run: str) -> bool:
        """Take the lock for this process; False when another holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            return False
        entry = {"pid": os.getpid(), "started": host.process_started(os.getpid()), "run": run}
        write_atomically(self._note, json.dumps(entry))
        return True

    def free(self) -> None:
        """Give the lock back if this process holds it."""
        if self._lock.is_locked:
            self._note.unlink(missing_ok=True)
            self._lock.release()


def output_lock(output_dir: Path) -> Lock:
    """The lock of a folder that models are written to."""
    return Lock(output_dir.resolve() / ".in-use")


@contextlib.contextmanager
def holding(
    locks: Sequence[Lock],
    run: str,
    on_wait: Callable[[Mapping[str, Any]], None] | None = None,
    poll_seconds: float = 0.5,
) -> Iterator[None]:
    """Hold all locks for the body; waits for those held by others, calling `on_wait(holder)` while it waits,
    or raises RunError at once where there is no `on_wait`.

    Locks are taken in the order of their paths, so that two waiting runs cannot block one another.
    """
    taken: list[Lock] = []
    try:
        for lock in sorted(locks, key=lambda item: str(item.path)):
            while not lock.take(run):
                if on_wait is None:
                    holder = lock.holder() or {}
                    raise RunError(f"{lock.path.name} is in use by the run {holder.get('run', '?')}")
                on_wait(lock.holder() or {})
                time.sleep(poll_seconds)
            taken.append(lock)
        yield
    finally:
        for lock in taken:
            lock.free()
