"""Starts tiny_page.py in a process of its own and talks to it over real HTTP."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
TINY_PAGE = Path(__file__).with_name("tiny_page.py")
READY = "Ctrl+C ends the page"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PageServer:
    """A running page; `with PageServer(home, "--port", "7999") as page: page.client().get("/")`."""

    def __init__(self, home: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.home.mkdir(parents=True, exist_ok=True)
        self.output = home / "output.txt"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            env.pop(name, None)
        with self.output.open("w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(TINY_PAGE), *flags], cwd=home, stdout=out, stderr=subprocess.STDOUT, env=env
            )

    def __enter__(self) -> PageServer:
        end = time.monotonic() + 90
        while READY not in self.text:
            if self.process.poll() is not None:
                raise AssertionError(f"the page ended with code {self.process.returncode}:\n{self.text}")
            if time.monotonic() > end:
                self.stop()
                raise AssertionError(f"the page was not ready in time:\n{self.text}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        found = re.search(r"The studio is at (http://\S+?)/(\?|\s)", self.text)
        assert found, self.text
        return found[1]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def token(self) -> str:
        return (self.home / "settings" / "token").read_text(encoding="utf-8").strip()

    def client(self, *, signed_in: bool = False, **headers: str) -> httpx.Client:
        """A client of its own; signed_in goes through the opened address, as a browser does."""
        client = httpx.Client(base_url=self.address, headers=headers, trust_env=False, timeout=30)
        if signed_in:
            answer = httpx.get(self.address, params={"token": self.token}, trust_env=False)
            assert answer.status_code == 303
            client.cookies = answer.cookies
        return client


def ended(home: Path, *flags: str) -> tuple[int, str]:
    """Exit code and output of a page that is expected not to start."""
    page = PageServer(home, *flags)
    try:
        code = page.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        page.stop()
        raise
    return code, page.text
