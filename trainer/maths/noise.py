"""Noise added to latents: plain, with an offset for each channel, in several sizes, and input perturbation.

Shapes: B picture, C latent channel, H W latent height and width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from trainer.errors import Problem
from trainer.lazy import torch
from trainer.maths.rng import generator, python_rng, randn_slots
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Generator, Tensor


class NoiseOptions(Options):
    """How the noise is drawn."""

    title: ClassVar[str] = "Noise"

    noise_offset: float = opt(0.0, ge=0, le=1, step=0.01)
    """Noise added to each latent channel's mean, so that very dark and very bright pictures can be learned. 0 turns it
    off; 0.03 to 0.1 is usual. https://www.crosslabs.org/blog/diffusion-with-offset-noise"""

    noise_offset_random_strength: bool = opt(False)
    """Draw each picture's noise offset evenly between 0 and noise_offset."""

    adaptive_noise_scale: float | None = opt(None, ge=-1, le=1, step=0.01)
    """Adds this times the size of each latent channel's mean to noise_offset: pictures far from grey get more offset
    with a positive number, less with a negative one. As large as noise_offset is a start."""

    multires_noise_iterations: int = opt(0, ge=0, le=64)
    """Adds noise of this many coarser sizes to the plain noise, another way to learn dark and bright pictures. 0 turns
    it off; 6 to 10 is usual. https://wandb.ai/johnowhitaker/multires_noise (pyramid noise)"""

    multires_noise_discount: float = opt(0.3, gt=0, le=1, step=0.05)
    """How much weaker each coarser size of multires_noise_iterations is than the one before; 0.1 to 0.3 for fine-tuning
    on many pictures, up to 0.8 to change brightness quickly."""

    ip_noise_gamma: float = opt(0.0, ge=0, le=1, step=0.01)
    """Input perturbation: more noise in what the model sees than in what it is to predict, so that its own small errors
    while drawing matter less. 0 turns it off; the paper recommends 0.1. Ning et al., 2023,
    https://arxiv.org/abs/2301.11706"""

    ip_noise_gamma_random_strength: bool = opt(False)
    """Draw each picture's input perturbation evenly between 0 and ip_noise_gamma."""

    def problems(self) -> Iterator[Problem]:
        """Options that change another one which is off."""
        for name, value, other in (
            ("adaptive_noise_scale", self.adaptive_noise_scale, "noise_offset"),
            ("noise_offset_random_strength", self.noise_offset_random_strength, "noise_offset"),
            ("ip_noise_gamma_random_strength", self.ip_noise_gamma_random_strength, "ip_noise_gamma"),
        ):
            if value and not getattr(self, other):
                yield Problem(
                    name, f"changes {other}, which is off", str(value), remedy=f"Set {other}, or leave it out"
                )


def sample_noise(latents_BCHW: Tensor, options: NoiseOptions, *, seed: int, epoch: int, slots: Sequence[int]) -> Tensor:
    """Noise for a batch of latents [B, C, H, W], each picture's from its own slot's stream, on the latents' device."""
    _, channels, height, width = latents_BCHW.shape
    noise_BCHW = randn_slots(seed, "noise", epoch, slots, (channels, height, width))
    if options.noise_offset:
        strength_B111 = _strengths(options.noise_offset_random_strength, seed, "offset strength", epoch, slots)
        offset_BC11 = offset_strength(options, latents_BCHW.float().cpu(), options.noise_offset * strength_B111)
        noise_BCHW = noise_BCHW + offset_BC11 * randn_slots(seed, "offset", epoch, slots, (channels, 1, 1))
    if options.multires_noise_iterations:
        drawn = [
            pyramid_noise(
                noise_BCHW[row : row + 1],
                options,
                python_rng(seed, "multires size", epoch, slot),
                generator(seed, "multires", epoch, slot),
            )
            for row, slot in enumerate(slots)
        ]
        noise_BCHW = torch.cat(drawn)
    return noise_BCHW.to(latents_BCHW.device, latents_BCHW.dtype)


def perturbed(noise_BCHW: Tensor, options: NoiseOptions, *, seed: int, epoch: int, slots: Sequence[int]) -> Tensor:
    """The noise the model sees: with `ip_noise_gamma`, some more than it is to predict."""
    if not options.ip_noise_gamma:
        return noise_BCHW
    strength_B111 = _strengths(options.ip_noise_gamma_random_strength, seed, "perturbation strength", epoch, slots)
    more_BCHW = strength_B111 * randn_slots(seed, "perturbation", epoch, slots, noise_BCHW.shape[1:])
    return noise_BCHW + (options.ip_noise_gamma * more_BCHW).to(noise_BCHW)


def offset_strength(options: NoiseOptions, latents_BCHW: Tensor, offset_B111: Tensor) -> Tensor:
    """max(0, offset + adaptive_noise_scale |mean over H and W|), for each picture and channel [B, C, 1, 1]."""
    if not options.adaptive_noise_scale:
        return offset_B111
    mean_BC11 = latents_BCHW.mean(dim=(2, 3), keepdim=True).abs()
    return (offset_B111 + options.adaptive_noise_scale * mean_BC11).clamp(min=0)


def pyramid_noise(noise_BCHW: Tensor, options: NoiseOptions, sizes: random.Random, draws: Generator) -> Tensor:
    """The noise with noise of coarser sizes enlarged onto it, each weaker by the discount, brought back to variance 1.

    The i-th size is that of the latents over r^i, r drawn from [2, 4) each time; the first is the full one.
    """
    _, _, height, width = noise_BCHW.shape
    for i in range(options.multires_noise_iterations):
        ratio = (sizes.random() * 2 + 2) ** i
        small = (max(1, int(height / ratio)), max(1, int(width / ratio)))
        coarse_BChw = torch.randn(*noise_BCHW.shape[:2], *small, generator=draws)
        layer_BCHW = torch.nn.functional.interpolate(coarse_BChw, (height, width), mode="bilinear")
        noise_BCHW = noise_BCHW + layer_BCHW * options.multires_noise_discount**i
        if 1 in small:
            break
    return noise_BCHW / noise_BCHW.std()


def _strengths(random_strength: bool, seed: int, purpose: str, epoch: int, slots: Sequence[int]) -> Tensor:
    """What a strength is multiplied by, for each picture [B, 1, 1, 1]: 1, or a number drawn evenly from [0, 1)."""
    drawn = [python_rng(seed, purpose, epoch, slot).random() if random_strength else 1.0 for slot in slots]
    return torch.tensor(drawn).reshape(-1, 1, 1, 1)
