"""Resume points: everything a run needs to go on as if it had never stopped, in a folder that is whole or not there.

    NAME-state/
      trained.safetensors   what trains, float32 as trained
      optimizer.pt          optimizer and gradient scaler (tensors and numbers only)
      progress.json         where the run stood, what it depends on, and the thread count
      manifest.json         sizes and hashes of the others; written last
Random streams need no saving: every draw is derived from seed, epoch and slot (trainer/maths/rng.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer import host
from trainer.errors import ConfigError, Problem, RunError
from trainer.lazy import torch
from trainer.run_folder import sha256_file, write_atomically
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor

STATE_VERSION = 1


class ResumeOptions(Options):
    """Going on with a run."""

    title: ClassVar[str] = "Resume"

    resume: Path | None = opt(None, widget="folder", label="Resume point")
    """A -state folder of an earlier run. Training goes on exactly where that run stopped: same order, same noise, same
    rates. To begin a new run from a saved model name it as the base model instead, a LoRA in network_weights."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. step: optimizer steps done; epoch: the running one, from 0; step_in_epoch: steps of it done.

    recent_losses: of the last steps, for the running average.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    recent_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class ResumePoint:
    """What a -state folder holds beside the tensors.

    depends: facts that must be the same for the run to go on exactly (seed, data, batch, ...).
    parents: run folders before this one, oldest first.
    """

    progress: Progress
    depends: Mapping[str, Any]
    threads: int
    parents: tuple[str, ...] = ()
    version: int = STATE_VERSION
    versions: Mapping[str, str] = field(default_factory=dict)


def save(folder: Path, point: ResumePoint, trained: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> Path:
    """Write a resume point under a temporary name, hash it, and rename it into place."""
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in trained.items()}, temporary / "trained.safetensors"
        )
        torch.save(dict(optimizer), temporary / "optimizer.pt")
        (temporary / "progress.json").write_text(json.dumps(asdict(point), indent=1), encoding="utf-8")
        manifest = {path.name: _facts(path) for path in sorted(temporary.iterdir())}
        for path in temporary.iterdir():
            _sync(path)
        write_atomically(temporary / "manifest.json", json.dumps(manifest, indent=1))
        host.sync_folder(temporary)
        host.replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def load(folder: Path) -> tuple[ResumePoint, dict[str, Tensor], dict[str, Any]]:
    """(point, trained tensors, optimizer state) of a verified resume point; RunError says what is wrong with it."""
    from safetensors.torch import load_file

    point = read_point(folder)
    trained = {name: tensor.clone() for name, tensor in load_file(folder / "trained.safetensors").items()}
    optimizer: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    return point, trained, optimizer


def read_point(folder: Path) -> ResumePoint:
    """The part of a resume point that needs no torch, after checking every file against the manifest."""
    if not folder.is_dir():
        raise RunError("no such folder", option="resume", remedy=f"{folder} should be a -state folder of a run")
    if not (folder / "manifest.json").is_file():
        remedy = "Choose the -state folder itself; one without manifest.json was not written to its end"
        raise RunError(f"{folder} is not a whole resume point", option="resume", remedy=remedy)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, facts in manifest.items():
        if not (folder / name).is_file() or _facts(folder / name) != facts:
            remedy = "Go on from an older resume point"
            raise RunError(f"{folder / name} is damaged or missing", option="resume", remedy=remedy)
    data = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    if data["version"] != STATE_VERSION:
        said = f"{folder} was written by another version of this program ({data['version']}, not {STATE_VERSION})"
        raise RunError(said, option="resume")
    progress = data.pop("progress")
    progress["recent_losses"] = tuple(progress["recent_losses"])
    return ResumePoint(progress=Progress(**progress), **{**data, "parents": tuple(data["parents"])})


def check_same(point: ResumePoint, depends: Mapping[str, Any]) -> None:
    """Refuse to go on where something the run depends on has changed; every change is named."""
    problems = [
        Problem(
            name, f"was {point.depends[name]!r} in the run to go on with and cannot change now", repr(value), "resume"
        )
        for name, value in depends.items()
        if name in point.depends and point.depends[name] != json.loads(json.dumps(value))
    ]
    if problems:
        remedy = "Set these back, or begin a new run from the model or LoRA that was saved"
        raise ConfigError([*problems, Problem("resume", "this run would not go on as it was", remedy=remedy)])


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
