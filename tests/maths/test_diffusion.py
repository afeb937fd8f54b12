"""Noise, timesteps, targets and weights against the reference's numbers and closed forms."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.maths.diffusion import Diffusion, Prediction, ReadingCheck, TimestepOptions, draw_timesteps
from trainer.maths.losses import LossOptions, huber_points, level_weight, prediction_problems
from trainer.maths.noise import NoiseOptions, offset_strength, perturbed, pyramid_noise, sample_noise

VECTORS = np.load(Path(__file__).parents[1] / "vectors" / "noise_loss.npz")
ALL = torch.arange(1000)


def vector(name: str) -> torch.Tensor:
    return torch.from_numpy(VECTORS[name])


def diffusion(prediction: Prediction = "epsilon") -> Diffusion:
    return Diffusion(vector("alphas_cumprod"), prediction)


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


def test_debiased_weights_are_the_references() -> None:
    weights = level_weight(LossOptions(debiased_estimation_loss=True), diffusion(), ALL)
    torch.testing.assert_close(weights, vector("debiased_eps"), rtol=1e-5, atol=0)
    weights = level_weight(LossOptions(debiased_estimation_loss=True), diffusion("v_prediction"), ALL)
    snr = vector("all_snr").clamp(max=1000)
    torch.testing.assert_close(weights, 1 / (snr + 1), rtol=1e-5, atol=0)


def test_v_is_scaled_like_noise_as_in_the_reference() -> None:
    options = LossOptions(scale_v_pred_loss_like_noise_pred=True)
    weights = level_weight(options, diffusion("v_prediction"), ALL)
    torch.testing.assert_close(weights, vector("scale_v"), rtol=1e-5, atol=0)


def test_v_like_loss_is_the_closed_form_and_weights_multiply() -> None:
    snr = vector("all_snr").clamp(max=1000)
    alone = level_weight(LossOptions(v_pred_like_loss=0.5), diffusion(), ALL)
    torch.testing.assert_close(alone, 1 + 0.5 * (snr + 1) / snr, rtol=1e-5, atol=0)
    both = level_weight(LossOptions(v_pred_like_loss=0.5, min_snr_gamma=5.0), diffusion(), ALL)
    torch.testing.assert_close(both, alone * vector("min_snr_eps_g5"), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_no_weight_is_infinite_where_the_schedule_ends_in_noise(prediction: str) -> None:
    alphas = vector("ztsnr_alphas_cumprod").clone()
    alphas[-1] = 0
    ends_in_noise = Diffusion(alphas, prediction)
    options = LossOptions(
        min_snr_gamma=5.0, debiased_estimation_loss=True, v_pred_like_loss=1.0, scale_v_pred_loss_like_noise_pred=True
    )
    for options_one in (options, LossOptions(min_snr_gamma=5.0), LossOptions(debiased_estimation_loss=True)):
        weights = level_weight(options_one, ends_in_noise, ALL)
        assert torch.isfinite(weights).all() and (weights >= 0).all()
    points = huber_points(LossOptions(loss_type="huber"), ends_in_noise, ALL)
    assert torch.isfinite(points).all() and points[-1] == pytest.approx(0.1)


def test_weights_for_the_other_prediction_are_refused() -> None:
    options = LossOptions(scale_v_pred_loss_like_noise_pred=True, v_pred_like_loss=0.5)
    (problem,) = prediction_problems(options, "epsilon")
    assert problem.option == "scale_v_pred_loss_like_noise_pred"
    (problem,) = prediction_problems(options, "v_prediction")
    assert problem.option == "v_pred_like_loss"


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


def test_adaptive_offset_is_the_references() -> None:
    """The reference's draws of the offset, recovered from its plain offset noise, at the adapted strength."""
    plain = vector("noise_offset_0.1_seed1") - vector("noise")
    adapted = vector("noise_offset_0.1_adaptive0.05_seed1") - vector("noise")
    options = NoiseOptions(noise_offset=0.1, adaptive_noise_scale=0.05)
    strength = offset_strength(options, vector("latents"), torch.full((2, 1, 1, 1), 0.1))
    torch.testing.assert_close(plain / 0.1 * strength, adapted, rtol=1e-4, atol=1e-6)


def test_negative_adaptation_never_turns_the_offset_round() -> None:
    options = NoiseOptions(noise_offset=0.1, adaptive_noise_scale=-0.9)
    strength = offset_strength(options, torch.ones(1, 4, 8, 8), torch.full((1, 1, 1, 1), 0.1))
    assert (strength == 0).all()


