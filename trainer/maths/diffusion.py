"""The discrete diffusion process of Stable Diffusion: timesteps, noisy latents, targets and SNR.

Ho et al., 2020, https://arxiv.org/abs/2006.11239 (DDPM); v: Salimans & Ho, 2022, https://arxiv.org/abs/2202.00512.
Shapes: B picture, T timestep of the schedule, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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


class ReadingCheck:
    """Watches the first answers of a model for signs that it predicts the other thing: noise, or velocity.

    The two differ where there is much noise. A model read rightly is nearer to its own target there by far; read
    wrongly it trains towards grey noise, without any error.
    """

    pictures = 16
    gives_up_after = 128
    from_timestep = 400
    times_nearer = 2.0

    def __init__(self, diffusion: Diffusion, warn: Callable[[str], None]) -> None:
        self._diffusion = diffusion
        self._other = replace(diffusion, prediction=_OTHER[diffusion.prediction])
        self._warn = warn
        self._errors: list[tuple[float, float]] = []
        self._left = self.gives_up_after

    def __call__(self, prediction_BCHW: Tensor, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> None:
        """Look at one micro-batch; says at most one word in a run."""
        if self._left <= 0:
            return
        self._left -= len(timesteps_B)
        noisy_B = (timesteps_B >= self.from_timestep).tolist()
        both = []
        for reading in (self._diffusion, self._other):
            target_BCHW = reading.target(latents_BCHW, noise_BCHW, timesteps_B)
            both.append((prediction_BCHW.detach() - target_BCHW).square().flatten(1).mean(1).tolist())
        self._errors += [pair for pair, counts in zip(zip(*both, strict=True), noisy_B, strict=True) if counts]
        if len(self._errors) < self.pictures:
            return
        self._left = 0
        ours, others = (sum(errors) for errors in zip(*self._errors, strict=True))
        if others * self.times_nearer < ours:
            read, other = self._diffusion.prediction, self._other.prediction
            remedy = "Set v_parameterization" if read == "epsilon" else "Turn v_parameterization off"
            self._warn(
                f"the model is read as predicting {_WORDS[read]}, but its answers to your pictures are "
                f"{ours / others:.0f} times nearer to {_WORDS[other]}. {remedy}, unless you are sure"
            )


_OTHER: dict[Prediction, Prediction] = {"epsilon": "v_prediction", "v_prediction": "epsilon"}
_WORDS = {"epsilon": "noise", "v_prediction": "velocity"}


def draw_timesteps(options: TimestepOptions, *, seed: int, epoch: int, slots: Sequence[int]) -> Tensor:
    """Timesteps [B], uniform over [min_timestep, max_timestep), each from its own slot's stream."""
    span = options.max_timestep - options.min_timestep
    return torch.tensor([options.min_timestep + derive(seed, "timestep", epoch, slot) % span for slot in slots])
