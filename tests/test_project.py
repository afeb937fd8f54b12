"""The project's own files: what the README promises, what the requirements hold."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "PIL": "pillow",
    "pydantic_core": "pydantic",
    "starlette": "gradio",
}  # import name -> package, where they differ or come along
LOCAL = {"trainer", "kohya_gui", "gui", "setup_studio"}
OPTIONAL = {"xformers", "bitsandbytes"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_to_what_runs_here(name: str) -> None:
    for package, version in pins(name).items():
        assert importlib.metadata.version(package).partition("+")[0] == version, package


def test_every_import_is_a_requirement() -> None:
    wanted = {name.lower().replace("_", "-") for name in pins("requirements.txt")}
    files = [*ROOT.glob("trainer/**/*.py"), *ROOT.glob("kohya_gui/**/*.py"), ROOT / "gui.py", ROOT / "setup_studio.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in {name.partition(".")[0] for name in names} - LOCAL - OPTIONAL:
                package = PACKAGES.get(name, name).lower().replace("_", "-")
                assert name in sys.stdlib_module_names or package in wanted, f"{name} in {file.relative_to(ROOT)}"


def test_setup_installs_the_torch_that_is_required() -> None:
    import setup_studio

    assert f"torch=={pins('requirements.txt')['torch']}" == setup_studio.TORCH


def test_set_up_needs_nothing_installed() -> None:
    """setup_studio.py runs before anything is installed: it and what it imports are standard library."""
    code = "import sys; import setup_studio; print(*sorted(n for n in sys.modules if '.' not in n))"
    argv = [sys.executable, "-S", "-c", code]
    loaded = subprocess.check_output(argv, cwd=ROOT, text=True).split()
    assert set(loaded) <= set(sys.stdlib_module_names) | LOCAL | {"__main__"}


def test_the_readme_starts_with_what_to_type_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = "\n".join(text.splitlines()[:25])
    assert "./setup.sh " in first and "./setup.sh --test" in first and "](docs/page.png)" in first
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


@pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")
def test_scripts_can_be_started() -> None:
    for name in ("setup.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
        assert b"\r" not in (ROOT / name).read_bytes()
