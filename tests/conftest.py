"""What many tests share: one tiny model per session, saved once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1.x model in the diffusers layout; do not write into it."""
    from tests.tiny import tiny_sd1

    return tiny_sd1(tmp_path_factory.mktemp("tiny") / "sd1")
