"""A look into the server's folders, within allowed roots only: what the Browse buttons show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Wanted = Literal["folder", "model", "pictures", "toml"]
MOST = 400
SUFFIXES: dict[Wanted, tuple[str, ...]] = {
    "folder": (),
    "model": (".safetensors",),
    "pictures": (".toml",),
    "toml": (".toml", ".txt", ".json"),
}


@dataclass(frozen=True)
class Listing:
    """What stands in one folder. entries: (what is shown, path); parent: None at a root. problem: why it is empty."""

    folder: Path | None
    parent: Path | None
    entries: tuple[tuple[str, str], ...]
    left_out: int = 0
    problem: str = ""


def within(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path, links followed, lies under one of the roots."""
    real = path.resolve()
    return any(real == root or root in real.parents for root in (r.resolve() for r in roots))


def list_roots(roots: Sequence[Path]) -> Listing:
    """The folders to begin at."""
    return Listing(None, None, tuple((f"{root}", str(root)) for root in roots if root.is_dir()))


def list_folder(path: Path, roots: Sequence[Path], wanted: Wanted) -> Listing:
    """Folders first, then the files that can be chosen; hidden ones are left out."""
    if not within(path, roots):
        return Listing(None, None, list_roots(roots).entries, problem=f"{path} lies outside the folders shown here")
    folder = path.resolve()
    if not folder.is_dir():
        folder = folder.parent if within(folder.parent, roots) and folder.parent.is_dir() else roots[0]
    try:
        found = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name.lower())
    except OSError as error:
        return Listing(folder, _parent(folder, roots), (), problem=f"this folder cannot be read ({error.strerror})")
    inside = [p for p in found if within(p, roots)]
    folders = [(f"{p.name}/", str(p)) for p in inside if p.is_dir()]
    files = [(p.name, str(p)) for p in inside if p.suffix.lower() in SUFFIXES[wanted] and p.is_file()]
    entries = folders + files
    return Listing(folder, _parent(folder, roots), tuple(entries[:MOST]), max(0, len(entries) - MOST))


def _parent(folder: Path, roots: Sequence[Path]) -> Path | None:
    return folder.parent if folder.parent != folder and within(folder.parent, roots) else None
