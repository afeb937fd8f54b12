"""Stable Diffusion 1.x: conditioning, latents, predictions and samples equal diffusers' own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from trainer.errors import ConfigError
from trainer.families._samplers import SAMPLER_NAMES, build_scheduler
from trainer.families.base import ModelOptions, SampleRequest, load_family
from trainer.families.sd1 import StableDiffusion1

SMALL = {"width": 64, "height": 64, "steps": 3, "seed": 5}


def load(path: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> StableDiffusion1:
    built = ModelOptions(pretrained_model_name_or_path=str(path), **options)
    family = load_family(built, dtype=dtype, device="cpu")
    assert isinstance(family, StableDiffusion1)
    return family


@pytest.fixture(scope="module")
def family(tiny_folder: Path) -> StableDiffusion1:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> Iterator[Any]:
    loaded = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, requires_safety_checker=False)
    loaded.set_progress_bar_config(disable=True)
    yield loaded


def test_everything_is_frozen_and_in_eval_mode(family: StableDiffusion1) -> None:
    for module in (family.denoiser, family.vae, *family.text_encoders):
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(part.training for part in module.modules())
    assert set(family.components()) == {"denoiser", "text_encoder"}


def test_noise_schedule(family: StableDiffusion1) -> None:
    # the values sd-scripts was seen to use
    assert family.alphas_cumprod.dtype == torch.float32
    assert family.alphas_cumprod[[0, 500, 999]].tolist() == pytest.approx([0.999150, 0.276332, 0.004660], abs=1e-6)


def test_prompts(family: StableDiffusion1, pipeline: Any) -> None:
    captions = ["a photo of a cat", "", "word " * 200]
    ours_BLD = family.encode_prompts(family.text_encoders, captions).states_BLD
    assert ours_BLD.shape == (3, 77, 32)
    theirs = [pipeline.encode_prompt(c, "cpu", 1, do_classifier_free_guidance=False)[0] for c in captions]
    assert torch.allclose(ours_BLD, torch.cat(theirs), atol=1e-6)


def test_clip_skip(tiny_folder: Path, family: StableDiffusion1) -> None:
    encoder = family.text_encoders[0]
    tokens_BL = family.tokenizers[0](["a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    hidden = encoder(tokens_BL, output_hidden_states=True).hidden_states
    skipping = load(tiny_folder, clip_skip=2)
    states_BLD = skipping.encode_prompts((encoder,), ["a cat"]).states_BLD
    assert torch.equal(states_BLD, encoder.final_layer_norm(hidden[-2]))
    first = load(tiny_folder, clip_skip=1).encode_prompts((encoder,), ["a cat"]).states_BLD
    assert torch.equal(first, encoder.final_layer_norm(hidden[-1]))
    assert not torch.allclose(first, states_BLD, atol=1e-3)


def test_long_and_weighted_captions(tiny_folder: Path) -> None:
    reading = load(tiny_folder, max_token_length=150, weighted_captions=True)
    states_BLD = reading.encode_prompts(reading.text_encoders, ["a (cat)", "a (cat:1.1)"]).states_BLD
    assert states_BLD.shape == (2, 152, 32) and torch.equal(states_BLD[0], states_BLD[1])
    picture = reading.sample(reading.denoiser, reading.text_encoders, SampleRequest("a (cat:2)", **SMALL))
    plain = reading.sample(reading.denoiser, reading.text_encoders, SampleRequest("a cat", **SMALL))
    assert difference(picture, plain) > 0


def test_clip_skip_beyond_the_first_layer(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="clip_skip: the text encoder has 3 layers .*got 4"):
        load(tiny_folder, clip_skip=4)


def test_latents_and_decoding(family: StableDiffusion1, pipeline: Any) -> None:
    pixels_BCHW = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean_BCHW, std_BCHW = family.encode_latents(pixels_BCHW)
    assert mean_BCHW.shape == std_BCHW.shape == (2, 4, 8, 4)
    theirs = pipeline.vae.encode(pixels_BCHW).latent_dist
    assert torch.allclose(mean_BCHW, theirs.mean * 0.18215, atol=1e-6)
    assert torch.allclose(std_BCHW, theirs.std * 0.18215, atol=1e-6)
    decoded = pipeline.vae.decode(mean_BCHW / 0.18215).sample
    assert torch.allclose(family.decode(mean_BCHW), decoded, atol=1e-6)


def test_predict_goes_through_the_module_handed_in(family: StableDiffusion1) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return (family.denoiser(*args, **kwargs)[0] * 2,)

    conditioning = family.encode_prompts(family.text_encoders, ["a"])
    arguments = (torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning)
    assert torch.equal(family.predict(Doubled(), *arguments), 2 * family.predict(family.denoiser, *arguments))


def difference(a: Any, b: Any) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def draw(pipeline: Any, scheduler: Any, **more: Any) -> Any:
    built = type(pipeline)(**{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False)
    built.set_progress_bar_config(disable=True)
    return built(
        "a cat",
        negative_prompt="bad",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(5),
        **more,
    ).images[0]


def test_sample_is_the_pipelines_picture(family: StableDiffusion1, pipeline: Any) -> None:
    request = SampleRequest("a cat", negative_prompt="bad", **SMALL)
    ours = family.sample(family.denoiser, family.text_encoders, request)
    theirs = draw(pipeline, DDIMScheduler.from_config(pipeline.scheduler.config))
    assert ours.size == (64, 64)
    assert difference(ours, theirs) == 0


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_sampler(family: StableDiffusion1, pipeline: Any, sampler: str) -> None:
    request = SampleRequest("a cat", negative_prompt="bad", sampler=sampler, **SMALL)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = family.sample(family.denoiser, family.text_encoders, request)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])
    torch.manual_seed(99)
    assert difference(first, family.sample(family.denoiser, family.text_encoders, request)) == 0
    assert difference(first, draw(pipeline, build_scheduler(sampler, pipeline.scheduler.config))) == 0


def test_samplers_are_what_their_names_say() -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    assert isinstance(build_scheduler("k_dpm_2_a", config), diffusers.KDPM2AncestralDiscreteScheduler)
    assert build_scheduler("dpmsolver", config).config.algorithm_type == "dpmsolver"
    assert build_scheduler("dpmsolver++", config).config.algorithm_type == "dpmsolver++"
    velocity = build_scheduler("euler", {**config, "prediction_type": "v_prediction"})
    assert velocity.config.prediction_type == "v_prediction"
    assert velocity.config.beta_schedule == "scaled_linear"


def test_unknown_sampler(family: StableDiffusion1) -> None:
    with pytest.raises(ConfigError, match=r"not a sampler.*got eular.*ddim, pndm.*Did you mean euler\?"):
        family.sample(family.denoiser, family.text_encoders, SampleRequest("a", sampler="eular"))


def test_sizes_that_cannot_be_drawn(family: StableDiffusion1) -> None:
    with pytest.raises(ConfigError, match=r"height.*multiple of 8.*got 100"):
        family.sample(family.denoiser, family.text_encoders, SampleRequest("a", width=64, height=100))


def test_sample_without_a_seed_differs(family: StableDiffusion1) -> None:
    request = SampleRequest("a", width=64, height=64, steps=2)
    pictures = [family.sample(family.denoiser, family.text_encoders, request) for _ in range(2)]
    assert difference(*pictures) > 0


def test_sample_restores_modes(tiny_folder: Path) -> None:
    family = load(tiny_folder)
    family.denoiser.train()
    family.denoiser.mid_block.eval()
    before = [part.training for part in family.denoiser.modules()]
    family.sample(family.denoiser, family.text_encoders, SampleRequest("a", **SMALL))
    assert [part.training for part in family.denoiser.modules()] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_folder: Path, dtype: torch.dtype) -> None:
    family = load(tiny_folder, dtype=dtype)
    assert family.denoiser.dtype == family.text_encoders[0].dtype == dtype
    assert family.vae.dtype == torch.float32
    conditioning = family.encode_prompts(family.text_encoders, ["a"])
    answer = family.predict(family.denoiser, torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning)
    assert answer.dtype == torch.float32
    assert family.sample(family.denoiser, family.text_encoders, SampleRequest("a", **SMALL)).size == (64, 64)


def test_gradient_checkpointing_keeps_gradients(tiny_folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        family = load(tiny_folder)
        if checkpointing:
            family.enable_gradient_checkpointing(text_encoders=True)
        trained = [family.denoiser.conv_in.weight, family.text_encoders[0].encoder.layers[0].mlp.fc1.weight]
        for weight in trained:
            weight.requires_grad_(True)
        family.denoiser.train()
        family.text_encoders[0].train()
        conditioning = family.encode_prompts(family.text_encoders, ["a"])
        family.predict(family.denoiser, torch.ones(1, 4, 8, 8), torch.tensor([5]), conditioning).sum().backward()
        gradients.append([weight.grad for weight in trained])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-6)


def test_adapter_targets(family: StableDiffusion1) -> None:
    from safetensors import safe_open

    unet, encoder = family.adapter_targets()
    assert (unet.component, len(unet.names)) == ("denoiser", 192)
    assert (encoder.component, len(encoder.names)) == ("text_encoder", 3 * 6)
    with safe_open("tests/vectors/sdscripts_lora_dim4.safetensors", "pt") as file:
        saved = {key.partition(".")[0] for key in file.keys()}  # noqa: SIM118
    assert set(unet.names.values()) == {name for name in saved if name.startswith("lora_unet")}
    assert set(encoder.names.values()) == {n for n in saved if n.startswith("lora_te") and "layers_3" not in n}


def test_v_prediction(tmp_path: Path) -> None:
    from tests.tiny import tiny_sd1

    folder = tiny_sd1(tmp_path / "v", prediction_type="v_prediction")
    assert load(folder).prediction_type == load(folder, v_parameterization=True).prediction_type == "v_prediction"


def test_zero_terminal_snr(tiny_folder: Path) -> None:
    """The reference's rescaled schedule; samplers that can end in pure noise begin there."""
    vectors = np.load(Path(__file__).parents[1] / "vectors" / "noise_loss.npz")
    family = load(tiny_folder, zero_terminal_snr=True)
    expected = torch.from_numpy(vectors["ztsnr_alphas_cumprod"])
    torch.testing.assert_close(family.alphas_cumprod, expected, rtol=1e-4, atol=1e-7)
    assert family.alphas_cumprod[-1] == 0
    sampler = build_scheduler("ddim", family.scheduler_config)
    sampler.set_timesteps(10)
    assert sampler.alphas_cumprod[-1] == 0 and sampler.timesteps[0] == 999
    assert load(tiny_folder).alphas_cumprod[-1] > 0.004