@pytest.mark.parametrize(("iterations", "discount"), [(6, 0.4), (8, 0.3), (2, 0.8)])
def test_pyramid_noise_is_the_references(iterations: int, discount: float) -> None:
    options = NoiseOptions(multires_noise_iterations=iterations, multires_noise_discount=discount)
    draws = torch.Generator().manual_seed(1)
    noise = pyramid_noise(vector("noise"), options, random.Random(1), draws)
    expected = vector(f"pyramid_it{iterations}_d{discount}_seed1")
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-5)


def test_perturbed_noise_is_the_references() -> None:
    """Its noisy latents of one seed with and without the perturbation of strength 0.1 differ by sigma times draws."""
    t = vector("gnnt_ip_seed1_t")
    plain = diffusion().noisy(vector("latents"), vector("gnnt_ip_seed1_noise"), t)
    sigma = (1 - vector("alphas_cumprod")[t]).sqrt().reshape(2, 1, 1, 1)
    theirs = (vector("gnnt_ip_seed1_noisy") - plain) / sigma
    noise = torch.zeros(2, 4, 16, 24)
    ours = perturbed(noise, NoiseOptions(ip_noise_gamma=0.1), seed=0, epoch=0, slots=[0, 1])
    assert float(ours.std()) == pytest.approx(0.1, rel=0.05) == float(theirs.std())


def test_every_picture_draws_its_own_noise_whatever_its_batch() -> None:
    options = NoiseOptions(
        noise_offset=0.1,
        noise_offset_random_strength=True,
        adaptive_noise_scale=0.1,
        multires_noise_iterations=6,
        ip_noise_gamma=0.1,
        ip_noise_gamma_random_strength=True,
    )
    latents = vector("latents")
    both = sample_noise(latents, options, seed=3, epoch=1, slots=[5, 8])
    alone = sample_noise(latents[1:], options, seed=3, epoch=1, slots=[8])
    assert torch.equal(both[1:], alone)
    seen = perturbed(both, options, seed=3, epoch=1, slots=[5, 8])
    assert torch.equal(seen[1:], perturbed(alone, options, seed=3, epoch=1, slots=[8]))
    assert not torch.equal(seen, both)


def test_random_strengths_are_even() -> None:
    latents, slots = torch.zeros(400, 1, 2, 2), range(400)
    options = NoiseOptions(ip_noise_gamma=1.0, ip_noise_gamma_random_strength=True)
    full = perturbed(latents, NoiseOptions(ip_noise_gamma=1.0), seed=0, epoch=0, slots=slots)
    share = (perturbed(latents, options, seed=0, epoch=0, slots=slots) / full)[:, 0, 0, 0]
    assert 0 <= float(share.min()) < 0.05 and 0.95 < float(share.max()) < 1
    assert float(share.mean()) == pytest.approx(0.5, abs=0.05)


def test_options_that_change_nothing_are_problems() -> None:
    options = NoiseOptions(adaptive_noise_scale=0.1, ip_noise_gamma_random_strength=True)
    assert [problem.option for problem in options.problems()] == [
        "adaptive_noise_scale",
        "ip_noise_gamma_random_strength",
    ]


def test_an_empty_range_of_timesteps_is_a_problem() -> None:
    (problem,) = TimestepOptions(min_timestep=500, max_timestep=500).problems()
    assert problem.option == "min_timestep"


@pytest.mark.parametrize("read_as", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("is_right", [True, False])
def test_a_model_that_is_read_wrongly_is_noticed(read_as: Prediction, is_right: bool) -> None:
    """A model that answers with the right thing, and with the other one, each with some error of its own."""
    other: Prediction = "v_prediction" if read_as == "epsilon" else "epsilon"
    read = diffusion(read_as)
    true = read if is_right else diffusion(other)
    said: list[str] = []
    check = ReadingCheck(read, said.append)
    draws = torch.Generator().manual_seed(0)
    for _ in range(40):
        latents, noise = (torch.randn(2, 4, 8, 8, generator=draws) for _ in range(2))
        timesteps = torch.randint(0, 1000, (2,), generator=draws)
        answer = true.target(latents, noise, timesteps) + 0.3 * torch.randn(2, 4, 8, 8, generator=draws)
        check(answer, latents, noise, timesteps)
    assert len(said) == (0 if is_right else 1)
    assert is_right or (
        "v_parameterization" in said[0] and {"epsilon": "noise", "v_prediction": "velocity"}[other] in said[0]
    )
