"""Start, stop and end runs; a run is a process of its own and all that is known of it stands in its folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from kohya_gui.settings import PROJECT
from trainer import host, store
from trainer.errors import RunError
from trainer.run_folder import ENDED, Job, Request, RunFolder, State, output_lock

START_SECONDS = 30.0
STOP_GRACE_SECONDS = 60.0
REMOVED = ".removed"
_STOP_NOTE = ".stop-asked"
_LIVING: tuple[State, ...] = ("queued", "starting", "running")

# What `accelerate config` may have written for this account must not decide here: with this file it is not read.
_ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: 'no'
num_machines: 1
num_processes: 1
use_cpu: {use_cpu}
debug: false
"""


def start(folder: RunFolder, *, task: str, num_cpu_threads: int | None = None) -> None:
    """Start the run described by the folder's config.toml under a supervisor; returns once it is queued or starting.

    RunError says why it could not be started.
    """
    on_cpu = not has_card()
    # A core is left to the page and the system: OpenMP threads that wait for a busy core cost many times a step.
    threads = num_cpu_threads or (max(num_cores() - 1, 1) if on_cpu else min(2, num_cores()))
    neutral = folder.path / "accelerate.yaml"
    neutral.write_text(_ACCELERATE.format(use_cpu=str(on_cpu).lower()), encoding="utf-8")
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(neutral)]
    argv += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    argv += ["--num_cpu_threads_per_process", str(threads), *(["--cpu"] if on_cpu else [])]
    argv += ["-m", "trainer", task, "--config_file", str(folder.config_file), "--run_dir", str(folder.path)]
    start_job(folder, Job(tuple(argv), str(PROJECT), {"PYTHONUNBUFFERED": "1"}, locks_of(folder)))


def start_job(folder: RunFolder, job: Job) -> None:
    """Write job.json, start the supervisor as a process that outlives the page, and wait for its first word."""
    folder.write_job(job)
    # Settings of accelerate or Gradio in our environment are not the run's.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "GRADIO_"))}
    argv = [sys.executable, "-m", "trainer.supervise", str(folder.path)]
    with folder.console_log.open("ab") as console:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd=job.cwd,
            env=env,
            **host.detached(),
        )
    # Reaps it at its end; without this it would stay a zombie for as long as the page lives.
    threading.Thread(target=process.wait, daemon=True, name=f"reap-{process.pid}").start()
    deadline = time.monotonic() + START_SECONDS
    while folder.status() is None:
        if process.poll() is not None and folder.status() is None:
            raise RunError(f"the run could not be started: {_last_words(folder)}")
        if time.monotonic() > deadline:
            raise RunError(f"the run's supervisor has said nothing for {START_SECONDS:.0f} seconds")
        time.sleep(0.05)


def locks_of(folder: RunFolder) -> tuple[str, ...]:
    """The lock files a run holds while it runs: the device's, and that of the folder its models go to, which a
    trainer started by hand holds too."""
    values = store.read_config(folder.config_file) if folder.config_file.exists() else {}
    output_dir = Path(str(values["output_dir"].value) if "output_dir" in values else "outputs")
    device = folder.path.parent / ".locks" / "device.lock"
    return str(device), str(output_lock(PROJECT / output_dir).path)


def stop(folder: RunFolder) -> None:
    """Ask the trainer to save its state and stop after the step it is at."""
    if _is_living(folder) and stop_asked(folder) is None:
        folder.ask("stop")
        # The trainer takes the request away when it acts on it; this note lets every tab see that Stop was pressed.
        (folder.path / _STOP_NOTE).touch()


def stop_asked(folder: RunFolder) -> float | None:
    """When Stop was pressed, None when it was not."""
    try:
        return (folder.path / _STOP_NOTE).stat().st_mtime
    except FileNotFoundError:
        return None


def kill(folder: RunFolder, *, grace_seconds: float = 5.0) -> None:
    """End the run's whole process group at once; what was not saved is lost."""
    status = folder.status()
    if status is None or status.state in ENDED:
        return
    host.end_group(status.pid)
    deadline = time.monotonic() + grace_seconds
    while host.is_alive(status.pid, status.started) and time.monotonic() < deadline:
        time.sleep(0.1)
    # The leader goes first and may leave a trainer behind that takes its time: the group is what must be gone.
    host.end_group(status.pid, kill=True)
    while host.is_alive(status.pid, status.started) and time.monotonic() < deadline + grace_seconds:
        time.sleep(0.1)
    now = folder.status()
    if now is not None and now.state in ("died", *_LIVING):
        cause = "was ended by hand; what it had not saved is lost"
        lines = tuple(folder.last_lines())
        folder.write_status(replace(status, state="killed", cause=cause, last_lines=lines, ended=time.time()))


def remove(folder: RunFolder) -> Path:
    """Take an ended run off the list: its folder moves to `.removed` beside the other runs, and nothing is deleted."""
    if _is_living(folder):
        raise RunError("the run is still under way", remedy="Stop it first")
    if inside := next((f.path for f in folder.files() if Path(f.path).is_relative_to(folder.path)), ""):
        raise RunError(f"{inside} lies in the run's own folder", remedy="Move it to another place first")
    place = folder.path.parent / REMOVED
    place.mkdir(exist_ok=True)
    names = (folder.path.name, *(f"{folder.path.name}-{number}" for number in range(2, 1000)))
    target = next(place / name for name in names if not (place / name).exists())
    try:
        folder.path.rename(target)
    except OSError as error:
        raise RunError(f"the folder {folder.path} cannot be moved: {error.strerror}") from error
    return target


def save_now(folder: RunFolder) -> None:
    """Ask for the model as it is after the current step."""
    _ask(folder, "save")


def sample_now(folder: RunFolder) -> None:
    """Ask for sample pictures after the current step."""
    _ask(folder, "sample")


def has_card() -> bool:
    """Whether this machine has a graphics card that a training could use; torch itself is not asked."""
    if sys.platform == "darwin" or Path("/dev/kfd").exists():
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "-L"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout


def num_cores() -> int:
    """The cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ask(folder: RunFolder, request: Request) -> None:
    if _is_living(folder):
        folder.ask(request)


def _is_living(folder: RunFolder) -> bool:
    status = folder.status()
    return status is not None and status.state not in ENDED


def _last_words(folder: RunFolder) -> str:
    return next((line for line in reversed(folder.last_lines()) if line.strip()), "its supervisor ended at once")
