"""Which files a run may write over: none but those that a resumed run makes once more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.hooks.saving import Plan, SavingOptions, clash_problem, plan_saves, written_again
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
