"""Watch over one job: `python -m trainer.supervise RUN_FOLDER` starts it, waits, and writes how it ended. No torch.

The supervisor leads the job's process group. It waits for the job's locks (device, output folder), so that queued runs
go on one after another with the page closed; the operating system frees the locks whichever way it ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer import host
from trainer.events import Error, Finished, Stopped, read_events
from trainer.run_folder import Lock, RunFolder, State, Status, holding

GRACE_SECONDS = 60.0
POLL_SECONDS = 0.2


def supervise(folder: RunFolder, *, grace_seconds: float = GRACE_SECONDS) -> Status:
    """Run the job of a folder to its end and return the end state, which is also written."""
    me = os.getpid()
    status = Status("starting", me, host.process_started(me) or 0.0, begun=time.time())
    folder.write_status(status)
    job = folder.job()

    def waiting(holder: Mapping[str, Any]) -> None:
        if folder.take("stop"):
            raise _Cancelled
        name = Path(str(holder.get("run", ""))).name
        if folder.status_file.exists() and (now := folder.status()) and now.waiting_for != name:
            folder.write_status(replace(status, state="queued", waiting_for=name))

    try:
        with holding([Lock(Path(p)) for p in job.locks], str(folder.path), waiting):
            folder.write_status(status)
            code = _run(folder, status, grace_seconds=grace_seconds)
            end = end_of(folder, status, code)
    except OSError as error:
        end = replace(status, state="failed", cause=f"could not be started: {error}", ended=time.time())
    except _Cancelled:
        end = replace(status, state="stopped", cause="taken out of the queue before it began", ended=time.time())
    folder.write_status(end)
    return end


class _Cancelled(Exception):
    """The job was stopped while it waited."""


def _run(folder: RunFolder, status: Status, *, grace_seconds: float) -> int:
    """Start the job and wait for its exit code; a stop request that is not heeded ends it after the grace time."""
    job = folder.job()
    with folder.console_log.open("ab") as console:
        process = subprocess.Popen(
            job.argv,
            cwd=job.cwd,
            env={**os.environ, **job.env, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    folder.write_status(replace(status, state="running"))
    asked_at: float | None = None
    while (code := process.poll()) is None:
        time.sleep(POLL_SECONDS)
        # a trainer that took the request away is heeding it, and may take its time to save
        asked_at = (asked_at or time.monotonic()) if folder.asked("stop") else None
        if asked_at is not None and time.monotonic() - asked_at > grace_seconds:
            host.end_tree(process.pid)
    # a launcher that died leaves its children behind: nothing of the job outlives it
    host.end_rest_of_group()
    return code


def end_of(folder: RunFolder, status: Status, code: int) -> Status:
    """The end state: what the trainer said last counts, and an exit code nobody explained is a failure."""
    events = [line.event for line in read_events(folder.events_file)[0]]
    last = events[-1] if events else None
    state: State
    cause = ""
    if isinstance(last, Finished) and code == 0:
        state = "finished"
    elif isinstance(last, Stopped) and code == 0:
        state = "stopped"
    elif isinstance(last, Error):
        state, cause = "failed", last.message
    elif folder.take("stop"):
        state, cause = "killed", f"did not stop within {GRACE_SECONDS:.0f} s and was ended"
    else:
        state, cause = "failed", _explain(code, folder.last_lines(1))
    lines = () if state in ("finished", "stopped") else tuple(folder.last_lines())
    return replace(status, state=state, exit_code=code, cause=cause, last_lines=lines, ended=time.time())


def _explain(code: int, last_words: Sequence[str]) -> str:
    """An exit code in words. accelerate's launcher hides a signal behind exit code 1, but names it in its last line."""
    named = re.search(r"died with <Signals\.(SIG\w+)", last_words[-1]) if last_words else None
    name = named[1] if named else signal.Signals(-code).name if code < 0 else "SIGKILL" if code == 137 else ""
    if name == "SIGKILL":
        return "the trainer was killed (SIGKILL), most often because the machine ran out of memory"
    if name:
        return f"the trainer was ended by the signal {name}"
    if code == 0:
        return "ended without saying that it finished"
    return f"ended with exit code {code}; the last lines of the log say more"


def main() -> int:
    """Entry point; the exit code is the job's."""
    folder = RunFolder(Path(sys.argv[1]).absolute())
    end = supervise(folder)
    return end.exit_code or 0


if __name__ == "__main__":
    raise SystemExit(main())
