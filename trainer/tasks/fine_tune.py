"""Train a whole Stable Diffusion model on many captioned pictures: `python -m trainer fine_tune`."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.methods.full import FineTuneOptions
from trainer.tasks.training import training_task
from trainer.tasks.whole_model import WholeModelConfig


@dataclass(frozen=True)
class FineTuneConfig(WholeModelConfig):
    """Every option of fine_tune."""

    task = "fine_tune"

    method: FineTuneOptions


TASK = training_task(FineTuneConfig, about="Train a whole Stable Diffusion model on many captioned pictures.")
COMMAND = TASK.command()
