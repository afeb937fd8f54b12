"""Going on with a run from the page: its files, and the real trainer from Stop to the finished model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import launch, request, runs
from kohya_gui.run_view import RunReader, RunView
from kohya_gui.settings import Settings
from tests.kohya_gui.test_train_page import asked, picture_folder
from trainer.errors import ConfigError
from trainer.events import Events, Start, Step, read_events
from trainer.run_folder import Job, RunFolder
from trainer.store import read_config


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.of(tmp_path / "home é")


def values_of(run: RunFolder) -> dict[str, Any]:
    return {name: sourced.value for name, sourced in read_config(run.config_file).items()}


def test_only_what_must_differ_does(tiny_folder: Path, settings: Settings, tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", count=4, captions=4)
    old, new = (RunFolder.create(settings.runs, "house") for _ in range(2))
    started_from = tmp_path / "start.safetensors"
    wanted = asked(
        tiny_folder, pictures, prompts=[["a sks house", "", "64", "1", "4", "7"]],
        options={"network_weights": str(started_from), "learning_rate": 1e-3, "seed": 5},
    )  # fmt: skip
    started_from.touch()
    request.prepare(wanted, old.path, settings)
    launch._prepare_rest(old, tmp_path / "house-state", new)
    before, after = values_of(old), values_of(new)
    assert before.pop("network_weights") == str(started_from)
    assert after.pop("resume") == str(tmp_path / "house-state")
    assert {name: after[name] for name in before if before[name] != after[name]} == {
        "dataset_config": str(new.dataset_file),
        "sample_prompts": str(new.prompts_file),
    }
    assert new.dataset_file.read_bytes() == old.dataset_file.read_bytes()
    assert new.prompts_file.read_bytes() == old.prompts_file.read_bytes()


def test_a_config_that_is_gone_is_said(settings: Settings, tmp_path: Path) -> None:
    old = RunFolder.create(settings.runs, "house")
    old.write_job(Job(("x",), "."))
    with pytest.raises(ConfigError, match="no such file"):
        launch.go_on(old, tmp_path / "state", settings)
    assert [p.name for p in settings.runs.iterdir() if p.name != ".locks"] == [old.path.name]


def wait_for(reader: RunReader, run: RunFolder, wanted: Callable[[RunView], bool], *, seconds: float = 200) -> RunView:
    end = time.monotonic() + seconds
    while (view := reader.view(run.path.name)) is None or not wanted(view):
        assert time.monotonic() < end, view
        time.sleep(0.02)
    return view


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_its_end(tiny_folder: Path, settings: Settings, tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", count=4, captions=4)
    wanted = asked(tiny_folder, pictures, options={"max_train_epochs": 60, "enable_bucket": False})
    reader = RunReader(settings.runs)
    first = launch.start(wanted, settings)
    try:
        wait_for(reader, first, lambda view: view.step is not None and view.step.step > 3)
        runs.stop(first)
        stopped = wait_for(reader, first, lambda view: not view.is_living)
        assert stopped.state == "stopped" and stopped.stopped is not None and stopped.resume_from is not None
        rest = launch.go_on(first, stopped.resume_from, settings)
        with pytest.raises(ConfigError, match="right now"):
            launch.go_on(first, stopped.resume_from, settings)
        ended = wait_for(reader, rest, lambda view: not view.is_living)
    finally:
        for run in settings.runs.iterdir():
            runs.kill(RunFolder(run), grace_seconds=1)
    assert ended.state == "finished" and ended.finished is not None, ended.cause
    events = [line.event for line in read_events(rest.events_file)[0]]
    (start,) = [event for event in events if isinstance(event, Start)]
    assert (start.first_step, start.total_steps) == (stopped.stopped.step, 240)
    assert [e.step for e in events if isinstance(e, Step)] == list(range(stopped.stopped.step + 1, 241))
    model = settings.outputs / "house.safetensors"
    assert Path(ended.finished.path) == model and model.is_file()
    with pytest.raises(ConfigError, match=r"house\.safetensors exists already"):
        launch.go_on(first, stopped.resume_from, settings)


def test_a_living_run_of_the_name_is_not_disturbed(tiny_folder: Path, settings: Settings, tmp_path: Path) -> None:
    import os

    from trainer import host
    from trainer.run_folder import Status

    pictures = picture_folder(tmp_path / "pictures", count=4, captions=4)
    old, living = (RunFolder.create(settings.runs, "house") for _ in range(2))
    for run in (old, living):
        request.prepare(asked(tiny_folder, pictures), run.path, settings)
        Events(run.events_file).close()
    living.write_status(Status("running", os.getpid(), host.process_started(os.getpid()) or 0.0))
    with pytest.raises(ConfigError, match=f"the run {living.path.name} is training"):
        launch.go_on(old, tmp_path / "state", settings)
