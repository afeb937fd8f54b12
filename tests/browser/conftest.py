"""A real page server in a folder of its own, and a headless Chromium that records what must not happen."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Browser, Page

PROJECT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """gui.py in its own process group; `home` holds its runs/, outputs/, uploads/ and presets/user/."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def start(self) -> None:
        argv = [sys.executable, str(PROJECT / "gui.py"), "--home", str(self.home), "--port", str(self.port)]
        argv += ["--no-token", "--no-launch"]
        env = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.home, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.wait()

    def wait(self, seconds: float = 90) -> None:
        assert self.process is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"the page did not come up:\n{self.log.read_text(errors='replace')[-4000:]}")

    def kill(self) -> None:
        """End the page's server only, as a crash would; runs live in groups of their own."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=20)

    def end_runs(self) -> None:
        """End whatever runs this server's folder still owns."""
        from trainer import host
        from trainer.run_folder import ENDED, list_runs

        for run in list_runs(self.home / "runs"):
            status = run.status()
            if status is not None and status.state not in ENDED:
                host.end_tree(status.pid, grace_seconds=2)


@dataclass
class Watched:
    """What a tab said that it should not: console errors and requests to other hosts."""

    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def watch(page: Page, watched: Watched) -> None:
    page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("request", lambda request: _note_foreign(request.url, watched))


def reload(page: Page, watched: Watched) -> None:
    """Reload; what the thrown-away page says of its cut-off requests is not the new one's fault."""
    assert not watched.errors, watched.errors
    page.reload()
    cut_off = ("AbortError", "Connection errored out", "Failed to fetch", "ERR_INCOMPLETE")
    watched.errors[:] = [text for text in watched.errors if not any(word in text for word in cut_off)]


def _note_foreign(url: str, watched: Watched) -> None:
    parts = urlparse(url)
    if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
        watched.foreign.append(url)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A page server in a fresh folder whose name has a blank and a letter beyond ASCII."""
    home = tmp_path / "My Studio é"
    home.mkdir()
    server = Server(home, free_port())
    server.start()
    yield server
    server.kill()
    server.end_runs()


@pytest.fixture
def watched() -> Watched:
    """Filled by the `page` fixture; a test on a killed server may empty `errors` afterwards."""
    return Watched()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One page server for all tests that start no run."""
    server = Server(tmp_path_factory.mktemp("studio"), free_port())
    shutil.copytree(PROJECT / "examples", server.home / "examples")  # as in a clone: its paths are shown short
    server.start()
    yield server
    server.kill()
    server.end_runs()


@pytest.fixture
def page(browser: Browser, watched: Watched, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A tab of 1366x768; at the end of the test it must have logged no error and asked no other host."""
    if "server" in request.fixturenames:
        request.getfixturevalue("server")  # so that the tab closes before its server does
    context = browser.new_context(viewport={"width": 1366, "height": 768}, color_scheme="light")
    page = context.new_page()
    watch(page, watched)
    yield page
    page.evaluate("0")  # whatever the page has said by now has arrived after this
    errors = list(watched.errors)
    context.close()
    assert not watched.foreign, watched.foreign
    assert not errors, errors
