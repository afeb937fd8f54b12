"""Noise, timesteps, targets and weights against the reference's numbers and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.maths.diffusion import Diffusion, TimestepOptions, draw_timesteps
from trainer.maths.losses import LossOptions, level_weight, picture_loss
from trainer.maths.noise import NoiseOptions, sample_noise

VECTORS = np.load(Path(__file__).parents[1] / "vectors" / "noise_loss.npz")
ALL = torch.arange(1000)


def vector(name: str) -> torch.Tensor:
    return torch.from_numpy(VECTORS[name])


def diffusion(prediction: str = "epsilon") -> Diffusion:
    return Diffusion(vector("alphas_cumprod"), prediction)  # type: ignore[arg-type]


def test_snr_is_the_references() -> None:
    torch.testing.assert_close(diffusion().snr(ALL), vector("all_snr"), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "prediction", "gamma"),
    [
        ("min_snr_eps_g1", "epsilon", 1.0),
        ("min_snr_eps_g5", "epsilon", 5.0),
        ("min_snr_v_g5", "v_prediction", 5.0),
        ("min_snr_v_g20", "v_prediction", 20.0),
    ],
)
def test_min_snr_weights_are_the_references(name: str, prediction: str, gamma: float) -> None:
    weights = level_weight(LossOptions(min_snr_gamma=gamma), diffusion(prediction), ALL)
    torch.testing.assert_close(weights, vector(name), rtol=1e-5, atol=1e-8)


def test_without_gamma_all_levels_weigh_one() -> None:
    assert torch.equal(level_weight(LossOptions(), diffusion(), ALL), torch.ones(1000))


def test_noisy_latents_are_the_references() -> None:
    noise, t = vector("gnnt_plain_seed1_noise"), vector("gnnt_plain_seed1_t")
    noisy = diffusion().noisy(vector("latents"), noise, t)
    torch.testing.assert_close(noisy, vector("gnnt_plain_seed1_noisy"), rtol=1e-5, atol=1e-6)


def test_v_target_is_the_closed_form_in_float64() -> None:
    x, noise, t = vector("latents"), vector("noise"), torch.tensor([3, 700])
    a = VECTORS["alphas_cumprod"].astype(np.float64)[t.numpy()].reshape(2, 1, 1, 1)
    expected = np.sqrt(a) * VECTORS["noise"] - np.sqrt(1 - a) * VECTORS["latents"]
    target = diffusion("v_prediction").target(x, noise, t)
    np.testing.assert_allclose(target.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_v_and_x_t_give_back_the_picture() -> None:
    x, noise, t = vector("latents"), vector("noise"), torch.tensor([10, 900])
    d = diffusion("v_prediction")
    a = d.alphas_cumprod_T[t].reshape(2, 1, 1, 1)
    back = a.sqrt() * d.noisy(x, noise, t) - (1 - a).sqrt() * d.target(x, noise, t)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-4)


def test_epsilon_target_is_the_noise() -> None:
    noise = vector("noise")
    assert diffusion().target(vector("latents"), noise, torch.tensor([0, 999])) is noise


def test_timesteps_cover_the_range_evenly() -> None:
    drawn = draw_timesteps(TimestepOptions(min_timestep=200, max_timestep=400), seed=0, epoch=0, slots=range(20000))
    assert int(drawn.min()) == 200 and int(drawn.max()) == 399
    counts = torch.bincount(drawn - 200, minlength=200).float()
    assert abs(float(drawn.float().mean()) - 299.5) < 2
    assert float(counts.min()) > 50  # 100 each expected


def test_offset_noise_has_the_references_statistics() -> None:
    """noise + o N(0,1) per channel: the channel means have variance 1/HW + o^2, as the reference's do."""
    latents = torch.zeros(500, 4, 16, 24)
    noise = sample_noise(latents, NoiseOptions(noise_offset=0.1), seed=0, epoch=0, slots=range(500))
    variance = float(noise.mean(dim=(2, 3)).var())
    assert variance == pytest.approx(1 / (16 * 24) + 0.1**2, rel=0.1)
    plain = sample_noise(latents, NoiseOptions(), seed=0, epoch=0, slots=range(500))
    shift = noise - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5, rtol=0)


def test_zero_offset_is_plain_noise() -> None:
    latents = torch.zeros(2, 4, 8, 8)
    a = sample_noise(latents, NoiseOptions(noise_offset=0.0), seed=1, epoch=0, slots=[0, 1])
    b = sample_noise(latents, NoiseOptions(), seed=1, epoch=0, slots=[0, 1])
    assert torch.equal(a, b)


def test_picture_loss_is_the_references_mean() -> None:
    loss = picture_loss(vector("latents"), vector("noise"))
    assert loss.shape == (2,)
    torch.testing.assert_close(loss, vector("loss_l2_none").mean(dim=(1, 2, 3)))
    torch.testing.assert_close(loss.mean(), vector("loss_l2_mean"))


def test_an_empty_range_of_timesteps_is_a_problem() -> None:
    (problem,) = TimestepOptions(min_timestep=500, max_timestep=500).problems()
    assert problem.option == "min_timestep"
