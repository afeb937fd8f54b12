"""What many tests share: one tiny model per session, saved once, and one headless Chromium."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# what tests and the programs they start keep for later goes with the session
_CACHE = tempfile.TemporaryDirectory(prefix="studio-cache-")
os.environ["STUDIO_CACHE"] = _CACHE.name

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: one worker has it to itself, and the others are not left waiting for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_example.py")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1.x model in the diffusers layout; do not write into it."""
    from tests.tiny import tiny_sd1

    return tiny_sd1(tmp_path_factory.mktemp("tiny") / "sd1")


@pytest.fixture(scope="session")
def tiny_sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 2.x model, predicting velocity; do not write into it."""
    from tests.tiny import tiny_sd2

    return tiny_sd2(tmp_path_factory.mktemp("tiny") / "sd2", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion XL model; do not write into it."""
    from tests.tiny import tiny_sdxl

    return tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests: playwright's synchronous interface runs once in a process."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("no Chromium here; ./setup.sh --test installs it")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()
