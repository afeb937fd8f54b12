"""Masks weigh each picture's loss by itself."""

from __future__ import annotations

import pytest
import torch

from trainer.maths.losses import picture_loss


def test_the_loss_is_the_mean_over_the_mask() -> None:
    torch.manual_seed(0)
    prediction_BCHW, target_BCHW = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 6, 8)
    masks_BHW = torch.zeros(3, 48, 64)
    masks_BHW[0] = 1
    masks_BHW[1, :, :32] = 1
    error_BCHW = (prediction_BCHW - target_BCHW).square()
    loss_B = picture_loss(prediction_BCHW, target_BCHW, masks_BHW)
    whole_B = picture_loss(prediction_BCHW, target_BCHW)
    assert loss_B[0] == pytest.approx(float(whole_B[0]), rel=1e-6), "white all over is no mask"
    assert loss_B[1] == pytest.approx(float(error_BCHW[1, :, :, :4].mean()), rel=1e-6), "however much is black"
    assert loss_B[2] == 0


def test_masks_are_averaged_over_areas() -> None:
    prediction_BCHW = torch.zeros(1, 1, 1, 2)
    target_BCHW = torch.tensor([[[[1.0, 3.0]]]])
    masks_BHW = torch.zeros(1, 8, 16)
    masks_BHW[:, :4, :8] = 1  # half of the left latent pixel
    masks_BHW[:, :2, 8:] = 1  # a quarter of the right one
    loss_B = picture_loss(prediction_BCHW, target_BCHW, masks_BHW)
    assert loss_B.item() == pytest.approx((0.5 * 1 + 0.25 * 9) / 0.75)


def test_black_areas_get_no_gradient() -> None:
    prediction_BCHW = torch.zeros(1, 2, 4, 4, requires_grad=True)
    masks_BHW = torch.zeros(1, 32, 32)
    masks_BHW[:, :, :16] = 1
    picture_loss(prediction_BCHW, torch.ones(1, 2, 4, 4), masks_BHW).sum().backward()
    assert prediction_BCHW.grad is not None
    assert (prediction_BCHW.grad[..., 2:] == 0).all() and (prediction_BCHW.grad[..., :2] != 0).all()
