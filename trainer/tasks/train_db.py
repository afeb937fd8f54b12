"""Teach a whole Stable Diffusion model a subject (DreamBooth): `python -m trainer train_db`.

A few pictures of the subject, and regularisation pictures of its class. Ruiz et al., 2022,
https://arxiv.org/abs/2208.12242
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.methods.full import DreamBoothOptions
from trainer.tasks.training import training_task
from trainer.tasks.whole_model import WholeModelConfig


@dataclass(frozen=True)
class TrainDbConfig(WholeModelConfig):
    """Every option of train_db."""

    task = "train_db"

    method: DreamBoothOptions


TASK = training_task(TrainDbConfig, about="Teach a whole Stable Diffusion model a subject (DreamBooth).")
COMMAND = TASK.command()
