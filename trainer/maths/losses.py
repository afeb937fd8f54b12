"""The loss of each picture and its weights.

Shapes: B picture, C H W latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.maths.diffusion import Diffusion
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor


class LossOptions(Options):
    """How a prediction's error becomes a number."""

    title: ClassVar[str] = "Loss"

    min_snr_gamma: float | None = opt(None, gt=0, le=100, step=1)
    """Weighs noise levels by min(SNR, gamma) / SNR so that easy, nearly clean pictures do not rule the training; the
    paper recommends 5. Unset: all levels weigh the same. Hang et al., 2023, https://arxiv.org/abs/2303.09556"""


def picture_loss(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each picture [B], in float32."""
    return (prediction_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))


def level_weight(options: LossOptions, diffusion: Diffusion, timesteps_B: Tensor) -> Tensor:
    """The weight [B] of each picture's noise level: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v."""
    snr_B = diffusion.snr(timesteps_B)
    if options.min_snr_gamma is None:
        return snr_B.new_ones(snr_B.shape)
    divisor_B = snr_B if diffusion.prediction == "epsilon" else snr_B + 1
    return snr_B.clamp(max=options.min_snr_gamma) / divisor_B
