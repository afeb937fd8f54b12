"""Starting, asking, ending and reading runs, with real processes and real run folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kohya_gui import runs
from kohya_gui.run_view import RunReader, RunView, read_trigger
from trainer import events as ev
from trainer import host
from trainer.errors import RunError
from trainer.events import Events
from trainer.run_folder import ENDED, Job, RunFolder, SavedFile, Status, output_lock

WRITER = Path(__file__).with_name("writer.py")
PROJECT = Path(__file__).resolve().parents[2]
RATE = {"unet": 1e-4}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder of runs; whatever still lives in it at the end is ended."""
    root = tmp_path / "runs ü"
    root.mkdir()
    yield root
    for path in root.iterdir():
        if not path.name.startswith("."):
            runs.kill(RunFolder(path), grace_seconds=1)


def start_writer(root: Path, *, steps: int = 20, seconds: float = 0.02, end: str = "finish") -> RunFolder:
    folder = RunFolder.create(root, "house")
    argv = (sys.executable, str(WRITER), str(folder.path), str(root.parent / "out"), str(steps), str(seconds), end)
    runs.start_job(folder, Job(argv, str(PROJECT), {"PYTHONPATH": str(PROJECT)}, runs.locks_of(folder)))
    return folder


def view_of(folder: RunFolder) -> RunView:
    view = RunReader(folder.path.parent).view(folder.path.name)
    assert view is not None
    return view


def wait_for(folder: RunFolder, wanted: Callable[[RunView], bool], seconds: float = 30) -> RunView:
    end = time.monotonic() + seconds
    while not wanted(view := view_of(folder)):
        assert time.monotonic() < end, f"{view.state} {view.activity} {view.cause} {view.last_lines}"
        time.sleep(0.05)
    return view


def written(root: Path, *events: ev.Event, state: Status | None = None) -> RunFolder:
    """A run folder whose process is this one."""
    folder = RunFolder.create(root, "house")
    writer = Events(folder.events_file)
    for event in events:
        writer.emit(event)
    writer.close()
    me = os.getpid()
    folder.write_status(state or Status("running", me, host.process_started(me) or 0, begun=time.time()))
    return folder


def start_event(total: int = 100, first: int = 0) -> ev.Start:
    return ev.Start("train_network", "house", total, 10, 10, first, 12, "cpu")


