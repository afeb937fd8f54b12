"""Runs `python -m trainer dataset_report` as a process of its own, and reads what it says of a data set."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kohya_gui import dataset_toml
from kohya_gui.settings import Settings
from trainer import host
from trainer.data import scan
from trainer.errors import DataError

POLL_SECONDS = 0.2
KEEP_SECONDS = 7 * 24 * 3600
KEY = re.compile(r"[0-9a-f]{24}")


class Cancelled(Exception):
    """The person pressed Cancel."""


@dataclass
class Look:
    """One look at a data set while it runs. done, total: pictures. last: what it said besides."""

    folder: Path
    process: subprocess.Popen[str]
    done: int = 0
    total: int = 0
    last: list[str] = field(default_factory=list)
    is_cancelled: bool = False

    def listen(self) -> None:
        """Follow what the process says; runs in a thread until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if counts := _progress(line):
                self.done, self.total = counts
            elif line.strip():
                self.last = [*self.last[-19:], line.strip()]

    def cancel(self) -> None:
        self.is_cancelled = True
        host.end_tree(self.process.pid, grace_seconds=1.0)


class Looks:
    """The looks of all tabs by the tab's session, so that a Cancel finds its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._running: dict[str, Look] = {}

    def run(self, text: str, base: Path, session: str) -> Iterator[Look | str]:
        """Look at a description: the Look again and again while it goes on, at the end the report's key."""
        self.cancel(session)
        folder = self._new_folder()
        draft = folder / "dataset.toml"
        draft.write_text(dataset_toml.whole_paths(text, base, self.settings.home), encoding="utf-8")
        look = self._running[session] = start(draft, folder / "report.json", self.settings)
        listener = threading.Thread(target=look.listen, daemon=True, name=f"look-{look.process.pid}")
        listener.start()
        try:
            while look.process.poll() is None:
                yield look
                time.sleep(POLL_SECONDS)
            listener.join(timeout=5)
        finally:  # also when the tab was closed meanwhile
            if look.process.poll() is None:
                look.cancel()
            if self._running.get(session) is look:
                del self._running[session]
        if look.is_cancelled:
            shutil.rmtree(folder, ignore_errors=True)
            raise Cancelled
        if not (folder / "report.json").is_file():
            said = look.last[-1] if look.last else f"it ended with code {look.process.returncode} and said nothing"
            raise DataError(f"the pictures could not be looked at: {said}")
        yield folder.name

    def cancel(self, session: str) -> None:
        """End the look of a tab, if one runs."""
        if look := self._running.get(session):
            look.cancel()

    def report(self, key: str) -> Report | None:
        """A finished report by its key; None when there is none (any more)."""
        path = self._work / key / "report.json" if KEY.fullmatch(key or "") else None
        return read_report(path) if path is not None and path.is_file() else None

    def draft(self, key: str) -> Path:
        """The dataset file that a report was made of, with whole paths."""
        assert KEY.fullmatch(key), key
        return self._work / key / "dataset.toml"

    @property
    def _work(self) -> Path:
        return self.settings.datasets / ".looks"

    def _new_folder(self) -> Path:
        """A folder of ours; those of last week are cleared away."""
        self._work.mkdir(parents=True, exist_ok=True)
        for old in self._work.iterdir():
            if KEY.fullmatch(old.name) and time.time() - old.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        folder = self._work / secrets.token_hex(12)
        folder.mkdir()
        return folder


def start(draft: Path, report: Path, settings: Settings) -> Look:
    """Begin a look at a dataset file."""
    argv = [sys.executable, "-m", "trainer", "dataset_report", "--dataset_config", str(draft)]
    argv += ["--json", str(report), "--progress_json"]
    process = subprocess.Popen(
        argv,
        cwd=settings.project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        **host.detached(),
    )
    return Look(report.parent, process)


def _progress(line: str) -> tuple[int, int] | None:
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        return None
    if isinstance(said, dict) and isinstance(said.get("done"), int) and isinstance(said.get("total"), int):
        return said["done"], said["total"]
    return None


