"""Errors against the reference's numbers; masks weigh each picture's loss by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.maths.diffusion import Diffusion
from trainer.maths.losses import LossOptions, error, huber_points, picture_loss

VECTORS = np.load(Path(__file__).parents[1] / "vectors" / "noise_loss.npz")
ALL = torch.arange(1000)


def vector(name: str) -> torch.Tensor:
    return torch.from_numpy(VECTORS[name])


DIFFUSION = Diffusion(vector("alphas_cumprod"), "epsilon")


def error_of(**options: Any) -> torch.Tensor:
    chosen = LossOptions(**options)
    return error(chosen, DIFFUSION, vector("latents"), vector("noise"), torch.tensor([300, 700]))


@pytest.mark.parametrize("loss_type", ["l2", "l1"])
def test_errors_are_the_references(loss_type: str) -> None:
    found = error_of(loss_type=loss_type)
    torch.testing.assert_close(found, vector(f"loss_{loss_type}_none"))
    torch.testing.assert_close(picture_loss(found).mean(), vector(f"loss_{loss_type}_mean"))


@pytest.mark.parametrize("loss_type", ["huber", "smooth_l1"])
def test_huber_errors_are_the_references(loss_type: str) -> None:
    constant = error_of(loss_type=loss_type, huber_schedule="constant", huber_c=0.3)
    d = vector("latents").double() - vector("noise").double()
    expected = 2 * ((d.square() + 0.09).sqrt() - 0.3) * (0.3 if loss_type == "huber" else 1)
    torch.testing.assert_close(constant, expected.float(), rtol=1e-4, atol=1e-6)


def test_huber_points_are_the_references() -> None:
    points = huber_points(LossOptions(), DIFFUSION, ALL)
    torch.testing.assert_close(points, vector("huber_c_snr"), rtol=1e-5, atol=0)
    points = huber_points(LossOptions(huber_schedule="constant"), DIFFUSION, ALL)
    torch.testing.assert_close(points, vector("huber_c_constant"), rtol=1e-6, atol=0)
    points = huber_points(LossOptions(huber_schedule="exponential", huber_scale=2.0), DIFFUSION, ALL)
    expected = torch.tensor([1, 0.1**0.5, 0.1**0.999]) * 2
    torch.testing.assert_close(points[[0, 500, 999]], expected, rtol=1e-5, atol=0)


def test_the_loss_is_the_mean_over_the_mask() -> None:
    torch.manual_seed(0)
    prediction_BCHW, target_BCHW = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 6, 8)
    masks_BHW = torch.zeros(3, 48, 64)
    masks_BHW[0] = 1
    masks_BHW[1, :, :32] = 1
    error_BCHW = (prediction_BCHW - target_BCHW).square()
    loss_B = picture_loss((prediction_BCHW - target_BCHW).square(), masks_BHW)
    whole_B = picture_loss((prediction_BCHW - target_BCHW).square())
    assert loss_B[0] == pytest.approx(float(whole_B[0]), rel=1e-6), "white all over is no mask"
    assert loss_B[1] == pytest.approx(float(error_BCHW[1, :, :, :4].mean()), rel=1e-6), "however much is black"
    assert loss_B[2] == 0


def test_masks_are_averaged_over_areas() -> None:
    prediction_BCHW = torch.zeros(1, 1, 1, 2)
    target_BCHW = torch.tensor([[[[1.0, 3.0]]]])
    masks_BHW = torch.zeros(1, 8, 16)
    masks_BHW[:, :4, :8] = 1  # half of the left latent pixel
    masks_BHW[:, :2, 8:] = 1  # a quarter of the right one
    loss_B = picture_loss((prediction_BCHW - target_BCHW).square(), masks_BHW)
    assert loss_B.item() == pytest.approx((0.5 * 1 + 0.25 * 9) / 0.75)


def test_black_areas_get_no_gradient() -> None:
    prediction_BCHW = torch.zeros(1, 2, 4, 4, requires_grad=True)
    masks_BHW = torch.zeros(1, 32, 32)
    masks_BHW[:, :, :16] = 1
    picture_loss((prediction_BCHW - 1).square(), masks_BHW).sum().backward()
    assert prediction_BCHW.grad is not None
    assert (prediction_BCHW.grad[..., 2:] == 0).all() and (prediction_BCHW.grad[..., :2] != 0).all()
