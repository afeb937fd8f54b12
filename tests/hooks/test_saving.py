"""Which files a run may write over: none but those that a resumed run makes once more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.events import Events
from trainer.hooks.base import Moment
from trainer.hooks.saving import (
    ModelSavingOptions,
    Plan,
    Saving,
    SavingOptions,
    clash_problem,
    plan_saves,
    written_again,
)
from trainer.run_folder import Job, RunFolder, SavedFile, sha256_file


@pytest.fixture
def options(tmp_path: Path) -> SavingOptions:
    return SavingOptions(output_dir=tmp_path / "out", output_name="house", save_every_n_steps=10)


def saved(run: RunFolder, path: Path, step: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(f"weights of step {step}".encode())
    run.add_file(SavedFile(str(path), "model", step, path.stat().st_size, sha256_file(path)))
    return path


def make_run(root: Path, name: str, *parents: RunFolder) -> RunFolder:
    run = RunFolder.create(root, name)
    run.write_job(Job(("x",), "."))
    run.environment_file.write_text(json.dumps({"parents": [str(p.path) for p in parents]}))
    return run


def plan_from(options: SavingOptions, first_step: int) -> Plan:
    return plan_saves(options, {}, first_step=first_step, total_steps=40)


def test_a_resumed_run_may_write_again_what_it_does_again(options: SavingOptions, tmp_path: Path) -> None:
    first = make_run(tmp_path / "runs", "first")
    second = make_run(tmp_path / "runs", "second", first)
    stranger = make_run(tmp_path / "runs", "stranger")
    own = [saved(first, options.at_step(20), 20), saved(second, options.at_step(30), 30)]
    plan = plan_from(options, 10)
    again = written_again(options, plan, [str(first.path)], first_step=10)
    assert again == frozenset(own) and clash_problem(options, plan, again=again) is None
    assert clash_problem(options, plan) is not None
    assert written_again(options, plan, [str(stranger.path)], first_step=10) == frozenset()
    # up to its resume point it makes nothing, and so may write over nothing
    assert written_again(options, plan, [str(first.path)], first_step=20) == frozenset(own[1:])


def test_a_finished_model_and_a_changed_file_are_never_written_over(options: SavingOptions, tmp_path: Path) -> None:
    first = make_run(tmp_path / "runs", "first")
    saved(first, options.final(), 40)
    saved(first, options.at_step(20), 20).write_bytes(b"weights of stEp 20")
    plan = plan_from(options, 10)
    again = written_again(options, plan, [str(first.path)], first_step=10)
    assert again == frozenset()
    problem = clash_problem(options, plan, again=again)
    assert problem is not None and "house-step00000020.safetensors exists already, and 1 more" in problem.message


def left(
    tmp_path: Path, *, steps: int, steps_an_epoch: int, kind: type[SavingOptions] = SavingOptions, **options: object
) -> set[str]:
    """What lies in the output folder after a run that writes a line in place of each model and resume point."""
    saving_options = kind(output_dir=tmp_path / "out", output_name="a", **options)  # type: ignore[arg-type]
    run = RunFolder.create(tmp_path / "runs", "a")

    def export(path: Path, moment: Moment) -> Path:
        if not path.suffix:  # a model that is a folder
            path.mkdir()
            path = path / "x"
        path.write_text(str(moment.step))
        return path

    def save_state(path: Path, moment: Moment) -> Path:
        path.mkdir()
        (path / "x").write_text(str(moment.step))
        return path

    epochs = steps // steps_an_epoch
    events = Events(run.events_file)
    saving = Saving(saving_options, events, run, export=export, save_state=save_state, num_epochs=epochs, is_main=True)
    for step in range(1, steps + 1):
        ended = step % steps_an_epoch == 0
        moment = Moment(step, 1 + (step - 1) // steps_an_epoch, epoch_ended=ended, last=step == steps)
        saving.after_step(moment)
    saving.end(moment, stopped=False)
    events.close()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {Path(entry.path).name for entry in run.files()} == names, "the list of files tells what lies there"
    return names


def test_step_saves_no_older_than_asked_are_kept(tmp_path: Path) -> None:
    names = left(tmp_path, steps=60, steps_an_epoch=10, save_every_n_steps=10, save_last_n_steps=30)
    assert names == {f"a-step{n:08}.safetensors" for n in (20, 30, 40, 50)} | {"a.safetensors"}  # as sd-scripts does


def test_the_last_epoch_saves_are_kept(tmp_path: Path) -> None:
    names = left(tmp_path, steps=20, steps_an_epoch=2, save_every_n_epochs=2, save_last_n_epochs=3)
    assert names == {f"a-{n:06}.safetensors" for n in (4, 6, 8)} | {"a.safetensors"}


@pytest.mark.parametrize(("form", "ending"), [("ckpt", ".ckpt"), ("diffusers", ""), ("diffusers_safetensors", "")])
def test_models_of_every_form_are_named_and_deleted_alike(tmp_path: Path, form: str, ending: str) -> None:
    options = {
        "save_model_as": form,
        "save_every_n_steps": 10,
        "save_last_n_steps": 10,
        "save_state_on_train_end": True,
    }
    names = left(tmp_path, steps=40, steps_an_epoch=10, kind=ModelSavingOptions, **options)
    assert names == {f"a-step{n:08}{ending}" for n in (20, 30)} | {f"a{ending}", "a-state"}


def test_resume_points_are_kept_longer_or_shorter(tmp_path: Path) -> None:
    options = {"save_every_n_epochs": 1, "save_last_n_epochs": 3, "save_last_n_epochs_state": 1, "save_state": True}
    names = left(tmp_path, steps=12, steps_an_epoch=2, **options)
    models = {f"a-{n:06}.safetensors" for n in (3, 4, 5)} | {"a.safetensors"}
    assert names == models | {"a-000005-state", "a-state"}


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1, set()), (3, {4, 8}), (5, {2, 4, 6, 8, 10}), (30, set(range(1, 12)))]
)
def test_saves_by_their_number(tmp_path: Path, ratio: int, expected: set[int]) -> None:
    names = left(tmp_path, steps=24, steps_an_epoch=2, save_n_epoch_ratio=ratio)
    assert names == {f"a-{n:06}.safetensors" for n in expected} | {"a.safetensors"}


def test_both_ways_to_say_how_often(options: SavingOptions) -> None:
    (problem,) = options.model_copy(update={"save_n_epoch_ratio": 2, "save_every_n_epochs": 1}).problems()
    assert problem.option == "save_n_epoch_ratio"
