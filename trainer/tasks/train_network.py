"""Train an adapter (LoRA) on a Stable Diffusion model: `python -m trainer train_network`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from trainer.adapters.base import AdapterOptions
from trainer.config import Slot
from trainer.errors import Problem
from trainer.methods.adapter import AdapterMethod, AdapterOptimizerOptions
from trainer.tasks.training import training_task
from trainer.tasks.training_config import TrainingConfig

if TYPE_CHECKING:
    from trainer.families.base import Family


@dataclass(frozen=True)
class TrainNetworkConfig(TrainingConfig):
    """Every option of train_network."""

    task = "train_network"

    method: Annotated[AdapterOptions, Slot("trainer.adapters", "trainer.adapters.base:Adapter", key="network_module")]
    optimizer: AdapterOptimizerOptions

    def build_method(self, family: Family) -> AdapterMethod:
        """Adapter modules beside the frozen model."""
        return AdapterMethod(family, self.method, self.optimizer, seed=self.length.seed or 0)

    @property
    def keeps_text_encoder_by(self) -> str:
        """Two switches decide; a rate of 0 is found out later."""
        return "" if self.method.network_train_unet_only else "Set network_train_unet_only"

    def problems(self) -> Iterator[Problem]:
        """Besides what goes for every training: where a LoRA begins."""
        yield from super().problems()
        if self.resume.resume and self.method.network_weights and not self.method.dim_from_weights:
            remedy = "resume goes on with a run; network_weights begins a new one from a LoRA"
            yield Problem("network_weights", "cannot go with resume", str(self.method.network_weights), remedy=remedy)


TASK = training_task(TrainNetworkConfig, about="Train a LoRA on a Stable Diffusion model.")
COMMAND = TASK.command()
