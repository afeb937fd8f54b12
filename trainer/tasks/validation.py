"""The validation loss: how far the model's predictions are off on pictures that do not train.

Each picture is measured at the same few timesteps with the same noise, from streams that training never draws from. The
loss is plain: loss_type and masks as in training, but neither noise offset nor perturbation, weights of noise levels or
pictures, nor any dropout, so that runs whose noise or weights differ can be compared. Shapes: B picture (one), C H W
latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from trainer.events import Events
from trainer.lazy import torch
from trainer.loop import Parts
from trainer.maths.diffusion import TimestepOptions
from trainer.maths.losses import error, picture_loss
from trainer.maths.rng import randn_slots

if TYPE_CHECKING:
    from trainer.data.dataset import TrainingSet, View
    from trainer.data.loader import LoadedBatch

NO_EPOCH = -1
"""Stands in for the epoch in the streams of what is drawn here."""

LEVELS = 4
"""Timesteps that each picture is measured at."""


def fixed_timesteps(options: TimestepOptions) -> tuple[int, ...]:
    """Evenly inside the timesteps that train: 200, 400, 600 and 800 of 1000."""
    low, high = options.min_timestep, options.max_timestep
    return tuple(low + (high - low) * i // (LEVELS + 1) for i in range(1, LEVELS + 1))


def chosen_views(training_set: TrainingSet, at_most: int | None) -> list[View]:
    """The pictures to measure: all that are kept out of training, or some of them evenly from all."""
    views = training_set.validation_views()
    count = len(views) if at_most is None else min(at_most, len(views))
    return [views[i * len(views) // count] for i in range(count)]


@dataclass(frozen=True)
class ValidationLoss:
    """Measures with the weights to be used; nothing that trains is changed by it."""

    parts: Parts
    views: Sequence[View]
    events: Events

    def __call__(self) -> float:
        """The mean over pictures and timesteps."""
        parts = self.parts
        for module in (parts.method.denoiser, *parts.method.text_encoders):
            module.eval()  # the loop goes back to training mode
        losses: list[float] = []
        with torch.no_grad(), parts.averaging.in_use():
            for done, batch in enumerate(parts.loader.one_by_one(self.views, epoch=NO_EPOCH)):
                self.events.phase("validating", done, len(self.views))
                losses += self._losses(batch)
        return fmean(losses)

    def _losses(self, batch: LoadedBatch) -> list[float]:
        """One picture's, at each of the timesteps."""
        parts = self.parts
        latents_BCHW = parts.latents(batch)
        with parts.accelerator.autocast():
            conditioning = parts.conditioning(batch)
        losses: list[float] = []
        for timestep in fixed_timesteps(parts.maths.timesteps):
            drawn_BCHW = randn_slots(parts.seed, "validation noise", timestep, batch.slots, latents_BCHW.shape[1:])
            noise_BCHW = drawn_BCHW.to(latents_BCHW)
            timesteps_B = torch.tensor([timestep], device=latents_BCHW.device)
            noisy_BCHW = parts.diffusion.noisy(latents_BCHW, noise_BCHW, timesteps_B)
            target_BCHW = parts.diffusion.target(latents_BCHW, noise_BCHW, timesteps_B)
            with parts.accelerator.autocast():
                denoiser = parts.method.denoiser
                prediction_BCHW = parts.family.predict(denoiser, noisy_BCHW, timesteps_B, conditioning, batch.frames_B4)
            error_BCHW = error(parts.maths.loss, parts.diffusion, prediction_BCHW, target_BCHW, timesteps_B)
            losses.append(float(picture_loss(error_BCHW, batch.masks_BHW)))
        return losses
