"""What makes a run repeatable: packages, commit, device, driver, and fingerprints of model and data."""

from __future__ import annotations

import hashlib
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.lazy import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.data.dataset import TrainingSet


def fingerprint_of(training_set: TrainingSet) -> str:
    """A hash over every picture's content, caption, geometry, repeats and weight, and the batch sizes."""
    digest = hashlib.sha256()
    for sample in training_set.samples:
        facts = (sample.picture.sha256, sample.caption_text, sample.dataset, sample.geometry, sample.repeats)
        digest.update(repr((*facts, sample.is_reg, sample.loss_weight, sample.subset.pictures)).encode())
    digest.update(repr([dataset.batch_size for dataset in training_set.datasets]).encode())
    return digest.hexdigest()


def packages() -> dict[str, str]:
    return {d.metadata["Name"]: d.version for d in sorted(distributions(), key=lambda d: d.metadata["Name"].lower())}


def environment(model: Path, accelerator: Accelerator, training_set: TrainingSet) -> dict[str, Any]:
    """environment.json: packages, commit, device, driver, model and data fingerprints."""
    from trainer.formats.model_facts import fingerprint

    device: dict[str, Any] = {"device": str(accelerator.device), "processes": accelerator.num_processes}
    if torch.cuda.is_available():
        device |= {"device_name": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": _driver()}
    return {
        **device,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "packages": packages(),
        "model_fingerprint": fingerprint(model),
        "data_fingerprint": fingerprint_of(training_set),
    }


def _driver() -> str:
    argv = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _commit() -> str:
    """The commit of this program, "" where it is no git checkout."""
    argv = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
