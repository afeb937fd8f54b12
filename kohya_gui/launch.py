"""From a filled-in page to a running training: files written, checked by the trainer, started; exactly once."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kohya_gui import runs
from kohya_gui.request import CLASS_DIR, Request, living_run, path_of, prepare
from kohya_gui.settings import Settings
from trainer.config import build
from trainer.errors import ConfigError, Problem
from trainer.run_folder import Lock, RunFolder, holding
from trainer.store import Sourced, read_config
from trainer.tasks.train_network import TrainNetworkConfig

CHECK_SECONDS = 180


def start(request: Request, settings: Settings) -> RunFolder:
    """Check what is asked for and start it; ConfigError holds every problem and nothing was started then."""
    with _one_start(settings):
        with tempfile.TemporaryDirectory(prefix="studio-check-") as draft:
            prepare(request, Path(draft), settings)
            problems = check(Path(draft) / "config.toml", request, settings)
        errors = [p for p in problems if p.severity == "error"]
        if errors:
            raise ConfigError(errors)
        folder = RunFolder.create(settings.runs, str(request.value("output_name", "last")))
        config = prepare(request, folder.path, settings)
        runs.start(folder, task=config.task)
    return folder


def go_on(old: RunFolder, resume_point: Path, settings: Settings) -> RunFolder:
    """Go on with an ended run from a resume point: a new run of the same configuration; ConfigError as in `start`."""
    with _one_start(settings):
        with tempfile.TemporaryDirectory(prefix="studio-check-") as draft:
            config = _prepare_rest(old, resume_point, RunFolder(Path(draft)))
            name, output_dir = config.saving.output_name, Path(config.saving.output_dir)
            if running := living_run(output_dir, name, settings):
                said = f"the run {running} is training a model of this name right now"
                raise ConfigError([Problem("output_name", said, name, remedy="Wait for its end, or stop it")])
            problems = _findings_of(Path(draft) / "config.toml", settings)
        if errors := [p for p in problems if p.severity == "error"]:
            raise ConfigError(errors)
        folder = RunFolder.create(settings.runs, name)
        _prepare_rest(old, resume_point, folder)
        runs.start(folder, task=config.task)
    return folder


def _prepare_rest(old: RunFolder, resume_point: Path, new: RunFolder) -> TrainNetworkConfig:
    """Write the files of a run that goes on with another: its own, with copies of what lies in the old run's folder."""
    values = read_config(old.config_file)
    # the weights of a LoRA that the old run began from are in the resume point by now; its ranks may still be needed
    if not ("dim_from_weights" in values and values["dim_from_weights"].value):
        values.pop("network_weights", None)
    values["resume"] = Sourced(str(resume_point), "page")
    for option, before, after in (
        ("dataset_config", old.dataset_file, new.dataset_file),
        ("sample_prompts", old.prompts_file, new.prompts_file),
    ):
        if option in values and Path(str(values[option].value)) == before and before.is_file():
            shutil.copyfile(before, after)
            values[option] = Sourced(str(after), "page")
    config = build(TrainNetworkConfig, values)
    new.config_file.write_text(config.toml(), encoding="utf-8")
    return config


@contextlib.contextmanager
def _one_start(settings: Settings) -> Iterator[None]:
    """One start at a time, also of several page servers over one runs folder: the second finds the first one's run."""
    lock = Lock(settings.runs / ".locks" / "start.lock")
    with holding([lock], "a start", on_wait=lambda holder: None):
        yield


def check(config_file: Path, request: Request, settings: Settings) -> list[Problem]:
    """What the trainer itself finds wrong on this machine, under the names of the page's fields."""
    return [_at_home(problem, request, settings) for problem in _findings_of(config_file, settings)]


def _findings_of(config_file: Path, settings: Settings) -> list[Problem]:
    """What the trainer itself finds wrong on this machine, without loading a model."""
    argv = [sys.executable, "-m", "trainer", "check", "--config_file", str(config_file), "--json"]
    try:
        done = subprocess.run(
            argv,
            cwd=settings.project,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Problem("", f"the check took more than {CHECK_SECONDS} seconds", remedy="Is the machine overloaded?")]
    findings = _findings(done.stdout)
    if findings is None:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        return [Problem("", f"the check could not be made: {last}")]
    return findings


def _findings(text: str) -> list[Problem] | None:
    """The check's findings; None when it printed none. Libraries may have printed lines before."""
    for start in (text.find("["), text.find("{")):
        try:
            data = json.loads(text[start:]) if start >= 0 else None
        except json.JSONDecodeError:
            continue
        entries = data.get("findings") if isinstance(data, dict) else data
        if isinstance(entries, list):
            return [_problem(entry) for entry in entries if isinstance(entry, dict)]
    return None


def _problem(entry: Mapping[str, Any]) -> Problem:
    known = {name: entry[name] for name in Problem.__dataclass_fields__ if name in entry}
    return Problem(**{"option": "", "message": "", **known})


FIELDS = {
    "train_data_dir": "image_dir",
    "dataset_config": "image_dir",
    "subsets": "image_dir",
    "reg_data_dir": CLASS_DIR,
    "batch_size": "train_batch_size",
}
"""Options of a dataset file -> the field of the page they came from."""


def _at_home(problem: Problem, request: Request, settings: Settings) -> Problem:
    """A finding under the name of the page's field; the draft's file names mean nothing to a person."""
    option = FIELDS.get(problem.option, problem.option)
    classes = request.class_pictures.strip()
    if option == "image_dir" and classes and str(path_of(classes, settings)) in f"{problem.value} {problem.message}":
        option = CLASS_DIR
    return Problem(option, problem.message, problem.value, "", problem.remedy, problem.severity)
