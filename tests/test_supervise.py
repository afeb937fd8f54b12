"""The supervisor: real processes, real ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from trainer import host
from trainer.run_folder import Job, RunFolder, Status

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}

FINISH = """
import sys
from pathlib import Path
from trainer.events import Events, Finished
Events(Path(sys.argv[1]) / "events.jsonl").emit(Finished(3, "x", 1.0))
print("done")
"""
STOPPABLE = """
import sys, time
from pathlib import Path
from trainer.events import Events, Phase, Stopped
from trainer.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
events = Events(folder.events_file)
events.emit(Phase("training"))
while not folder.take("stop"):
    time.sleep(0.05)
events.emit(Stopped(7, "state"))
"""
WITH_CHILDREN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
time.sleep(100)
"""


def start(folder: RunFolder, code: str, *, locks: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_job(Job((sys.executable, "-c", code, str(folder.path)), str(ROOT), {}, locks))
    return subprocess.Popen([sys.executable, "-m", "trainer.supervise", str(folder.path)], env=ENV, **host.detached())


def wait(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def state(folder: RunFolder) -> str:
    status = folder.status()
    return status.state if status else ""


def end(folder: RunFolder, process: subprocess.Popen[bytes]) -> Status:
    process.wait(30)
    status = folder.status()
    assert status is not None
    return status


def test_a_job_that_finishes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a b ü")
    status = end(folder, start(folder, FINISH))
    assert status.state == "finished" and status.exit_code == 0 and status.ended
    assert folder.console_log.read_text() == "done\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("pass", "without saying"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os.kill(os.getpid(), 15)", "SIGTERM"),
    ],
)
def test_a_bad_end_is_never_a_good_one(tmp_path: Path, code: str, said: str) -> None:
    folder = RunFolder(tmp_path)
    status = end(folder, start(folder, f"print('last words', flush=True); {code}"))
    assert status.state == "failed" and said in status.cause and status.last_lines == ("last words",)


def test_a_signal_hidden_by_the_launcher_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    words = "Command ['x'] died with <Signals.SIGKILL: 9>."
    status = end(folder, start(folder, f'print("{words}"); raise SystemExit(1)'))
    assert status.exit_code == 1 and "ran out of memory" in status.cause


def test_the_errors_sentence_is_the_cause(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    code = "import sys, pathlib; from trainer.events import *; "
    code += "Events(pathlib.Path(sys.argv[1]) / 'events.jsonl').emit(Error('the disk is full')); sys.exit(2)"
    status = end(folder, start(folder, code))
    assert (status.state, status.cause, status.exit_code) == ("failed", "the disk is full", 2)


def test_stop_asks_and_the_run_says_stopped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    process = start(folder, STOPPABLE)
    wait(lambda: folder.events_file.exists())
    folder.ask("stop")
    assert end(folder, process).state == "stopped"


def test_a_run_that_does_not_heed_stop_is_ended_with_its_children(tmp_path: Path) -> None:
    from trainer.supervise import supervise

    folder = RunFolder(tmp_path)
    folder.write_job(Job((sys.executable, "-c", WITH_CHILDREN), str(ROOT)))
    folder.ask("stop")
    status = supervise(folder, grace_seconds=1.5)
    assert status.state == "killed"
    assert not psutil.pid_exists(int(folder.console_log.read_text().split()[0]))


def test_a_run_that_heeds_stop_may_take_its_time_to_save(tmp_path: Path) -> None:
    from trainer.supervise import supervise

    slow = STOPPABLE.replace("events.emit(Stopped", "time.sleep(3)\nevents.emit(Stopped")
    folder = RunFolder(tmp_path)
    folder.write_job(Job((sys.executable, "-c", slow, str(tmp_path)), str(ROOT)))
    folder.ask("stop")
    assert supervise(folder, grace_seconds=2.0).state == "stopped"


def test_a_launcher_that_is_killed_leaves_no_orphans(tmp_path: Path) -> None:
    """As accelerate's launcher: it dies, its child trainer would go on for ever."""
    folder = RunFolder(tmp_path)
    process = start(folder, WITH_CHILDREN)
    wait(lambda: folder.console_log.exists() and folder.console_log.read_text().strip())
    child = int(folder.console_log.read_text().split()[0])
    psutil.Process(child).parent().send_signal(signal.SIGKILL)  # type: ignore[union-attr]
    assert end(folder, process).state == "failed"
    assert not psutil.pid_exists(child)


def test_killing_the_group_ends_everything_and_reads_as_died(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    process = start(folder, WITH_CHILDREN)
    wait(lambda: folder.console_log.exists() and folder.console_log.read_text().strip())
    child = int(folder.console_log.read_text().split()[0])
    host.end_group(process.pid, kill=True)
    process.wait(10)
    wait(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert state(folder) == "died"


Started = tuple[RunFolder, "subprocess.Popen[bytes]"]


def one_running_one_queued(place: Path) -> tuple[Started, Started]:
    """Two jobs over one lock."""
    lock = (str(place / "device"),)
    first, second = RunFolder(place / "1"), RunFolder(place / "2")
    one = start(first, STOPPABLE, locks=lock)
    wait(lambda: state(first) == "running")
    two = start(second, FINISH, locks=lock)
    wait(lambda: state(second) == "queued")
    return (first, one), (second, two)


def test_the_second_job_waits_for_the_first_and_then_runs(tmp_path: Path) -> None:
    (first, one), (second, two) = one_running_one_queued(tmp_path)
    status = second.status()
    assert status and status.waiting_for == "1"
    first.ask("stop")
    assert end(first, one).state == "stopped"
    assert end(second, two).state == "finished"


def test_a_job_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_job(Job((str(tmp_path / "no such program"),), str(ROOT)))
    process = subprocess.Popen([sys.executable, "-m", "trainer.supervise", str(tmp_path)], env=ENV, **host.detached())
    status = end(folder, process)
    assert status.state == "failed" and "no such program" in status.cause


def test_a_queued_job_can_be_taken_out(tmp_path: Path) -> None:
    (first, one), (second, two) = one_running_one_queued(tmp_path)
    second.ask("stop")
    assert end(second, two).state == "stopped"
    assert not second.events_file.exists()
    first.ask("stop")
    one.wait(20)


def test_the_trainer_outlives_whoever_started_it(tmp_path: Path) -> None:
    """The page's server is killed: the supervisor and its job go on."""
    folder = RunFolder(tmp_path)
    folder.write_job(Job((sys.executable, "-c", STOPPABLE, str(tmp_path)), str(ROOT)))
    server = "import subprocess, sys, time; from trainer import host; "
    server += f"subprocess.Popen([sys.executable, '-m', 'trainer.supervise', {str(tmp_path)!r}], **host.detached()); "
    server += "time.sleep(100)"
    page = subprocess.Popen([sys.executable, "-c", server], env=ENV)
    wait(lambda: state(folder) == "running")
    page.kill()
    page.wait()
    time.sleep(0.5)
    assert state(folder) == "running"
    folder.ask("stop")
    wait(lambda: state(folder) == "stopped")