def step(number: int, loss: float = 0.1, seconds: float = 0.5) -> ev.Step:
    return ev.Step(number, number // 10 + 1, loss, loss, RATE, 0.1, seconds, 512.0)


# starting


def test_the_command_of_a_training_is_explicit_and_holds_no_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path, "house")
    folder.config_file.write_text('[saving]\noutput_dir = "/some where/out"\noutput_name = "x; touch CANARY"\n')
    jobs: list[Job] = []
    monkeypatch.setattr(runs, "start_job", lambda folder, job: jobs.append(job))
    runs.start(folder, task="train_network", num_cpu_threads=3)
    argv = list(jobs[0].argv)
    assert argv[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    for flag, value in {
        "--num_processes": "1",
        "--num_machines": "1",
        "--mixed_precision": "no",
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": "3",
        "--run_dir": str(folder.path),
    }.items():
        assert argv[argv.index(flag) + 1] == value
    assert argv[argv.index("trainer") - 1 : argv.index("trainer") + 2] == ["-m", "trainer", "train_network"]
    # accelerate reads no other defaults than these
    assert Path(argv[argv.index("--config_file") + 1]) == folder.path / "accelerate.yaml"
    assert not any("CANARY" in word for word in argv)


def test_runs_into_the_same_folder_share_a_lock(tmp_path: Path) -> None:
    locks = []
    a, b = tmp_path / "a" / "out", tmp_path / "b" / "out"
    for place in (a, tmp_path / "a" / ".." / "a" / "out", b):
        folder = RunFolder.create(tmp_path, "house")
        folder.config_file.write_text(f'output_dir = "{place}"\n')
        locks.append(runs.locks_of(folder))
    assert locks[0] == locks[1] != locks[2]
    # one device, and the very lock that a trainer started by hand takes
    assert {pair[0] for pair in locks} == {str(tmp_path / ".locks" / "device.lock")}
    assert locks[0][1] == str(output_lock(a).path)


def test_settings_of_accelerate_in_the_environment_do_not_reach_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    folder = RunFolder.create(root, "house")
    program = "import os; print([k for k in os.environ if k.startswith('ACCELERATE_')], os.environ['PYTHONUNBUFFERED'])"
    runs.start_job(folder, Job((sys.executable, "-c", program), str(PROJECT)))
    view = wait_for(folder, lambda view: not view.is_living)
    assert view.last_lines == ("[] 1",)
    # it ended well but never said that it finished: that is no success
    assert view.state == "failed"


def test_a_program_that_is_not_there_is_a_failure_with_a_cause(root: Path) -> None:
    folder = RunFolder.create(root, "house")
    try:
        runs.start_job(folder, Job(("/no/such/program",), str(PROJECT)))
    except RunError as error:
        assert "could not be started" in str(error)
    else:
        assert wait_for(folder, lambda view: not view.is_living).cause


# a whole run


def test_a_run_is_followed_to_its_end(root: Path) -> None:
    folder = start_writer(root)
    reader = RunReader(root)
    assert reader.newest_living() == folder.path.name
    wait_for(folder, lambda view: view.activity.name == "training")
    view = wait_for(folder, lambda view: view.state == "finished")
    assert view.step is not None and view.step.step == 20 and view.fraction == 1
    assert view.finished is not None and Path(view.finished.path).exists()
    assert [(pair.before.step, pair.newest.step if pair.newest else None) for pair in view.samples] == [(0, 20)] * 3
    assert view.warnings == ("mixed_precision: bf16 on a CPU is slow",)
    assert view.model is not None and view.model.path == view.finished.path
    assert view.seconds_median == pytest.approx(0.02) and len(view.curve) == 20
    assert reader.newest_living() == "" and reader.newest() == folder.path.name
    row = reader.rows()[0]
    assert (row.state, row.step, row.total_steps) == ("finished", 20, 20) and row.loss


def test_stop_is_asked_once_and_names_where_to_go_on(root: Path) -> None:
    folder = start_writer(root, steps=2000, seconds=0.02)
    wait_for(folder, lambda view: view.step is not None)
    runs.stop(folder)
    asked = runs.stop_asked(folder)
    runs.stop(folder)
    assert asked is not None and runs.stop_asked(folder) == asked
    view = wait_for(folder, lambda view: not view.is_living)
    assert view.state == "stopped" and view.stopped is not None
    assert Path(view.stopped.state).is_dir()
    runs.stop(folder)
    assert not folder.asked("stop")


def test_a_removed_run_leaves_the_list_and_nothing_is_lost(root: Path) -> None:
    folder = start_writer(root, steps=2000, seconds=0.02)
    wait_for(folder, lambda view: view.step is not None)
    with pytest.raises(RunError, match="under way"):
        runs.remove(folder)
    runs.save_now(folder)
    view = wait_for(folder, lambda view: view.model is not None)
    runs.stop(folder)
    wait_for(folder, lambda view: not view.is_living)
    files = {path.relative_to(folder.path) for path in folder.path.rglob("*")}
    target = runs.remove(folder)
    assert target == root / ".removed" / folder.path.name
    assert {path.relative_to(target) for path in target.rglob("*")} == files
    assert view.model is not None and Path(view.model.path).exists()
    reader = RunReader(root)
    assert reader.rows() == [] and reader.view(folder.path.name) is None and reader.newest() == ""


def test_a_run_folder_that_holds_a_model_is_not_moved(root: Path) -> None:
    folder = written(root, state=Status("stopped", 1, 0.0))
    model = folder.path / "house.safetensors"
    folder.add_file(SavedFile(str(model), "model", 1, 1, ""))
    with pytest.raises(RunError, match="house.safetensors lies in the run's own folder"):
        runs.remove(folder)
    assert folder.path.is_dir()


def test_save_and_sample_now(root: Path) -> None:
    folder = start_writer(root, steps=2000, seconds=0.02)
    wait_for(folder, lambda view: view.step is not None)
    runs.save_now(folder)
    runs.sample_now(folder)
    view = wait_for(folder, lambda view: view.model is not None and all(pair.newest for pair in view.samples))
    assert view.model is not None and Path(view.model.path).exists()


def test_kill_ends_the_whole_group_and_says_so(root: Path) -> None:
    folder = start_writer(root, steps=2000, seconds=0.02)
    view = wait_for(folder, lambda view: view.step is not None)
    assert view.status is not None
    family = [psutil.Process(view.status.pid), *psutil.Process(view.status.pid).children(recursive=True)]
    assert len(family) > 1
    runs.kill(folder)
    psutil.wait_procs(family, timeout=5)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    view = view_of(folder)
    assert view.state == "killed" and "by hand" in view.cause


def test_a_killed_supervisor_is_seen_as_dead(root: Path) -> None:
    folder = start_writer(root, steps=2000, seconds=0.02)
    status = wait_for(folder, lambda view: view.step is not None).status
    assert status is not None
    os.killpg(status.pid, signal.SIGKILL)
    view = wait_for(folder, lambda view: not view.is_living)
    assert view.state == "died" and view.cause and view.last_lines
    assert view.fraction < 1


@pytest.mark.parametrize(("end", "cause"), [("crash", "out of memory"), ("exit", "exit code 1"), ("die", "SIGKILL")])
def test_a_crash_names_its_cause(root: Path, end: str, cause: str) -> None:
    folder = start_writer(root, end=end)
    view = wait_for(folder, lambda view: not view.is_living)
    assert view.state == "failed" and cause in view.cause
    assert view.last_lines and view.finished is None and view.fraction < 1
    if end == "exit":
        assert view.last_lines[-1] == "RuntimeError: the writer broke"


def test_a_second_run_waits_for_the_first_and_says_for_which(root: Path) -> None:
    first = start_writer(root, steps=2000, seconds=0.02)
    wait_for(first, lambda view: view.step is not None)
    second = start_writer(root, steps=5)
    view = wait_for(second, lambda view: view.state == "queued")
    assert first.path.name in view.activity.name
    runs.kill(first)
    wait_for(second, lambda view: view.state == "finished")


def test_the_run_outlives_the_process_that_started_it(root: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from tests.kohya_gui.test_runs import start_writer;"
        "print(start_writer(Path(sys.argv[1]), steps=2000, seconds=0.02).path)"
    )
    argv = [sys.executable, "-c", program, str(root), str(PROJECT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=PROJECT)
    folder = RunFolder(Path(done.stdout.strip()))
    wait_for(folder, lambda view: view.step is not None and view.step.step > 5)
    runs.stop(folder)
    wait_for(folder, lambda view: view.state == "stopped")


# reading


def test_a_half_written_line_waits_for_its_end(root: Path) -> None:
    folder = written(root, start_event(), step(1))
    reader = RunReader(root)
    line = json.dumps({"kind": "step", "time": time.time(), **vars(step(2))}) + "\n"
    with folder.events_file.open("a") as file:
        file.write(line[:40])
        file.flush()
        view = reader.view(folder.path.name)
        assert view is not None and view.step is not None and view.step.step == 1
        file.write(line[40:])
    view = reader.view(folder.path.name)
    assert view is not None and view.step is not None and view.step.step == 2
    assert len(view.curve) == 2


def test_phases_carry_count_and_clock(root: Path) -> None:
    folder = written(root, ev.Phase("scanning", 3, 12), ev.Phase("caching", 1, 12))
    first = view_of(folder)
    assert (first.activity.name, first.activity.done, first.activity.total) == ("caching", 1, 12)
    writer = Events(folder.events_file)
    time.sleep(0.05)
    writer.emit(ev.Phase("caching", 2, 12))
    again = view_of(folder)
    assert again.activity.done == 2 and again.activity_since == first.activity_since
    writer.emit(step(1))
    assert view_of(folder).activity.name == "training"


def test_before_any_event_the_run_still_gives_a_sign(root: Path) -> None:
    view = view_of(written(root))
    assert view.activity.name == "starting the trainer" and time.time() - view.activity_since < 5
    assert view.end_time is None and view.step is None


def test_a_job_without_a_status_is_starting_and_later_dead(root: Path) -> None:
    folder = RunFolder.create(root, "house")
    folder.write_job(Job(("x",), "."))
    assert view_of(folder).state == "starting"
    long_ago = time.time() - 3600
    os.utime(folder.job_file, (long_ago, long_ago))
    view = view_of(folder)
    assert view.state == "died" and "never began" in view.cause


def test_the_end_time_counts_the_pauses_that_the_configuration_plans(root: Path) -> None:
    folder = written(root)
    folder.config_file.write_text("config_version = 1\n[sample_pictures]\nsample_every_n_epochs = 5\n")
    now = time.time()
    lines: list[dict[str, Any]] = [{"kind": "start", "time": now, **vars(start_event(100))}]
    lines += [
        {"kind": "phase", "time": now - 8, "name": "sampling"},
        {"kind": "phase", "time": now, "name": "training"},
    ]
    lines += [{"kind": "step", "time": now + n / 2, **vars(step(n, seconds=0.5))} for n in range(1, 11)]
    folder.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    view = view_of(folder)
    assert view.end_time == pytest.approx(now + 5 + 90 * 0.5 + 2 * 8)
    assert view.seconds_median == pytest.approx(0.5)


def test_a_resumed_run_compares_with_its_first_samples(root: Path) -> None:
    prompt = ("samples/a.png", "a house", 1)
    folder = written(root, start_event(first=50), ev.Sample(50, 0, *prompt), ev.Sample(60, 0, *prompt))
    (pair,) = view_of(folder).samples
    assert pair.before.step == 50 and pair.newest is not None and pair.newest.step == 60


def test_every_problem_of_a_configuration_is_listed(root: Path) -> None:
    problems = [{"option": "seed", "message": "should be a whole number", "value": "'x'"}, {"option": "", "new": 1}]
    folder = written(root, ev.Error("two things", problems), state=Status("failed", 1, 0.0, 2, ended=time.time()))
    view = view_of(folder)
    assert view.cause == "two things" and view.problems[0] == "seed: should be a whole number (got 'x')"


PROBLEMS = [{"option": "seed", "message": "should be a whole number"}]


@pytest.mark.parametrize(
    ("events", "exit_code", "shown"),
    [
        ((ev.Error("seed: should be a whole number", PROBLEMS),), 2, "refused"),
        ((), None, "refused"),
        ((ev.Error("KeyError: 'x'. This is a fault of the program"),), 1, "failed"),
        ((start_event(), ev.Error("the disk is full", PROBLEMS)), 2, "failed"),
        ((), 1, "failed"),
    ],
)
def test_what_never_began_was_not_started(
    root: Path, events: tuple[ev.Event, ...], exit_code: int | None, shown: str
) -> None:
    folder = written(root, *events, state=Status("failed", 1, 0.0, exit_code, cause="could not be started: x"))
    assert (view_of(folder).shown, RunReader(root).rows()[0].shown) == (shown, shown)


def test_a_stopping_run_is_listed_as_stopping(root: Path) -> None:
    folder = written(root, start_event(), step(1))
    reader = RunReader(root)
    assert reader.rows()[0].shown == "running"
    runs.stop(folder)
    assert (view_of(folder).shown, reader.rows()[0].shown) == ("stopping", "stopping")


def test_an_ended_run_goes_on_from_its_newest_resume_point(root: Path) -> None:
    first, second = (root.parent / "out" / name for name in ("house-step00000010-state", "house-step00000020-state"))
    first.mkdir(parents=True)
    folder = written(root, start_event(), step(1))
    assert view_of(folder).resume_from is None
    folder.write_job(Job(("x",), "."))
    folder.write_status(Status("killed", 1, 0.0, ended=time.time()))
    assert view_of(folder).resume_from is None
    # it went on itself, and made nothing of its own yet
    folder.config_file.write_text(f'[resume]\nresume = "{first.as_posix()}"\n')
    assert view_of(folder).resume_from == first
    Events(folder.events_file).emit(ev.Checkpoint(20, "state", str(second), 1000))
    assert view_of(folder).resume_from is None, "a resume point that somebody deleted"
    second.mkdir()
    assert view_of(folder).resume_from == second
    folder.write_status(Status("finished", 1, 0.0, 0, ended=time.time()))
    assert view_of(folder).resume_from is None


def test_names_that_lead_elsewhere_are_no_runs(root: Path) -> None:
    written(root)
    reader = RunReader(root)
    for name in ("", ".", "..", "../runs ü", "/etc", ".locks", "no such run", "a\0b"):
        assert reader.view(name) is None


def test_the_trigger_word_comes_from_the_data_set(root: Path) -> None:
    folder = written(root)
    assert read_trigger(folder) == ""
    folder.dataset_file.write_text(
        '[[datasets]]\n[[datasets.subsets]]\nis_reg = true\nclass_tokens = "house"\n'
        '[[datasets.subsets]]\nclass_tokens = "sks house"\n'
    )
    assert read_trigger(folder) == "sks house"


def test_a_hundred_thousand_steps_are_read_quickly_and_then_for_nothing(root: Path) -> None:
    folder = written(root)
    now = time.time()
    with folder.events_file.open("w") as file:
        file.write(json.dumps({"kind": "start", "time": now, **vars(start_event(100_000))}) + "\n")
        for number in range(1, 100_001):
            file.write(json.dumps({"kind": "step", "time": now + number, **vars(step(number))}) + "\n")
    reader = RunReader(root)
    begun = time.perf_counter()
    view = reader.view(folder.path.name)
    first = time.perf_counter() - begun
    assert view is not None and view.step is not None and view.step.step == 100_000
    assert len(view.curve) <= 401
    begun = time.perf_counter()
    for _ in range(10):
        reader.view(folder.path.name)
        reader.rows()
    again = (time.perf_counter() - begun) / 10
    assert first < 15 and again < 0.25, (first, again)
    assert again < first / 10


def test_ended_states_are_all_shown_in_words() -> None:
    from kohya_gui.pages.run_parts import WORDS

    assert set(ENDED) < set(WORDS)
