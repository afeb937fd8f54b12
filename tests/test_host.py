"""What differs between operating systems, tried on the one we are on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import host

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"


def test_a_process_is_known_by_pid_and_start_time() -> None:
    process = subprocess.Popen(SLEEP, **host.detached())
    started = host.process_started(process.pid)
    assert started is not None and host.is_alive(process.pid, started)
    assert not host.is_alive(process.pid, started - 100)
    host.end_tree(process.pid)
    assert host.process_started(process.pid) is None
    process.wait()


def test_a_tree_ends_with_its_children() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, *SLEEP], stdout=subprocess.PIPE, **host.detached())
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.stdout.close()
    assert host.process_started(child) is not None
    host.end_tree(process.pid, grace_seconds=2)
    assert host.process_started(child) is None
    process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_a_group_ends_though_its_leader_is_gone() -> None:
    code = PARENT.replace("time.sleep(60)", "sys.exit()")
    leader = subprocess.Popen([sys.executable, "-c", code, *SLEEP], stdout=subprocess.PIPE, **host.detached())
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    leader.stdout.close()
    leader.wait()
    host.end_group(leader.pid)
    end = time.monotonic() + 5
    while host.process_started(child) is not None and time.monotonic() < end:
        time.sleep(0.05)
    assert host.process_started(child) is None
    host.end_group(leader.pid)  # nobody left: no error


def test_a_taken_port_is_seen() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not host.port_is_free("127.0.0.1", server.getsockname()[1])
        port = server.getsockname()[1]
    assert host.port_is_free("127.0.0.1", port)
    assert not host.port_is_free("203.0.113.7", port)  # not an address of this machine


def test_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    assert host.free_bytes(deep) > 0
    assert host.is_writable(deep)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")
def test_private(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.touch()
    host.private(file)
    host.private(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="screens of Linux")
def test_a_screen_is_there_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not host.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert host.has_display()


def test_handing_over_keeps_the_exit_code_and_the_words(tmp_path: Path) -> None:
    code = "import sys; from trainer import host; host.hand_over([sys.executable, '-c', sys.argv[1], 'a b', 'é'])"
    inner = "import sys; print(sys.argv[1:] == ['a b', chr(233)]); sys.exit(7)"
    env = {**os.environ, "PYTHONPATH": str(Path(host.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, inner], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (7, "True")