# the report


@dataclass(frozen=True)
class Picture:
    """One picture of a report. number: its place in the report. place: of its folder's table in the dataset file."""

    number: int
    path: Path
    size: tuple[int, int]
    bucket: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    repeats: int
    is_reg: bool
    caption: str
    caption_source: str
    place: tuple[int, int]


@dataclass(frozen=True)
class Warned:
    """A warning, or a file that cannot be used (kind "bad_file")."""

    kind: str
    path: str
    message: str


@dataclass(frozen=True)
class Report:
    """A look's result. datasets: as the command wrote them, without their pictures."""

    datasets: tuple[Mapping[str, Any], ...]
    pictures: tuple[Picture, ...]
    warnings: tuple[Warned, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def subset_of(self, picture: Picture) -> Mapping[str, Any]:
        """The folder's table that a picture belongs to, as the report names it."""
        found: Mapping[str, Any] = self.datasets[picture.place[0]]["subsets"][picture.place[1]]
        return found

    def picture(self, number: int) -> Picture | None:
        return self.pictures[number] if 0 <= number < len(self.pictures) else None

    def unusable_caption(self, path: str) -> Picture | None:
        """What stands for the picture of a caption file that cannot be used: it has the path of that file."""
        if not any(w.kind == "bad_file" and w.path == path for w in self.warnings) or not is_caption(path):
            return None
        return Picture(-1, Path(path), (1, 1), (1, 1), (1, 1), (0, 0, 1, 1), 0, False, "", "file", (0, 0))


def is_caption(path: str) -> bool:
    """Whether a path is that of a caption file, by its ending."""
    return Path(path).suffix.lower() in scan.CAPTION_SUFFIXES


def read_report(path: Path) -> Report:
    """A report by its file; the same file is parsed once."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> Report:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        pictures = _pictures(raw["datasets"])
        datasets = tuple({k: v for k, v in dataset.items() if k != "images"} for dataset in raw["datasets"])
        bad = [Warned("bad_file", str(entry["path"]), str(entry["reason"])) for entry in raw["bad_files"]]
        warnings = [Warned(str(w["kind"]), str(w["path"]), str(w["message"])) for w in raw["warnings"]]
        problems = tuple(_problem(entry) for entry in raw.get("problems", []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the report {path} cannot be read ({type(error).__name__}: {error})") from None
    # a folder that cannot be used says the same twice: once as a bad file, once as a warning with its remedy
    told = {entry.path for entry in bad}
    warnings = [w for w in warnings if not (w.kind == "caption_extension" and w.path in told)]
    return Report(datasets, pictures, (*bad, *warnings), tuple(map(str, raw.get("notes", []))), problems)


def _pictures(datasets: Sequence[Mapping[str, Any]]) -> tuple[Picture, ...]:
    entries = [(number, image) for number, dataset in enumerate(datasets) for image in dataset["images"]]
    return tuple(
        Picture(
            number=number,
            path=Path(image["path"]),
            size=_pair(image["size"]),
            bucket=_pair(image["bucket"]),
            resized=_pair(image["resized"]),
            crop=(*_pair(image["crop"][:2]), *_pair(image["crop"][2:])),
            repeats=int(image["repeats"]),
            is_reg=bool(image["is_reg"]),
            caption=str(image["caption"]),
            caption_source=str(image["caption_source"]),
            place=(dataset, int(image.get("subset", 0))),
        )
        for number, (dataset, image) in enumerate(entries)
    )


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    first, second = numbers
    return int(first), int(second)


def _problem(entry: Mapping[str, Any]) -> str:
    option = f"{entry['option']}: " if entry.get("option") else ""
    value = f" (got {entry['value']})" if entry.get("value") is not None else ""
    remedy = f". {entry['remedy']}" if entry.get("remedy") else ""
    where = re.search(r"line \d+", str(entry.get("source") or ""))
    return f"{option}{entry['message']}{value}{f', {where[0]} of the file' if where else ''}{remedy}"
