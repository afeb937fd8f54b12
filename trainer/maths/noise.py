"""Noise added to latents: plain, and offset noise.

Shapes: B picture, C latent channel, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from trainer.maths.rng import randn_slots
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor


class NoiseOptions(Options):
    """How the noise is drawn."""

    title: ClassVar[str] = "Noise"

    noise_offset: float = opt(0.0, ge=0, le=1, step=0.01)
    """Noise added to each latent channel's mean, so that very dark and very bright pictures can be learned. 0 turns it
    off; 0.03 to 0.1 is usual. https://www.crosslabs.org/blog/diffusion-with-offset-noise"""


def sample_noise(latents_BCHW: Tensor, options: NoiseOptions, *, seed: int, epoch: int, slots: Sequence[int]) -> Tensor:
    """Noise for a batch of latents [B, C, H, W], each picture's from its own slot's stream, on the latents' device."""
    _, channels, height, width = latents_BCHW.shape
    noise_BCHW = randn_slots(seed, "noise", epoch, slots, (channels, height, width))
    if options.noise_offset:
        noise_BCHW = noise_BCHW + options.noise_offset * randn_slots(seed, "offset", epoch, slots, (channels, 1, 1))
    return noise_BCHW.to(latents_BCHW.device, latents_BCHW.dtype)
