"""Single files: key names against sd-scripts', and the tiny model there and back, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.errors import ModelError
from trainer.families.base import ModelOptions, load_family
from trainer.families.sd1 import StableDiffusion1
from trainer.formats import single_file
from trainer.formats.key_names import UNET

TEXT_ENCODER = "cond_stage_model.transformer."


def load(path: Path, **options: Any) -> StableDiffusion1:
    built = ModelOptions(pretrained_model_name_or_path=str(path), **options)
    family = load_family(built, dtype=torch.float32, device="cpu")
    assert isinstance(family, StableDiffusion1)
    return family


@pytest.fixture(scope="module")
def file(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    return load(tiny_folder).save_single_file(path, precision="float", metadata={})


def weights(family: StableDiffusion1) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in (*family.components().items(), ("vae", family.vae)):
        yield from ((f"{name}.{key}", tensor) for key, tensor in module.state_dict().items())


def test_there_and_back_is_bit_equal(tiny_folder: Path, file: Path) -> None:
    folder, single = load(tiny_folder), load(file)
    for (name, ours), (other_name, theirs) in zip(weights(folder), weights(single), strict=True):
        assert name == other_name
        assert torch.equal(ours, theirs), name
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([10, 900])
    answers = [
        family.predict(family.denoiser, noisy, steps, family.encode_prompts(family.text_encoders, ["a cat", "dog"]))
        for family in (folder, single)
    ]
    assert torch.equal(*answers)
    pixels = noisy[:, :3].repeat(1, 1, 8, 8)
    assert torch.equal(folder.encode_latents(pixels)[0], single.encode_latents(pixels)[0])
    assert single.scheduler_config["beta_end"] == folder.scheduler_config["beta_end"]


def test_weights_own_their_memory(file: Path) -> None:
    for name, tensor in weights(load(file)):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_diffusers_reads_our_file(tiny_folder: Path, file: Path) -> None:
    pipeline = StableDiffusionPipeline.from_single_file(
        str(file), config=str(tiny_folder), local_files_only=True, safety_checker=None
    )
    ours = load(file)
    for theirs, mine in ((pipeline.unet, ours.denoiser), (pipeline.vae, ours.vae)):
        state = mine.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())
    state = ours.text_encoders[0].state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in pipeline.text_encoder.state_dict().items())


def without_metadata(file: Path, goal: Path, *, old_names: bool = False) -> Path:
    tensors = load_file(file)
    if old_names:
        level = f"{TEXT_ENCODER}text_model."
        tensors = {key.replace(level, TEXT_ENCODER): tensor for key, tensor in tensors.items()}
        tensors["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
        tensors["alphas_cumprod"] = torch.zeros(1000)
    save_file(tensors, goal)
    return goal


def test_a_file_of_unusual_sizes_needs_a_config(file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    bare = without_metadata(file, tmp_path / "bare.safetensors")
    with pytest.raises(ModelError, match="does not fit the sizes.*differences.*model_config"):
        load(bare)
    with_config = load(bare, model_config_folder=tiny_folder)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(weights(with_config), weights(load(tiny_folder)), strict=True))


def test_old_text_encoder_names(file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    old = load(without_metadata(file, tmp_path / "o.safetensors", old_names=True), model_config_folder=tiny_folder)
    new = load(file)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(weights(old), weights(new), strict=True))


def test_bad_configs(file: Path, tmp_path: Path) -> None:
    bare = without_metadata(file, tmp_path / "bare.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load(bare, model_config_folder=tmp_path)
    save_file(load_file(file), tmp_path / "odd.safetensors", {single_file.CONFIGS_KEY: "{"})
    with pytest.raises(ModelError, match="describes itself unreadably"):
        load(tmp_path / "odd.safetensors")


def test_missing_and_extra_tensors(file: Path, tmp_path: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    gone = f"{UNET}out.2.bias"
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(ModelError, match=f"1 differences, the first: {gone} is missing"):
        load(tmp_path / "a.safetensors")
    save_file({**tensors, f"{UNET}more": torch.zeros(1)}, tmp_path / "b.safetensors", metadata)
    with pytest.raises(ModelError, match="more is too many"):
        load(tmp_path / "b.safetensors")


def test_half_precision_and_prediction(tmp_path: Path) -> None:
    from tests.tiny import tiny_sd1

    family = load(tiny_sd1(tmp_path / "v", prediction_type="v_prediction"))
    half = family.save_single_file(tmp_path / "v.safetensors", precision="fp16", metadata={})
    again = load(half)
    assert again.prediction_type == again.facts.prediction == "v_prediction"
    for (name, ours), (_, theirs) in zip(weights(family), weights(again), strict=True):
        assert torch.equal(ours.half().float(), theirs), name
    assert half.stat().st_size < 0.52 * sum(t.nbytes for _, t in weights(family))
    assert again.denoiser.dtype == torch.float32
