"""The loss of each picture and its weights.

Shapes: B picture, C H W latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.lazy import torch
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

    masked_loss: bool = opt(False)
    """Train only where the masks are white: those of conditioning_data_dir, or the transparency of the pictures with
    alpha_mask. A picture's loss is the mean over its mask, however much of it is black."""


def picture_loss(prediction_BCHW: Tensor, target_BCHW: Tensor, masks_BHW: Tensor | None = None) -> Tensor:
    """Mean squared error of each picture [B], in float32, over the whole picture or weighed by a mask.

    masks_BHW: 0 to 1, at the size of the latents or larger, in which case it is averaged over areas. A mask whose
    crop holds nothing but black gives 0.
    """
    error_BCHW = (prediction_BCHW.float() - target_BCHW.float()).square()
    if masks_BHW is None:
        return error_BCHW.mean(dim=(1, 2, 3))
    error_BHW = error_BCHW.mean(dim=1)
    height, width = error_BHW.shape[1:]
    weights_BHW = torch.nn.functional.adaptive_avg_pool2d(masks_BHW.to(error_BHW), (height, width))
    total_B = weights_BHW.sum(dim=(1, 2))
    return (error_BHW * weights_BHW).sum(dim=(1, 2)) / total_B.clamp(min=torch.finfo(torch.float32).tiny)


def level_weight(options: LossOptions, diffusion: Diffusion, timesteps_B: Tensor) -> Tensor:
    """The weight [B] of each picture's noise level: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v."""
    snr_B = diffusion.snr(timesteps_B)
    if options.min_snr_gamma is None:
        return snr_B.new_ones(snr_B.shape)
    divisor_B = snr_B if diffusion.prediction == "epsilon" else snr_B + 1
    return snr_B.clamp(max=options.min_snr_gamma) / divisor_B
