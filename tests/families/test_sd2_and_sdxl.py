"""Stable Diffusion 2 and XL: conditioning, predictions, samples and adapter files equal diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from trainer.adapters.base import AdapterOptions
from trainer.adapters.lora import Lora
from trainer.errors import ConfigError
from trainer.families.base import ModelOptions, SampleRequest, doubts, load_family
from trainer.families.sd2 import StableDiffusion2
from trainer.families.sdxl import StableDiffusionXL
from trainer.formats.kohya import save_lora
from trainer.formats.model_facts import inspect_model

SMALL = {"width": 64, "height": 48, "steps": 3, "seed": 5}
CAPTIONS = ["a photo of a cat", "", "word " * 200]
PIPELINES = {"sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


@pytest.fixture(params=["sd2", "sdxl"])
def folder(request: pytest.FixtureRequest, tiny_sd2_folder: Path, tiny_sdxl_folder: Path) -> Path:
    return {"sd2": tiny_sd2_folder, "sdxl": tiny_sdxl_folder}[request.param]


def load(path: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return load_family(ModelOptions(pretrained_model_name_or_path=str(path), **options), dtype=dtype, device="cpu")


def opened(folder: Path) -> Any:
    """diffusers' own pipeline, drawing by DDIM as a sample does."""
    pipeline = getattr(diffusers, PIPELINES[folder.name]).from_pretrained(folder)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(a: Any, b: Any) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_what_the_files_say(tiny_sd2_folder: Path, tiny_sdxl_folder: Path) -> None:
    velocity, xl = load(tiny_sd2_folder), load(tiny_sdxl_folder)
    assert isinstance(velocity, StableDiffusion2) and isinstance(xl, StableDiffusionXL)
    assert (velocity.prediction_type, velocity.architecture) == ("v_prediction", "stable-diffusion-v2-768-v")
    assert (velocity.default_resolution, xl.default_resolution) == (768, 1024)
    assert set(xl.components()) == {"denoiser", "text_encoder", "text_encoder_2"}
    for module in (xl.denoiser, xl.vae, *xl.text_encoders):
        assert not any(p.requires_grad for p in module.parameters())


def test_a_base_model_of_2(tmp_path: Path) -> None:
    from tests.tiny import tiny_sd2

    noise = load(tiny_sd2(tmp_path / "base"))
    assert (noise.architecture, noise.default_resolution) == ("stable-diffusion-v2-512", 512)


def test_prompts_of_2(tiny_sd2_folder: Path) -> None:
    family, pipeline = load(tiny_sd2_folder), opened(tiny_sd2_folder)
    ours_BLD = family.encode_prompts(family.text_encoders, CAPTIONS).states_BLD
    theirs = [pipeline.encode_prompt(c, "cpu", 1, do_classifier_free_guidance=False)[0] for c in CAPTIONS]
    assert torch.allclose(ours_BLD, torch.cat(theirs), atol=1e-6)


def test_prompts_of_xl(tiny_sdxl_folder: Path) -> None:
    family, pipeline = load(tiny_sdxl_folder), opened(tiny_sdxl_folder)
    ours = family.encode_prompts(family.text_encoders, CAPTIONS)
    assert ours.states_BLD.shape == (3, 77, 80) and ours.pooled_BD.shape == (3, 48)
    theirs = [pipeline.encode_prompt(c, device="cpu", do_classifier_free_guidance=False) for c in CAPTIONS]
    assert torch.allclose(ours.states_BLD, torch.cat([states for states, _, _, _ in theirs]), atol=1e-6)
    assert torch.allclose(ours.pooled_BD, torch.cat([pooled for _, _, pooled, _ in theirs]), atol=1e-6)


def test_long_captions_of_xl(tiny_sdxl_folder: Path) -> None:
    short, long = load(tiny_sdxl_folder), load(tiny_sdxl_folder, max_token_length=150, weighted_captions=True)
    few, many = (f.encode_prompts(f.text_encoders, ["a (cat:1.3)" + " word" * 90]) for f in (short, long))
    assert few.states_BLD.shape == (1, 77, 80) and many.states_BLD.shape == (1, 152, 80)
    # the whole-caption state is the first chunk's
    first = short.encode_prompts(short.text_encoders, ["a cat" + " word" * 90])
    assert torch.allclose(many.pooled_BD, first.pooled_BD, atol=1e-6)


