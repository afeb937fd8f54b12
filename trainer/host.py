"""Everything that differs between Linux, macOS and Windows, in one place; standard library only at import.

The set-up script uses it before anything is installed, so psutil is imported inside the functions that need it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

WINDOWS = sys.platform == "win32"


def venv_python(venv: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def hand_over(argv: list[str], *, environment: dict[str, str] | None = None) -> NoReturn:
    """Go on as another program: in place of this process (Windows: as its child, whose exit code is passed on)."""
    env = {**os.environ, **(environment or {})}
    if WINDOWS:
        with subprocess.Popen(argv, env=env) as child:
            while True:
                with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C reaches the child as well, which ends by itself
                    sys.exit(child.wait())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], argv, env)


def is_root() -> bool:
    """Whether we may install system packages without asking (never on Windows)."""
    return not WINDOWS and os.geteuid() == 0


def port_is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if not WINDOWS:  # there this flag would let us take over a port in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def detached() -> dict[str, Any]:
    """Keyword arguments for `subprocess.Popen` that give the child its own process group, free of our terminal."""
    if WINDOWS:
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]
        return {"creationflags": flags}
    return {"start_new_session": True}


def process_started(pid: int) -> float | None:
    """Seconds since the epoch when the process began, None when there is no such (living) process.

    The pair (pid, start time) names a process for good; a pid alone is given to another one sooner or later.
    """
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None


def is_alive(pid: int, started: float) -> bool:
    """Whether the very process (pid, start time) still runs."""
    now = process_started(pid)
    return now is not None and abs(now - started) < 1.0


def end_tree(pid: int, *, include_root: bool = True, grace_seconds: float = 5.0) -> None:
    """Ask a process and all its descendants to end, and kill what is left after the grace time."""
    import psutil

    try:
        root = psutil.Process(pid)
        family = root.children(recursive=True) + ([root] if include_root else [])
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(family, timeout=grace_seconds)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=grace_seconds)


def end_group(pid: int, *, kill: bool = False) -> None:
    """Signal the process group led by `pid` (on Windows: end its tree)."""
    if WINDOWS:
        end_tree(pid, grace_seconds=0 if kill else 5)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL if kill else signal.SIGTERM)


def end_rest_of_group(grace_seconds: float = 5.0) -> None:
    """End every process of the group this process leads, but itself: also orphans whose launcher is gone.

    Where this process leads no group of its own (started by hand in a shell, Windows), its descendants are ended.
    """
    import psutil

    me = os.getpid()
    if WINDOWS or os.getpgrp() != me:
        end_tree(me, include_root=False, grace_seconds=grace_seconds)
        return
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if process.pid != me and os.getpgid(process.pid) == me:
                process.terminate()
                members.append(process)
    _, left = psutil.wait_procs(members, timeout=grace_seconds)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=grace_seconds)


def sync_folder(folder: Path) -> None:
    """Make a rename inside the folder survive a power cut (Windows needs and offers no such call)."""
    if not WINDOWS:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_folder(new: Path, old: Path) -> None:
    """Put a folder in another's place, for good; the old one is deleted only after the new one stands."""
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    if old.exists():
        old.rename(aside)
    new.rename(old)
    sync_folder(old.parent)
    shutil.rmtree(aside, ignore_errors=True)


def private(path: Path) -> None:
    """Let only the owner read a file or folder (Windows: the user's profile already does)."""
    if not WINDOWS:
        path.chmod(0o700 if path.is_dir() else 0o600)


def has_display() -> bool:
    """Whether a browser opened here would be seen by the person who started us."""
    if WINDOWS or sys.platform == "darwin":
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def has_keyboard() -> bool:
    """Whether somebody sits at a terminal and can be asked for a key."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def keys() -> Iterator[Callable[[], str]]:
    """A function that waits for the next key at the terminal and gives it in lower case: "s", "esc"; "" at the end.

    No Return is needed, and keys pressed ahead count. Arrows and the like are passed over; Ctrl+C interrupts as usual.
    """
    if WINDOWS:
        yield _read_key_windows
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSADRAIN)  # its default would throw away what is already typed
        yield lambda: _read_key_posix(terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _read_key_windows() -> str:
    import msvcrt

    while (key := msvcrt.getwch()) in ("\x00", "\xe0"):  # type: ignore[attr-defined]  # the first half of a special key
        msvcrt.getwch()  # type: ignore[attr-defined]
    if key == "\x03":  # unlike input(), getwch gives Ctrl+C as a character
        raise KeyboardInterrupt
    return "esc" if key == "\x1b" else str(key).lower()


def _read_key_posix(terminal: int) -> str:
    import select

    while (key := os.read(terminal, 1)) == b"\x1b":
        # what an arrow key sends begins like Esc, and the rest follows at once
        if not select.select([terminal], [], [], 0.05)[0]:
            return "esc"
        os.read(terminal, 16)
    return key.decode(errors="replace").lower()


def cache_folder() -> Path:
    """Where what can be made again is kept, for this user; STUDIO_CACHE in the environment names another place."""
    if named := os.environ.get("STUDIO_CACHE"):
        return Path(named)
    if WINDOWS:
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "training-studio"


def knows_change_time() -> bool:
    """Whether a file's ctime is the time of its last change, which no program can set (Windows: of its creation)."""
    return not WINDOWS


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds the path, or the nearest existing folder above it."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_writable(folder: Path) -> bool:
    """Whether a file can be made in the folder, or in the nearest existing folder above it.

    Tried with a real file: permission bits lie for root, on network drives and on Windows.
    """
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    probe = folder / f".write-test-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def describe() -> dict[str, str]:
    """Operating system, host, user and Python, for environment.json."""
    return {
        "os": platform.platform(),
        "host": platform.node(),
        "user": getpass.getuser(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
