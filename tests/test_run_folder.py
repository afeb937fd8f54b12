"""The run folder: names, requests, states, locks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import host
from trainer.errors import RunError
from trainer.run_folder import (
    Job,
    Lock,
    RunFolder,
    SavedFile,
    Status,
    check_name,
    holding,
    list_runs,
    output_lock,
    write_atomically,
)

HOLD = """
import sys, time
from pathlib import Path
from trainer.run_folder import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.take("other run"), flush=True)
time.sleep(60)
"""


def me() -> tuple[int, float]:
    return os.getpid(), host.process_started(os.getpid()) or 0.0


def test_every_run_gets_its_own_folder(tmp_path: Path) -> None:
    folders = {RunFolder.create(tmp_path, "x").path for _ in range(3)}
    assert len(folders) == 3


@pytest.mark.parametrize("name", ["../../x", "C:\\x", "CON", "nul.txt", "a/b", "x" * 300, "", " ", "a\nb", ".x", "x."])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    assert check_name(name)


@pytest.mark.parametrize("name", ["last", "my house", "mädchen-2", "v1.5_b"])
def test_ordinary_names_are_fine(name: str) -> None:
    assert check_name(name) == ""


def test_requests_are_taken_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.take("stop")
    folder.ask("stop")
    assert folder.asked("stop") and folder.take("stop") and not folder.take("stop")


def test_a_run_whose_process_is_gone_has_died(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = host.process_started(child.pid) or 0.0
    folder.console_log.write_text("one\ntwo 1%\rtwo 100%\n")
    folder.write_status(Status("running", child.pid, started))
    status = folder.status()
    assert status and status.state == "running"
    child.send_signal(signal.SIGKILL)
    child.wait()
    status = folder.status()
    assert status and status.state == "died" and status.last_lines == ("one", "two 100%") and status.cause


def test_a_pid_used_again_is_another_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    pid, started = me()
    folder.write_status(Status("running", pid, started - 1000))
    status = folder.status()
    assert status and status.state == "died"


def test_an_end_state_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_status(Status("finished", 999999, 1.0, exit_code=0))
    status = folder.status()
    assert status and status.state == "finished"


def test_files_are_listed_and_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_file(SavedFile("a", "model", 1, 10, "h"))
    folder.add_file(SavedFile("b", "state", 1, 10, ""))
    folder.add_file(SavedFile("a", "model", 2, 20, "i"))
    assert [(f.path, f.step) for f in folder.files()] == [("b", 1), ("a", 2)]
    folder.remove_file("b")
    assert [f.path for f in folder.files()] == ["a"]


def test_jobs_come_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    job = Job(("python", "-c", "a b"), "/x y", {"A": "1"}, ("l",))
    folder.write_job(job)
    assert folder.job() == job


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name in ("20260101-000000-a", "20260102-000000-b"):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).write_status(Status("finished", 1, 1.0))
    (tmp_path / "not a run").mkdir()
    assert [f.path.name for f in list_runs(tmp_path)] == ["20260102-000000-b", "20260101-000000-a"]


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    path = tmp_path / "device"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=env())
    assert child.stdout and child.stdout.readline().strip() == "True"
    lock = Lock(path)
    assert not lock.take("mine")
    holder = lock.holder()
    assert holder and holder["pid"] == child.pid and holder["run"] == "other run"
    with pytest.raises(RunError, match="other run"), holding([lock], "mine"):
        pass
    child.kill()
    child.wait()
    assert lock.holder() is None
    with holding([lock], "mine"):
        assert (lock.holder() or {})["pid"] == os.getpid()
    assert lock.holder() is None


def test_waiting_for_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "device"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=env())
    assert child.stdout and child.stdout.readline()
    waited: list[str] = []

    def on_wait(holder: object) -> None:
        waited.append(str(holder))
        child.kill()
        child.wait()

    with holding([Lock(path)], "mine", on_wait, poll_seconds=0.01):
        pass
    assert waited and "other run" in waited[0]


def test_output_folders_have_one_lock_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_lock(Path("out")).path == output_lock(tmp_path / "out").path


def test_atomic_writing_leaves_no_trace(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "1")
    write_atomically(tmp_path / "a", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "2"


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def test_the_last_lines_of_a_long_log_are_cheap(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.console_log.write_text("x" * 30 + "\n" * 1 + "line\n" * 2_000_000)
    began = time.monotonic()
    assert folder.last_lines(3) == ["line"] * 3
    assert time.monotonic() - began < 0.5
