"""The loss of each picture and its weights.

Shapes: B picture, C H W latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.errors import Problem
from trainer.lazy import torch
from trainer.maths.diffusion import Diffusion
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor

_TIMESTEPS = 1000
_LARGEST_SNR = 1000.0


class LossOptions(Options):
    """How a prediction's error becomes a number."""

    title: ClassVar[str] = "Loss"

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = opt("l2")
    """l2 squares each error, as these models were trained; l1 takes its size; huber and smooth_l1 square small errors
    and take the size of large ones, so that a few wrong pictures or captions count less."""

    huber_schedule: Literal["constant", "exponential", "snr"] = opt("snr")
    """Where huber and smooth_l1 change from small to large errors: at huber_c for all noise levels; at a point that
    falls from huber_scale to huber_c with the noise level; or one that follows the signal-to-noise ratio.
    https://arxiv.org/abs/2403.16728"""

    huber_c: float = opt(0.1, gt=0, le=1, step=0.01)
    """The point huber_schedule works with; smaller is nearer to l1."""

    huber_scale: float = opt(1.0, gt=0, le=100, step=0.1)
    """The point is multiplied by this, with the constant and the exponential huber_schedule."""

    min_snr_gamma: float | None = opt(None, gt=0, le=100, step=1)
    """Weighs noise levels by min(SNR, gamma) / SNR so that easy, nearly clean pictures do not rule the training; the
    paper recommends 5. Unset: all levels weigh the same. Hang et al., 2023, https://arxiv.org/abs/2303.09556"""

    debiased_estimation_loss: bool = opt(False)
    """Weighs noise levels by 1 / sqrt(SNR), for v-prediction by 1 / (SNR + 1): more weight for pictures with much
    noise, which decide composition and colour. https://arxiv.org/abs/2310.08442"""

    scale_v_pred_loss_like_noise_pred: bool = opt(False)
    """Weighs the loss of v-prediction by SNR / (SNR + 1), as if the noise were predicted; only for such models."""

    v_pred_like_loss: float | None = opt(None, gt=0, le=10, step=0.1)
    """Adds this times the loss that v-prediction would have; only for models that predict noise."""

    masked_loss: bool = opt(False)
    """Train only where the masks are white: those of conditioning_data_dir, or the transparency of the pictures with
    alpha_mask. A picture's loss is the mean over its mask, however much of it is black."""


def prediction_problems(options: LossOptions, prediction: str) -> Iterator[Problem]:
    """Weights that are for models of the other prediction type."""
    if options.scale_v_pred_loss_like_noise_pred and prediction == "epsilon":
        said = "is for models that predict velocity, and this one predicts noise"
        yield Problem("scale_v_pred_loss_like_noise_pred", said, "true", remedy="Turn it off")
    if options.v_pred_like_loss and prediction != "epsilon":
        said = "is for models that predict noise, and this one predicts velocity"
        yield Problem("v_pred_like_loss", said, str(options.v_pred_like_loss), remedy="Leave it out")


def picture_loss(error_BCHW: Tensor, masks_BHW: Tensor | None = None) -> Tensor:
    """Mean error of each picture [B], over the whole picture or weighed by a mask.

    masks_BHW: 0 to 1, at the size of the latents or larger, in which case it is averaged over areas. A mask whose
    crop holds nothing but black gives 0.
    """
    if masks_BHW is None:
        return error_BCHW.mean(dim=(1, 2, 3))
    error_BHW = error_BCHW.mean(dim=1)
    height, width = error_BHW.shape[1:]
    weights_BHW = torch.nn.functional.adaptive_avg_pool2d(masks_BHW.to(error_BHW), (height, width))
    total_B = weights_BHW.sum(dim=(1, 2))
    return (error_BHW * weights_BHW).sum(dim=(1, 2)) / total_B.clamp(min=torch.finfo(torch.float32).tiny)


def error(
    options: LossOptions, diffusion: Diffusion, prediction_BCHW: Tensor, target_BCHW: Tensor, timesteps_B: Tensor
) -> Tensor:
    """The error of every latent number [B, C, H, W], in float32; with d the difference and c from `huber_points`:

    l2 d^2, l1 |d|, huber 2c (sqrt(d^2 + c^2) - c), smooth_l1 2 (sqrt(d^2 + c^2) - c).
    """
    d_BCHW = prediction_BCHW.float() - target_BCHW.float()
    if options.loss_type == "l2":
        return d_BCHW.square()
    if options.loss_type == "l1":
        return d_BCHW.abs()
    c_B111 = huber_points(options, diffusion, timesteps_B).reshape(-1, 1, 1, 1)
    bend_BCHW = 2 * ((d_BCHW.square() + c_B111.square()).sqrt() - c_B111)
    return c_B111 * bend_BCHW if options.loss_type == "huber" else bend_BCHW


def huber_points(options: LossOptions, diffusion: Diffusion, timesteps_B: Tensor) -> Tensor:
    """Where huber losses bend [B]: c, c^(t/1000), or (1 - c) / (1 + sigma)^2 + c with sigma = 1 / sqrt(SNR)."""
    c = options.huber_c
    if options.huber_schedule == "snr":
        sigma_B = diffusion.snr(timesteps_B) ** -0.5
        return (1 - c) / (1 + sigma_B).square() + c
    powers_B = timesteps_B / _TIMESTEPS if options.huber_schedule == "exponential" else timesteps_B * 0.0 + 1
    return options.huber_scale * c**powers_B


def level_weight(options: LossOptions, diffusion: Diffusion, timesteps_B: Tensor) -> Tensor:
    """The weight [B] of each picture's noise level, the product of what is switched on.

    min-SNR: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v. Where the schedule ends in pure noise (SNR 0), the
    weights that divide by the SNR take the least one above 0.
    """
    snr_B = diffusion.snr(timesteps_B)
    is_epsilon = diffusion.prediction == "epsilon"
    weight_B = torch.ones_like(snr_B)
    if options.min_snr_gamma is not None:
        gamma = options.min_snr_gamma
        weight_B = gamma / snr_B.clamp(min=gamma) if is_epsilon else snr_B.clamp(max=gamma) / (snr_B + 1)
    bounded_B = snr_B.clamp(diffusion.least_snr, _LARGEST_SNR)
    if options.scale_v_pred_loss_like_noise_pred:
        weight_B = weight_B * bounded_B / (bounded_B + 1)
    if options.v_pred_like_loss is not None:
        weight_B = weight_B * (1 + options.v_pred_like_loss * (bounded_B + 1) / bounded_B)
    if options.debiased_estimation_loss:
        weight_B = weight_B * (bounded_B**-0.5 if is_epsilon else 1 / (bounded_B + 1))
    return weight_B
