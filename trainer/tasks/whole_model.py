"""What train_db and fine_tune share: the model's own weights train, in float32, and the whole model is saved."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import Problem
from trainer.hooks.saving import ModelSavingOptions
from trainer.lazy import torch
from trainer.methods import full
from trainer.methods.full import FullMethod, FullOptimizerOptions, TextEncoderOptions
from trainer.tasks.training_config import TrainingConfig

if TYPE_CHECKING:
    from trainer.families.base import Family


@dataclass(frozen=True)
class WholeModelConfig(TrainingConfig, ABC):
    """Every option of a training of the whole model."""

    method: TextEncoderOptions
    optimizer: FullOptimizerOptions
    saving: ModelSavingOptions

    def build_method(self, family: Family) -> FullMethod:
        """The model's parts as they are, trainable."""
        return FullMethod(family, self.method, self.optimizer, saved_as=self.saving.save_model_as)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Small steps would be lost in half precision, and what does not train is saved as exactly as it was loaded."""
        return torch.float32

    @property
    def keeps_text_encoder_by(self) -> str:
        """The task's own switch, or the rate."""
        trained = full.trained_parts(self.method, self.optimizer, ("text_encoder",))
        return self.method.remedy if trained else ""

    def problems(self) -> Iterator[Problem]:
        """Besides what goes for every training: what trains."""
        yield from super().problems()
        yield from full.problems(self.method, self.optimizer)
