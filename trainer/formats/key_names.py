"""How single files of Stable Diffusion 1.x, 2.x and XL name and shape the tensors of diffusers' components."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import ModelError
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
UNET, VAE = "model.diffusion_model.", "first_stage_model."


@dataclass(frozen=True)
class Form:
    """How a single file holds one or several tensors of diffusers; all three lose no bit."""

    shape: Callable[[Sequence[Shape]], Shape]
    pack: Callable[[Sequence[Tensor]], Tensor]
    unpack: Callable[[Tensor, Sequence[Shape]], Sequence[Tensor]]


PLAIN = Form(shape=lambda shapes: shapes[0], pack=lambda parts: parts[0], unpack=lambda whole, _: [whole])
CONVOLUTION = Form(
    shape=lambda shapes: (*shapes[0], 1, 1),
    pack=lambda parts: parts[0][:, :, None, None],
    unpack=lambda whole, _: [whole],
)
TRANSPOSED = Form(
    shape=lambda shapes: shapes[0][::-1], pack=lambda parts: parts[0].T, unpack=lambda whole, _: [whole.T]
)
STACKED = Form(
    shape=lambda shapes: (sum(shape[0] for shape in shapes), *shapes[0][1:]),
    pack=lambda parts: torch.cat(list(parts)),
    unpack=lambda whole, shapes: torch.split(whole, [shape[0] for shape in shapes]),
)


@dataclass(frozen=True)
class Place:
    """One tensor of a single file, and the diffusers keys whose tensors it holds."""

    name: str
    keys: tuple[str, ...]
    form: Form = PLAIN

    @property
    def spellings(self) -> tuple[str, str]:
        """The name and the older one without the `text_model.` level."""
        return self.name, old_spelling(self.name)


@dataclass(frozen=True)
class Scheme:
    """How one component's tensors are named. prefix: what all of its names begin with, in the older spelling too.

    spare: layers at the end of the file's text encoder that diffusers leaves out; projected: with text_projection."""

    prefix: str
    places: Callable[[str, Sequence[str]], list[Place]]
    spare: int = 0
    projected: bool = False


def old_spelling(name: str) -> str:
    """The first Stable Diffusion files had no `text_model.` level in the names of their CLIP encoder."""
    return name.replace(".transformer.text_model.", ".transformer.", 1)


def key_map(kind: str, component: str, keys: Iterable[str]) -> list[Place]:
    """Where a single file keeps the tensors of one component (the set of keys tells depth and layers)."""
    scheme, keys = SCHEMES[kind][component], list(keys)
    try:
        return scheme.places(scheme.prefix, keys)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{component} holds what no model of this kind has: {error}") from error


def leftover_names(kind: str, names: Iterable[str]) -> list[str]:
    """Of a file's names, those of its text encoders that diffusers' encoders have no use for: a spare last layer,
    text_projection, logit_scale, position_ids."""
    names, found = list(names), []
    for component, scheme in text_schemes(kind):
        below = [name for name in names if name.startswith(scheme.prefix)]
        used = max((_layer_of(name) for name in below), default=-1) + 1 - scheme.spare
        places = key_map(kind, component, _text_keys(used, projected=scheme.projected))
        taken = {spelling for place in places for spelling in place.spellings}
        found += [name for name in below if name not in taken]
    return found


