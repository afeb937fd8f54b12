"""Single files of Stable Diffusion 2.x and XL: there and back bit for bit, what survives, how diffusers reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from tests.tiny import TEXT_LAYERS, tiny_sd2, tiny_sdxl
from trainer.errors import ModelError
from trainer.formats import single_file
from trainer.formats.model_facts import COMPONENTS, read_header

PIPELINES = {"sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
LEVEL = "cond_stage_model.model."
SCALE_XL = "conditioner.embedders.1.model.logit_scale"


@dataclass(frozen=True)
class Model:
    """A tiny model: its folder, what is in it, and all of it as a single file."""

    kind: str
    folder: Path
    parts: dict[str, Any]
    configs: dict[str, Any]
    file: Path

    def write(self, path: Path, *, scheduler: dict[str, Any] | None = None, **more: Any) -> Path:
        configs = {**self.configs, "scheduler": {**self.configs["scheduler"], **(scheduler or {})}}
        return single_file.write_single_file(self.kind, self.parts, path, configs=configs, **more)

    def sizes(self, component: str) -> dict[str, tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in self.parts[component].state_dict().items()}


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build("sd2", tmp_path_factory.mktemp("sd2"))


def build(kind: str, place: Path) -> Model:
    folder = {"sd2": tiny_sd2, "sdxl": tiny_sdxl}[kind](place / "folder")
    pipeline = PIPELINES[kind].from_pretrained(folder, local_files_only=True)
    names = {**dict.fromkeys(COMPONENTS[kind], "config.json"), "scheduler": "scheduler_config.json"}
    configs = {name: json.loads((folder / name / file).read_text()) for name, file in names.items()}
    parts = {name: getattr(pipeline, name) for name in COMPONENTS[kind]}
    model = Model(kind, folder, parts, configs, place / "model.safetensors")
    model.write(model.file)
    return model


@pytest.mark.parametrize("precision", ["float", "fp16"])
def test_there_and_back_is_bit_equal(model: Model, precision: str, tmp_path: Path) -> None:
    dtype = {"float": torch.float32, "fp16": torch.float16}[precision]
    file = model.write(tmp_path / "file.safetensors", precision=precision)
    wanted = {component: model.sizes(component) for component in model.parts}
    configs, source = single_file.component_configs(file, model.kind, model_config=None, built_in=tmp_path)
    assert (configs, source) == (model.configs, "the file's own metadata")
    single_file.check_sizes(file, model.kind, wanted, source=source)
    for component, part in model.parts.items():
        read = single_file.read_component(file, model.kind, component, wanted[component], dtype)
        state = part.state_dict()
        assert read.keys() == state.keys()
        for key, tensor in read.items():
            assert torch.equal(tensor, state[key].to(dtype)), key
            assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes, key


def test_diffusers_reads_our_file(model: Model) -> None:
    pipeline = PIPELINES[model.kind].from_single_file(
        str(model.file), config=str(model.folder), local_files_only=True, torch_dtype=torch.float32
    )
    for component, part in model.parts.items():
        theirs, state = getattr(pipeline, component).state_dict(), part.state_dict()
        assert theirs.keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.items()), component


def test_what_the_metadata_says(model: Model, tmp_path: Path) -> None:
    expected = {"sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}
    metadata = read_header(model.file).metadata
    assert metadata["modelspec.architecture"] == expected[model.kind]
    assert metadata["modelspec.prediction_type"] == "epsilon"
    velocity = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    header = read_header(model.write(tmp_path / "v.safetensors", scheduler=velocity))
    assert header.metadata["modelspec.prediction_type"] == "v"
    marks = {"v_pred", "ztsnr"} & set(header.tensors)
    if model.kind == "sdxl":
        assert marks == {"v_pred", "ztsnr"}
    else:
        assert header.metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v"
        assert not marks


def test_what_text_encoders_hold_beside_survives(model: Model, tmp_path: Path) -> None:
    """A source file with its own spare layer, marks and an integer: all of it is in the next file as it was."""
    torch.manual_seed(1)
    made_up = single_file.leftovers(model.file, model.kind)
    own = {name: torch.randn_like(tensor) for name, tensor in made_up.items()}
    own |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    if model.kind == "sdxl":
        own["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    source = tmp_path / "source.safetensors"
    save_file({**load_file(model.file), **own, "alphas_cumprod": torch.zeros(1000)}, source)
    kept = single_file.leftovers(source, model.kind)
    assert kept.keys() == own.keys()
    again = load_file(model.write(tmp_path / "again.safetensors", beside=kept))
    assert again.keys() == {*load_file(model.file), *own}
    assert all(torch.equal(again[name], tensor) for name, tensor in own.items())
    half = load_file(model.write(tmp_path / "half.safetensors", beside=kept, precision="fp16"))
    assert {str(t.dtype) for t in half.values()} <= {"torch.float16", "torch.int64"}


def test_a_folder_has_no_leftovers_and_other_programs_need_them(model: Model) -> None:
    names = set(single_file.leftovers(model.file, model.kind))
    if model.kind == "sdxl":
        assert names == {SCALE_XL}
        return
    block = f"{LEVEL}transformer.resblocks.{TEXT_LAYERS}."
    assert {name for name in names if not name.startswith(block)} == {f"{LEVEL}logit_scale", f"{LEVEL}text_projection"}
    assert len([name for name in names if name.startswith(block)]) == 12


def test_the_made_up_last_layer_changes_nothing(sd2: Model) -> None:
    """A program that runs all of the file's layers gets what the ones that diffusers has give."""
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    encoder = sd2.parts["text_encoder"]
    layer = CLIPEncoderLayer(encoder.config)
    sizes = {f"encoder.layers.{TEXT_LAYERS}.{key}": tuple(t.shape) for key, t in layer.state_dict().items()}
    read = single_file.read_component(sd2.file, "sd2", "text_encoder", sizes, torch.float32)
    layer.load_state_dict({key.split(".", 3)[3]: tensor for key, tensor in read.items()})
    states = torch.randn(1, 5, encoder.config.hidden_size)
    assert torch.equal(layer(states, attention_mask=None), states)