def test_sample_is_the_pipelines_picture(folder: Path) -> None:
    family = load(folder)
    request = SampleRequest("a cat", negative_prompt="bad", **SMALL)
    ours = family.sample(family.denoiser, family.text_encoders, request)
    theirs = opened(folder)(
        "a cat", negative_prompt="bad", width=64, height=48, num_inference_steps=3, guidance_scale=7.5,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert ours.size == (64, 48)
    assert difference(ours, theirs) <= 1


def test_xl_is_told_how_pictures_are_framed(tiny_sdxl_folder: Path) -> None:
    family = load(tiny_sdxl_folder)
    told: list[torch.Tensor] = []

    class Listening(torch.nn.Module):
        def forward(self, *args: Any, **more: Any) -> Any:
            told.append(more["added_cond_kwargs"]["time_ids"])
            return family.denoiser(*args, **more)

    noisy_BCHW, steps_B = torch.randn(2, 4, 6, 8), torch.tensor([5, 900])
    conditioning = family.encode_prompts(family.text_encoders, ["a", "b"])
    frames_B4 = torch.tensor([[100.0, 200.0, 0.0, 7.0], [480.0, 640.0, 3.0, 0.0]])
    framed = family.predict(Listening(), noisy_BCHW, steps_B, conditioning, frames_B4)
    whole = family.predict(Listening(), noisy_BCHW, steps_B, conditioning)
    assert told[0].tolist() == [[100, 200, 0, 7, 48, 64], [480, 640, 3, 0, 48, 64]]
    assert told[1].tolist() == [[48, 64, 0, 0, 48, 64]] * 2
    assert not torch.allclose(framed, whole)


def randomised(folder: Path) -> tuple[Any, Lora]:
    family = load(folder)
    lora = Lora(AdapterOptions(network_dim=2, network_alpha=1.0), seed=1)
    for target in family.adapter_targets():
        lora.inject(target)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for component in family.components():
            for parameter in lora.parameters(component):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return family, lora


def test_diffusers_uses_every_key_of_an_adapter(folder: Path, tmp_path: Path) -> None:
    family, lora = randomised(folder)
    path = save_lora(lora.state_dict(), tmp_path / "l.safetensors", precision="float", metadata={})
    pipeline = opened(folder)
    pipeline.load_lora_weights(path)
    modules = [pipeline.components.get(name) for name in ("unet", "text_encoder", "text_encoder_2")]
    loaded = sum(1 for m in modules if m is not None for name, _ in m.named_parameters() if ".lora_A." in name)
    assert 3 * loaded == len(lora.state_dict())
    request = SampleRequest("a cat", **{**SMALL, "height": 64})
    ours = family.sample(family.denoiser, family.text_encoders, request)
    theirs = pipeline(
        "a cat", negative_prompt="", width=64, height=64, num_inference_steps=3, guidance_scale=7.5,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert difference(ours, theirs) <= 1
    plain = load(folder)
    assert difference(ours, plain.sample(plain.denoiser, plain.text_encoders, request)) > 20


def test_names_of_adapters(tiny_sd2_folder: Path, tiny_sdxl_folder: Path) -> None:
    unet, encoder, encoder_2 = load(tiny_sdxl_folder).adapter_targets()
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in unet.names.values()
    assert "lora_unet_middle_block_1_proj_in" in unet.names.values()
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in encoder.names.values()
    assert "lora_te2_text_model_encoder_layers_0_mlp_fc1" in encoder_2.names.values()
    names = {name for target in load(tiny_sd2_folder).adapter_targets() for name in target.names.values()}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in names
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in names


def test_half_precision(folder: Path) -> None:
    family = load(folder, dtype=torch.bfloat16)
    assert family.denoiser.dtype == torch.bfloat16 and family.vae.dtype == torch.float32
    request = SampleRequest("a", **SMALL)
    assert family.sample(family.denoiser, family.text_encoders, request).size == (64, 48)


def test_every_adapter_of_a_skipped_layer_has_a_gradient(tiny_sdxl_folder: Path) -> None:
    """Several processes wait for every parameter's."""
    family, lora = randomised(tiny_sdxl_folder)
    conditioning = family.encode_prompts(family.text_encoders, ["a"])
    family.predict(family.denoiser, torch.ones(1, 4, 8, 8), torch.tensor([5]), conditioning).sum().backward()
    assert all(p.grad is not None for name in family.components() for p in lora.parameters(name))


def options(path: Path, **more: Any) -> ModelOptions:
    return ModelOptions(pretrained_model_name_or_path=str(path), **more)


@pytest.mark.parametrize(("more", "said"), [({}, []), ({"clip_skip": 2}, ["clip_skip"])])
def test_doubts(folder: Path, more: dict[str, Any], said: list[str]) -> None:
    assert [p.option for p in doubts(options(folder, **more), inspect_model(folder))] == said


def test_flags_that_the_model_disproves(tiny_sdxl_folder: Path) -> None:
    with pytest.raises(ConfigError, match="v2: .*is Stable Diffusion XL, not Stable Diffusion 2"):
        load(tiny_sdxl_folder, v2=True)
    load(tiny_sdxl_folder, sdxl=True)


def test_single_files(folder: Path, tmp_path: Path) -> None:
    """The whole model there and back: the same weights, the same picture."""
    family = load(folder)
    file = family.save_single_file(tmp_path / "m.safetensors")
    again = load(file)
    assert (again.prediction_type, type(again)) == (family.prediction_type, type(family))
    for (name, ours), (_, theirs) in zip(family.components().items(), again.components().items(), strict=True):
        state = theirs.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items()), name
    request = SampleRequest("a cat", **SMALL)
    pictures = [f.sample(f.denoiser, f.text_encoders, request) for f in (family, again)]
    assert difference(*pictures) == 0