def made_up(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What other programs look for in an OpenCLIP encoder and a diffusers folder does not hold: a last layer that
    passes everything on as it came, an identity for text_projection, and CLIP's usual logit_scale."""
    new: dict[str, Tensor] = {}
    for _, scheme in text_schemes(kind):
        if scheme.places is not _open_clip:
            continue
        embedding_VD = tensors[f"{scheme.prefix}token_embedding.weight"]
        new[f"{scheme.prefix}logit_scale"] = embedding_VD.new_tensor(100.0).log()
        new[f"{scheme.prefix}text_projection"] = torch.eye(embedding_VD.shape[1], dtype=embedding_VD.dtype)
        layers = f"{scheme.prefix}transformer.resblocks."
        last = max(_layer_of(name) for name in tensors if name.startswith(layers))
        for name in [name for name in tensors if scheme.spare and name.startswith(f"{layers}{last}.")]:
            new[name.replace(f"{layers}{last}.", f"{layers}{last + 1}.")] = torch.zeros_like(tensors[name])
    return {name: tensor for name, tensor in new.items() if name not in tensors}


def text_schemes(kind: str) -> list[tuple[str, Scheme]]:
    """The text encoders of a kind, with how they are named."""
    return [item for item in SCHEMES[kind].items() if item[0].startswith("text_encoder")]


# ---------------------------------------------------------------- U-Net

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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


def _unet(prefix: str, keys: Sequence[str]) -> list[Place]:
    layers = 1 + max(int(m[1]) for key in keys if (m := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", key)))
    attentive = {m[1] for key in keys if (m := re.match(r"(up_blocks\.\d+)\.attentions\.", key))}

    def name(module: str) -> str:
        if module in _UNET_ENDS:
            return _UNET_ENDS[module]
        if m := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
            place = "1" if m[1] == "attentions" else str(2 * int(m[2]))
            return f"middle_block.{place}.{_unet_inner(m[1], m[3])}"
        place_of = re.fullmatch(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", module
        )
        if place_of is None:
            raise KeyError(module)
        way, level, part, number, inner = place_of[1], int(place_of[2]), place_of[3], int(place_of[4]), place_of[5]
        first = level * (layers + 1) + (1 if way == "down" else 0)
        block = "input_blocks" if way == "down" else "output_blocks"
        if part == "downsamplers":
            return f"{block}.{first + layers}.0.op"
        if part == "upsamplers":
            after = 2 if f"up_blocks.{level}" in attentive else 1
            return f"{block}.{first + layers}.{after}.conv"
        return f"{block}.{first + number}.{0 if part == 'resnets' else 1}.{_unet_inner(part, inner)}"

    return [Place(f"{prefix}{name(module)}.{leaf}", (key,)) for key, module, leaf in _divided(keys)]


def _unet_inner(part: str, inner: str) -> str:
    return _UNET_RESNET[inner] if part == "resnets" else inner


def _divided(keys: Iterable[str]) -> list[tuple[str, str, str]]:
    return [(key, *key.rsplit(".", 1)) for key in keys]  # type: ignore[misc]


# ---------------------------------------------------------------- VAE

_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae(prefix: str, keys: Sequence[str]) -> list[Place]:
    last_level = max(int(m[1]) for key in keys if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", key)))

    def place(key: str, module: str, leaf: str) -> Place:
        if m := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)", module):
            form = CONVOLUTION if leaf == "weight" and m[2].startswith("to_") else PLAIN
            return Place(f"{prefix}{m[1]}.mid.attn_1.{_VAE_ATTENTION[m[2]]}.{leaf}", (key,), form)
        module = module.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        module = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", module)
        module = re.sub(r"down_blocks\.(\d+)", r"down.\1", module)
        module = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{last_level - int(m[1])}", module)
        module = module.replace("resnets.", "block.")
        module = module.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")
        return Place(f"{prefix}{module}.{leaf}", (key,))

    return [place(*divided) for divided in _divided(keys)]


# ---------------------------------------------------------------- text encoders

_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_QKV = ("q_proj", "k_proj", "v_proj")


def _clip(prefix: str, keys: Sequence[str]) -> list[Place]:
    return [Place(f"{prefix}text_model.{_short(key)}", (key,)) for key in keys]


def _open_clip(prefix: str, keys: Sequence[str]) -> list[Place]:
    places = []
    for key in keys:
        m = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", _short(key))
        if m is None:
            form = TRANSPOSED if key == "text_projection.weight" else PLAIN
            places.append(Place(f"{prefix}{_OPEN_CLIP[_short(key)]}", (key,), form))
            continue
        layer = f"{prefix}transformer.resblocks.{m[1]}"
        if m[2] == "self_attn.q_proj":
            three = tuple(key.replace("q_proj", name) for name in _QKV)
            places.append(Place(f"{layer}.attn.in_proj_{m[3]}", three, STACKED))
        elif m[2] not in ("self_attn.k_proj", "self_attn.v_proj"):
            places.append(Place(f"{layer}.{_OPEN_CLIP_LAYER[m[2]]}.{m[3]}", (key,)))
    return places


def _short(key: str) -> str:
    """transformers' plain encoder has no `text_model.` level in memory, its encoder with a projection has."""
    return key.removeprefix("text_model.")


def _text_keys(layers: int, *, projected: bool) -> list[str]:
    """The diffusers keys of a CLIP text encoder with so many layers."""
    modules = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", *(f"self_attn.{n}" for n in (*_QKV, "out_proj")))
    inside = [f"encoder.layers.{i}.{m}.{leaf}" for i in range(layers) for m in modules for leaf in ("weight", "bias")]
    return [*(key for key in _OPEN_CLIP if projected or key != "text_projection.weight"), *inside]


def _layer_of(name: str) -> int:
    m = re.search(r"\.(?:resblocks|encoder\.layers)\.(\d+)\.", name)
    return int(m[1]) if m else -1


# ---------------------------------------------------------------- which kind names what how

_COMMON = {"unet": Scheme(UNET, _unet), "vae": Scheme(VAE, _vae)}
SCHEMES: Mapping[str, Mapping[str, Scheme]] = {
    "sd1": {**_COMMON, "text_encoder": Scheme("cond_stage_model.transformer.", _clip)},
    "sd2": {**_COMMON, "text_encoder": Scheme("cond_stage_model.model.", _open_clip, spare=1)},
    "sdxl": {
        **_COMMON,
        "text_encoder": Scheme("conditioner.embedders.0.transformer.", _clip),
        "text_encoder_2": Scheme("conditioner.embedders.1.model.", _open_clip, projected=True),
    },
}
