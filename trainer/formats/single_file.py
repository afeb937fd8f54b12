"""Stable Diffusion 1.x single files (.safetensors): key names to and from diffusers, reading, writing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ModelError
from trainer.formats.kohya import save_safetensors, torch_dtype
from trainer.formats.model_facts import read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

COMPONENTS = ("unet", "vae", "text_encoder")
CONFIGS_KEY = "trainer.component_configs"
"""Metadata key under which our writer keeps the JSON configs of unet, vae, text_encoder and scheduler."""
UNET, VAE, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

Sizes = Mapping[str, tuple[int, ...]]

# ---------------------------------------------------------------- key names

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def key_map(component: str, keys: Iterable[str]) -> dict[str, str]:
    """diffusers key -> single-file key for all keys of one component (their set tells depth and layers)."""
    keys = list(keys)
    name_of: Mapping[str, Callable[[list[str]], Callable[[str], str]]] = {
        "unet": _unet_names,
        "vae": _vae_names,
        "text_encoder": _text_encoder_names,
    }
    name = name_of[component](keys)
    return {key: name(key) for key in keys}


def _unet_names(keys: list[str]) -> Callable[[str], str]:
    layers = 1 + max(int(m[1]) for key in keys if (m := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", key)))
    attentive = {m[1] for key in keys if (m := re.match(r"(up_blocks\.\d+)\.attentions\.", key))}

    def name(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        if module in _UNET_ENDS:
            return f"{UNET}{_UNET_ENDS[module]}.{leaf}"
        if m := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
            place = "1" if m[1] == "attentions" else str(2 * int(m[2]))
            return f"{UNET}middle_block.{place}.{_unet_inner(m[1], m[3])}.{leaf}"
        place_of = re.fullmatch(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", module
        )
        if place_of is None:
            raise ModelError(f"{key} is no part of a Stable Diffusion 1.x U-Net")
        way, level, part, number, inner = place_of[1], int(place_of[2]), place_of[3], int(place_of[4]), place_of[5]
        first = level * (layers + 1) + (1 if way == "down" else 0)
        block = "input_blocks" if way == "down" else "output_blocks"
        if part == "downsamplers":
            return f"{UNET}{block}.{first + layers}.0.op.{leaf}"
        if part == "upsamplers":
            after = 2 if f"up_blocks.{level}" in attentive else 1
            return f"{UNET}{block}.{first + layers}.{after}.conv.{leaf}"
        return f"{UNET}{block}.{first + number}.{0 if part == 'resnets' else 1}.{_unet_inner(part, inner)}.{leaf}"

    return name


def _unet_inner(part: str, inner: str) -> str:
    return _UNET_RESNET[inner] if part == "resnets" else inner


def _vae_names(keys: list[str]) -> Callable[[str], str]:
    last_level = max(int(m[1]) for key in keys if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", key)))

    def name(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        module = module.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        module = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", module)
        if m := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", module):
            module = f"{m[1]}.mid.attn_1.{_VAE_ATTENTION[m[2]]}"
        module = re.sub(r"down_blocks\.(\d+)", r"down.\1", module)
        module = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{last_level - int(m[1])}", module)
        module = module.replace("resnets.", "block.")
        module = module.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")
        return f"{VAE}{module}.{leaf}"

    return name


def _text_encoder_names(keys: list[str]) -> Callable[[str], str]:
    return lambda key: f"{TEXT_ENCODER}text_model.{key.removeprefix('text_model.')}"


def is_vae_attention(key: str) -> bool:
    """Whether this diffusers key is a matrix that single files hold as a 1x1 convolution."""
    return bool(re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight", key))


# ---------------------------------------------------------------- reading


def component_configs(path: Path, *, model_config: Path | None, built_in: Path) -> tuple[dict[str, Any], str]:
    """(configs of unet, vae, text_encoder, scheduler; where they come from): the file itself, a folder, or built-in."""
    metadata = read_header(path).metadata
    if CONFIGS_KEY in metadata:
        try:
            configs = json.loads(metadata[CONFIGS_KEY])
        except ValueError as error:
            raise ModelError(f"{path} describes itself unreadably: {error}") from error
        if not isinstance(configs, dict) or not {*COMPONENTS, "scheduler"} <= set(configs):
            raise ModelError(f"{path} describes itself incompletely ({CONFIGS_KEY} in its metadata)")
        return configs, "the file's own metadata"
    folder = built_in if model_config is None else model_config
    names = {**dict.fromkeys(COMPONENTS, "config.json"), "scheduler": "scheduler_config.json"}
    return {name: _read_config(folder / name / file) for name, file in names.items()}, str(folder)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", option="model_config") from error
    assert isinstance(content, dict)
    return content


def check_sizes(path: Path, wanted: Mapping[str, Sizes], *, source: str) -> None:
    """Compare a file with the sizes its config asks for; wanted: component -> diffusers key -> shape."""
    tensors = read_header(path).tensors
    wrong: list[str] = []
    for component, sizes in wanted.items():
        for key, name in key_map(component, sizes).items():
            shape = (*sizes[key], 1, 1) if component == "vae" and is_vae_attention(key) else sizes[key]
            found = _spellings(name)
            info = next((tensors[n] for n in found if n in tensors), None)
            if info is None:
                wrong.append(f"{name} is missing")
            elif info.shape not in (shape, sizes[key]):
                wrong.append(f"{name} is {list(info.shape)} instead of {list(shape)}")
    known = {n for c, sizes in wanted.items() for name in key_map(c, sizes).values() for n in _spellings(name)}
    parts = (UNET, f"{VAE}encoder.", f"{VAE}decoder.", f"{TEXT_ENCODER}text_model.encoder.")
    wrong += [f"{name} is too many" for name in tensors if name.startswith(parts) and name not in known]
    if wrong:
        raise ModelError(
            f"{path} does not fit the sizes in {source}: {len(wrong)} differences, the first: {wrong[0]}",
            option="model_config",
            remedy="Give a diffusers folder that describes this model as model_config",
        )


def read_component(path: Path, component: str, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor]:
    """One component's tensors under diffusers keys, each in memory of its own (alignment changes last bits)."""
    from safetensors import safe_open

    present = read_header(path).tensors
    found: dict[str, Tensor] = {}
    with safe_open(path, framework="pt", device="cpu") as file:
        for key, name in key_map(component, sizes).items():
            stored = next(n for n in _spellings(name) if n in present)
            found[key] = file.get_tensor(stored).reshape(sizes[key]).to(dtype, copy=True)
    return found


def _spellings(name: str) -> tuple[str, ...]:
    """The name and the older one without the `text_model.` level."""
    return (name, name.replace(f"{TEXT_ENCODER}text_model.", TEXT_ENCODER))


# ---------------------------------------------------------------- writing


def write_single_file(
    components: Mapping[str, nn.Module],
    path: Path,
    *,
    configs: Mapping[str, Any],
    precision: str = "float",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write unet, vae and text_encoder as one file that describes itself; configs: theirs and the scheduler's."""
    dtype = torch_dtype(precision)
    tensors: dict[str, Tensor] = {}
    for component in COMPONENTS:
        state = components[component].state_dict()
        for key, name in key_map(component, state).items():
            tensor = state[key].detach().to("cpu", dtype)
            tensor = tensor[:, :, None, None] if component == "vae" and is_vae_attention(key) else tensor
            tensors[name] = tensor.contiguous()
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    described = {
        CONFIGS_KEY: json.dumps({name: configs[name] for name in (*COMPONENTS, "scheduler")}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
    }
    return save_safetensors(tensors, path, metadata={**described, **(metadata or {})})