def test_a_file_without_the_spare_layer(sd2: Model, tmp_path: Path) -> None:
    """Its last layer is one of diffusers', so that it must not come back from what was left over."""
    block = f"{LEVEL}transformer.resblocks.{TEXT_LAYERS}."
    source = tmp_path / "source.safetensors"
    save_file({name: t for name, t in load_file(sd2.file).items() if not name.startswith(block)}, source)
    single_file.check_sizes(source, "sd2", {"text_encoder": sd2.sizes("text_encoder")}, source="here")
    weight = sd2.parts["text_encoder"].encoder.layers[-1].mlp.fc1.weight
    before = weight.detach().clone()
    try:
        weight.data += 1
        again = load_file(sd2.write(tmp_path / "a.safetensors", beside=single_file.leftovers(source, "sd2")))
    finally:
        weight.data.copy_(before)
    trained = again[f"{LEVEL}transformer.resblocks.{TEXT_LAYERS - 1}.mlp.c_fc.weight"]
    assert torch.equal(trained, before + 1)
    assert any(name.startswith(block) for name in again)


def test_linear_layers_that_a_file_keeps_as_convolutions(sd2: Model, tmp_path: Path) -> None:
    tensors = load_file(sd2.file)
    names = [name for name in tensors if name.endswith((".proj_in.weight", ".proj_out.weight")) and "input" in name]
    assert all(tensors[name].ndim == 2 for name in names) and len(names) == 12
    file = tmp_path / "old.safetensors"
    save_file({**tensors, **{name: tensors[name][:, :, None, None].contiguous() for name in names}}, file)
    sizes = sd2.sizes("unet")
    single_file.check_sizes(file, "sd2", {"unet": sizes}, source="here")
    read = single_file.read_component(file, "sd2", "unet", sizes, torch.float32)
    assert all(torch.equal(tensor, read[key]) for key, tensor in sd2.parts["unet"].state_dict().items())


def test_layers_that_no_config_asked_for(sd2: Model) -> None:
    few = {key: size for key, size in sd2.sizes("text_encoder").items() if f".{TEXT_LAYERS - 1}." not in key}
    wanted = {"text_encoder": few, "unet": sd2.sizes("unet"), "vae": sd2.sizes("vae")}
    with pytest.raises(ModelError, match=rf"12 differences, the first: .*resblocks\.{TEXT_LAYERS - 1}\..* is too many"):
        single_file.check_sizes(sd2.file, "sd2", wanted, source="here")
