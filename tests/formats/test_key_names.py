"""Names, shapes and order of every tensor of a single file against the reference, and the built-in configs."""

from __future__ import annotations

import json
from pathlib import Path

import accelerate
import diffusers
import pytest
import torch
import transformers

from trainer.errors import ModelError
from trainer.formats.key_names import key_map, leftover_names, made_up
from trainer.formats.model_facts import COMPONENTS

CONFIGS = Path(__file__).parents[2] / "trainer" / "families" / "configs"
CASES = [(kind, component) for kind, components in COMPONENTS.items() for component in components]


def entries(kind: str, component: str) -> list[tuple[str, list[int], dict[str, list[int]]]]:
    """(single-file name, its shape, diffusers keys with theirs) of all tensors that diffusers uses."""
    vectors = json.loads(Path(f"tests/vectors/keymap_{kind}.json").read_text())
    found = vectors["text_encoder_1" if (kind, component) == ("sdxl", "text_encoder") else component]
    return [(name, shape, dict(parts)) for name, shape, parts in found if parts]


@pytest.mark.parametrize(("kind", "component"), CASES)
def test_names_and_shapes(kind: str, component: str) -> None:
    expected = entries(kind, component)
    sizes = {key: tuple(size) for _, _, parts in expected for key, size in parts.items()}
    places = key_map(kind, component, sizes)
    found = [(p.name, list(p.form.shape([sizes[key] for key in p.keys])), p.keys) for p in places]
    assert sorted(found) == sorted((name, shape, tuple(parts)) for name, shape, parts in expected)


@pytest.mark.parametrize(("kind", "component"), CASES)
def test_built_in_configs_have_the_standard_sizes(kind: str, component: str) -> None:
    index = json.loads((CONFIGS / kind / "model_index.json").read_text())
    config = json.loads((CONFIGS / kind / component / "config.json").read_text())
    library, name = index[component]
    with accelerate.init_empty_weights():
        if library == "transformers":
            state = getattr(transformers, name)(transformers.CLIPTextConfig(**config)).state_dict()
        else:
            state = getattr(diffusers, name).from_config(config).state_dict()
    # the plain text encoder has one level less in memory than in files
    level = "text_model." if name == "CLIPTextModel" else ""
    expected = {key: size for _, _, parts in entries(kind, component) for key, size in parts.items()}
    assert {f"{level}{key}": list(tensor.shape) for key, tensor in state.items()} == expected


def test_forms_lose_nothing() -> None:
    sizes = {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "projection_dim": 6}
    config = transformers.CLIPTextConfig(num_attention_heads=2, **sizes)
    encoder = transformers.CLIPTextModelWithProjection(config)
    state = encoder.state_dict()
    packed = {}
    for place in key_map("sdxl", "text_encoder_2", state):
        packed[place.name] = place.form.pack([state[key] for key in place.keys])
        back = place.form.unpack(packed[place.name], [state[key].shape for key in place.keys])
        assert all(torch.equal(part, state[key]) for part, key in zip(back, place.keys, strict=True))
    whole = packed["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"]
    assert torch.equal(whole[4:8], state["text_model.encoder.layers.0.self_attn.k_proj.weight"])
    assert torch.equal(packed["conditioner.embedders.1.model.text_projection"], state["text_projection.weight"].T)


def test_what_no_model_of_the_kind_has() -> None:
    for component, key in (("unet", "down_blocks.0.resnets.0.odd.weight"), ("text_encoder", "encoder.layers.0.odd")):
        with pytest.raises(ModelError, match=f"{component} holds what no model of this kind has: .*odd"):
            key_map("sd2", component, [key, "down_blocks.0.resnets.0.norm1.weight"])


def test_leftovers_by_name() -> None:
    level = "cond_stage_model.model."
    block = f"{level}transformer.resblocks"
    used = [name for name, _, _ in entries("sd2", "text_encoder")]
    last = [name.replace(f"{block}.22.", f"{block}.23.") for name in used if f"{block}.22." in name]
    spare = [*last, f"{level}text_projection", f"{level}logit_scale"]
    assert len(last) == 12
    assert sorted(leftover_names("sd2", [*used, *spare, "alphas_cumprod"])) == sorted(spare)
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert leftover_names("sd1", [*(name for name, _, _ in entries("sd1", "text_encoder")), ids]) == [ids]
    both = [name for part in ("text_encoder", "text_encoder_2") for name, _, _ in entries("sdxl", part)]
    scale = "conditioner.embedders.1.model.logit_scale"
    assert leftover_names("sdxl", [*both, scale]) == [scale]


def test_the_made_up_layer_passes_everything_on() -> None:
    torch.manual_seed(0)
    block = "cond_stage_model.model.transformer.resblocks.0."
    tensors = {
        "cond_stage_model.model.token_embedding.weight": torch.randn(9, 8),
        f"{block}attn.in_proj_weight": torch.randn(24, 8),
        f"{block}mlp.c_proj.bias": torch.randn(8),
    }
    made = made_up("sd2", tensors)
    assert made.keys() == {
        "cond_stage_model.model.text_projection",
        "cond_stage_model.model.logit_scale",
        "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight",
        "cond_stage_model.model.transformer.resblocks.1.mlp.c_proj.bias",
    }
    assert not any(tensor.any() for name, tensor in made.items() if "resblocks" in name)
    assert torch.equal(made["cond_stage_model.model.text_projection"], torch.eye(8))
    assert made_up("sd1", {}) == {}
