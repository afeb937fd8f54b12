"""The discrete diffusion process of Stable Diffusion: timesteps, noisy latents, targets and SNR.

Ho et al., 2020, https://arxiv.org/abs/2006.11239 (DDPM); v: Salimans & Ho, 2022, https://arxiv.org/abs/2202.00512.
Shapes: B picture, T timestep of the schedule, C H W latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.errors import Problem
from trainer.lazy import torch
from trainer.maths.rng import derive
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]


class TimestepOptions(Options):
    """Which noise levels are trained."""

    title: ClassVar[str] = "Noise"

    min_timestep: int = opt(0, ge=0, le=999)
    """Lowest timestep trained; 0 is the least noise. Raise it to leave fine detail as it is."""
    max_timestep: int = opt(1000, ge=1, le=1000)
    """One past the highest timestep trained; 1000 reaches pure noise. Lower it to leave composition as it is."""

    def problems(self) -> Iterator[Problem]:
        """An empty range."""
        if self.min_timestep >= self.max_timestep:
            message = f"should be less than max_timestep ({self.max_timestep})"
            yield Problem("min_timestep", message, str(self.min_timestep))


@dataclass(frozen=True)
class Diffusion:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, for t in 0..T-1."""

    alphas_cumprod_T: Tensor
    prediction: Prediction

    def noisy(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """x_t for each picture at its own t."""
        signal_B111, sigma_B111 = self._rates(timesteps_B, latents_BCHW)
        return signal_B111 * latents_BCHW + sigma_B111 * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the model shall predict: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
        if self.prediction == "epsilon":
            return noise_BCHW
        signal_B111, sigma_B111 = self._rates(timesteps_B, latents_BCHW)
        return signal_B111 * noise_BCHW - sigma_B111 * latents_BCHW

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) [B]."""
        alphas_B = self.alphas_cumprod_T.to(timesteps_B.device)[timesteps_B]
        return alphas_B / (1 - alphas_B)

    @cached_property
    def least_snr(self) -> float:
        """The smallest signal-to-noise ratio above 0 of the schedule."""
        alphas_T = self.alphas_cumprod_T[self.alphas_cumprod_T > 0]
        return float((alphas_T / (1 - alphas_T)).min())

    def _rates(self, timesteps_B: Tensor, like_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        alphas_B = self.alphas_cumprod_T.to(like_BCHW.device)[timesteps_B]
        alphas_B111 = alphas_B.reshape(-1, *[1] * (like_BCHW.ndim - 1))
        return alphas_B111.sqrt().to(like_BCHW.dtype), (1 - alphas_B111).sqrt().to(like_BCHW.dtype)


def draw_timesteps(options: TimestepOptions, *, seed: int, epoch: int, slots: Sequence[int]) -> Tensor:
    """Timesteps [B], uniform over [min_timestep, max_timestep), each from its own slot's stream."""
    span = options.max_timestep - options.min_timestep
    return torch.tensor([options.min_timestep + derive(seed, "timestep", epoch, slot) % span for slot in slots])
