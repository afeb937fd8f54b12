"""Say what a model file or folder is from its headers alone, and refuse early what cannot be trained; torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ModelError
from trainer.formats.checkpoint import read_tensors
from trainer.formats.headers import Header, TensorInfo, model_error, read_header

__all__ = [
    "COMPONENTS",
    "CONFIGS_KEY",
    "TRAINABLE",
    "V_MARK",
    "ZERO_SNR_MARK",
    "ModelFacts",
    "fingerprint",
    "identify",
    "inspect_model",
    "kohya_model_hashes",
    "legacy_hash",
    "read_header",
    "sha256_file",
    "weight_files",
]

Layout = Literal["diffusers", "single_file"]
Prediction = Literal["epsilon", "v_prediction", "unknown"]

TRAINABLE = ("sd1", "sd2", "sdxl")
"""Kinds that a file in trainer/families can train (a test compares); the page, which loads no family, asks here."""
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "sd1": ("unet", "vae", "text_encoder"),
    "sd2": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
"""What models of a kind are made of, by the names of diffusers' folders."""
CONFIGS_KEY = "trainer.component_configs"
"""Metadata key under which our single files keep the JSON configs of their components and of the scheduler."""
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
"""Empty tensors by which a single file says that it predicts velocity, on a schedule that ends in pure noise."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model is. detail: in words for people, "Stable Diffusion 1.x"; zero_terminal_snr: it says that its noise
    schedule ends in pure noise."""

    path: Path
    kind: str
    prediction: Prediction
    layout: Layout
    size_bytes: int
    num_tensors: int
    detail: str
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    zero_terminal_snr: bool = False


def inspect_model(path: Path | str) -> ModelFacts:
    """What the model at `path` is, by content; ModelError when it is nothing a training can start from."""
    facts = identify(path)
    if facts.kind not in TRAINABLE:
        raise model_error(f"{path} is {facts.detail}, which this version cannot train yet", remedy=_GIVE)
    return facts


def identify(path: Path | str) -> ModelFacts:
    """What any base model is, trainable or not; ModelError for what is broken or no base model."""
    path = Path(path)
    if not path.exists():
        raise model_error(
            f"{path} does not exist", remedy="Give the path of a .safetensors file or of a diffusers folder"
        )
    if path.is_dir():
        return _inspect_folder(path)
    header = read_tensors(path)
    kind, detail = _kind_of_keys(path, header)
    return ModelFacts(
        path=path,
        kind=kind,
        prediction=_stated_prediction(header),
        layout="single_file",
        size_bytes=header.size_bytes,
        num_tensors=len(header.tensors),
        detail=detail,
        metadata=header.metadata,
        zero_terminal_snr=ZERO_SNR_MARK in header.tensors or _has_zero_snr(_own_scheduler(header.metadata)),
    )


def fingerprint(path: Path) -> str:
    """sha256 of a file; of a folder, over the sha256 of each of its weight files with its relative name."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in weight_files(path):
        digest.update(f"{file.relative_to(path).as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def sha256_file(path: Path, *, start: int = 0) -> str:
    """sha256 of a file's bytes from `start` on; read once as long as the file stays as it is."""
    facts = path.stat()
    return _sha256(path, start, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=64)
def _sha256(path: Path, start: int, *signature: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def kohya_model_hashes(path: Path) -> tuple[str, str]:
    """(ss_sd_model_hash, ss_new_sd_model_hash) of a base model, as sd-scripts writes them."""
    if path.is_dir():
        return "IsADirectory", "IsADirectory"
    if not path.exists():
        return "NOFILE", "NOFILE"
    with path.open("rb") as file:
        file.seek(0x100000)
        legacy = legacy_hash(file.read(0x10000))
    return legacy, sha256_file(path)


def legacy_hash(excerpt: bytes) -> str:
    """The short hash old web UIs show: of bytes 0x100000 to 0x110000 of a file."""
    return hashlib.sha256(excerpt).hexdigest()[:8]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a diffusers folder, as far as a model is made of them, sorted."""
    names = dict.fromkeys(name for components in COMPONENTS.values() for name in components)
    return sorted(file for name in names for file in _component_weights(folder / name))


# ---------------------------------------------------------------- which model the keys are

_GIVE = "Give a Stable Diffusion 1.x, 2.x or XL base model"
_NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
_VARIANTS = {
    5: ("depth", "depth model"),
    7: ("upscaler", "upscaler"),
    8: ("instruct", "model that edits by instruction (InstructPix2Pix)"),
    9: ("inpainting", "inpainting model"),
}
"""What a U-Net that reads more than the 4 channels of noisy latents belongs to."""
_REFINER = ("sdxl_refiner", "the Stable Diffusion XL refiner")
_LORA_MARKS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1")
_SD_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_XL_SIZES = "model.diffusion_model.label_emb.0.0.weight"
_REFINER_SIZES = 2560
_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_SD2_CONTEXT = 1024
_VAE_PART = ("VAE", "first_stage_model.")
_PARTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "sd1": (("text encoder", "cond_stage_model."), _VAE_PART),
    "sd2": (("text encoder", "cond_stage_model.model."), _VAE_PART),
    "sdxl": (
        ("first text encoder", "conditioner.embedders.0."),
        ("second text encoder", "conditioner.embedders.1."),
        _VAE_PART,
    ),
}
"""What a complete single file holds besides its U-Net."""


def _kind_of_keys(path: Path, header: Header) -> tuple[str, str]:
    """(kind, detail) of a single file; raises for files that are no whole model."""
    keys = header.tensors
    if any(key.endswith(mark) or mark in key for key in keys for mark in _LORA_MARKS):
        raise model_error(
            f"{path} is a LoRA (or alike), not a base model", remedy="To go on training it, give it as network_weights"
        )
    if set(keys) <= {"emb_params", "clip_l", "clip_g", "string_to_param"}:
        raise model_error(f"{path} is a textual-inversion embedding, not a base model")
    if _SD_UNET in keys:
        return _kind_of_sd(path, keys)
    if any(key.startswith(("double_blocks.", "model.diffusion_model.double_blocks.")) for key in keys):
        return "flux", "FLUX"
    if any("joint_blocks." in key for key in keys):
        return "sd3", "Stable Diffusion 3"
    raise model_error(f"{path} is no model known here; {_some(keys)}", remedy=_GIVE)


def _kind_of_sd(path: Path, keys: Mapping[str, TensorInfo]) -> tuple[str, str]:
    kind = _sd_family(keys)
    first_layer = keys[_SD_UNET].shape
    if kind == "sdxl" and _is_refiner(keys):
        return _REFINER
    if variant := _variant(kind, first_layer[1] if len(first_layer) == 4 else 4):
        return variant
    if missing := [words for words, prefix in _PARTS[kind] if not any(key.startswith(prefix) for key in keys)]:
        raise model_error(
            f"{path} holds a {_NAMES[kind]} U-Net but no {' and no '.join(missing)}",
            remedy="Give a complete checkpoint",
        )
    return kind, _NAMES[kind]


def _sd_family(keys: Mapping[str, TensorInfo]) -> str:
    if _XL_SIZES in keys or any(key.startswith("conditioner.embedders.") for key in keys):
        return "sdxl"
    if any(key.startswith("cond_stage_model.model.") for key in keys):
        return "sd2"
    is_bare = not any(key.startswith("cond_stage_model.") for key in keys)
    return "sd2" if is_bare and _CONTEXT in keys and keys[_CONTEXT].shape[1:] == (_SD2_CONTEXT,) else "sd1"


def _is_refiner(keys: Mapping[str, TensorInfo]) -> bool:
    """Its only text encoder is the base model's second, and its sizes say nothing of a crop's target."""
    if any(key.startswith("conditioner.embedders.0.model.") for key in keys):
        return True
    return _XL_SIZES in keys and keys[_XL_SIZES].shape[1:] == (_REFINER_SIZES,)


def _variant(kind: str, in_channels: Any) -> tuple[str, str] | None:
    """(kind, detail) of a model whose U-Net reads more than noisy latents."""
    if in_channels == 4:
        return None
    name, words = _VARIANTS.get(in_channels, ("variant", f"variant whose U-Net reads {in_channels} channels"))
    return f"{kind}_{name}", f"a {_NAMES[kind]} {words}"


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return f"it holds {len(names)} tensors such as {', '.join(names[:3])}"


def _stated_prediction(header: Header) -> Prediction:
    """The empty tensor comes first: programs that draw pictures go by it, and metadata is easily copied along."""
    if V_MARK in header.tensors:
        return "v_prediction"
    stated = header.metadata.get("modelspec.prediction_type", "")
    known: Mapping[str, Prediction] = {"v": "v_prediction", "v_prediction": "v_prediction"}
    return {**known, "epsilon": "epsilon", "e": "epsilon"}.get(stated, "unknown")


def _own_scheduler(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """The scheduler's config in a file that we wrote; what is unreadable there is refused when the model loads."""
    try:
        scheduler = json.loads(metadata.get(CONFIGS_KEY, "{}")).get("scheduler", {})
    except (ValueError, AttributeError):
        return {}
    return scheduler if isinstance(scheduler, dict) else {}


def _has_zero_snr(scheduler: Mapping[str, Any]) -> bool:
    return scheduler.get("rescale_betas_zero_snr") is True


# ---------------------------------------------------------------- diffusers folders


_PIPELINES = {
    f"StableDiffusion{task}Pipeline" for task in ("", "Img2Img", "Inpaint", "Depth2Img", "InstructPix2Pix", "Upscale")
}


def _inspect_folder(folder: Path) -> ModelFacts:
    index = _read_json(
        folder / "model_index.json", missing=f"{folder} is no diffusers model: it has no model_index.json"
    )
    kind, detail = _kind_of_pipeline(folder, index)
    size = num_tensors = 0
    for component in COMPONENTS.get(kind, ()):
        _read_json(folder / component / "config.json", missing=f"{folder} lacks {component}/config.json")
        files = _component_weights(folder / component)
        if not files:
            raise _missing_weights(folder / component)
        headers = [read_header(file) for file in files]
        size += sum(header.size_bytes for header in headers)
        num_tensors += sum(len(header.tensors) for header in headers)
    scheduler = _read_json(
        folder / "scheduler" / "scheduler_config.json", missing=f"{folder} lacks scheduler/scheduler_config.json"
    )
    # where a scheduler's config says nothing, diffusers takes epsilon
    prediction: Prediction = "v_prediction" if scheduler.get("prediction_type") == "v_prediction" else "epsilon"
    return ModelFacts(
        path=folder,
        kind=kind,
        prediction=prediction,
        layout="diffusers",
        size_bytes=size,
        num_tensors=num_tensors,
        detail=detail,
        zero_terminal_snr=_has_zero_snr(scheduler),
    )


def _kind_of_pipeline(folder: Path, index: Mapping[str, Any]) -> tuple[str, str]:
    name = str(index.get("_class_name", ""))
    if name.startswith("StableDiffusion3"):
        return "sd3", "Stable Diffusion 3"
    if name.startswith("Flux"):
        return "flux", "FLUX"
    if not (name in _PIPELINES or name.startswith("StableDiffusionXL")):
        raise model_error(f"{folder} is a {name or 'nameless pipeline'}, no model known here", remedy=_GIVE)
    is_xl = name.startswith("StableDiffusionXL")
    if is_xl and "text_encoder" in index and not any(index["text_encoder"] or ()):
        return _REFINER
    unet = _read_json(folder / "unet" / "config.json", missing=f"{folder} lacks unet/config.json")
    encoder = _read_json(folder / "text_encoder" / "config.json", missing=f"{folder} lacks text_encoder/config.json")
    # SD2's OpenCLIP encoder uses gelu and linear projections, SD1's CLIP quick_gelu and 1x1 convolutions
    is_sd2 = unet.get("use_linear_projection") or encoder.get("hidden_act") == "gelu"
    kind = "sdxl" if is_xl else "sd2" if is_sd2 else "sd1"
    return _variant(kind, unet.get("in_channels", 4)) or (kind, _NAMES[kind])


def _component_weights(folder: Path) -> list[Path]:
    """The weight files diffusers would read: the plain name, or the parts its index lists."""
    for stem in ("diffusion_pytorch_model", "model"):
        plain = folder / f"{stem}.safetensors"
        if plain.is_file():
            return [plain]
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            parts = set(_read_json(index, missing=str(index)).get("weight_map", {}).values())
            return [folder / str(part) for part in sorted(parts)]
    return []


def _missing_weights(folder: Path) -> ModelError:
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".ckpt", ".safetensors"))
    if any(name.endswith(".bin") for name in others):
        return model_error(
            f"{folder} holds only {', '.join(others)}: pickle weights are not supported yet",
            remedy="Convert the folder to .safetensors",
        )
    found = f" (it holds {', '.join(others)})" if others else ""
    return model_error(
        f"{folder} has no weights: no .safetensors file of the usual name{found}", remedy="Download it again"
    )


def _read_json(path: Path, *, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise model_error(missing, remedy="Give a complete folder in the diffusers layout or a .safetensors file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise model_error(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise model_error(f"{path} should hold a JSON table")
    return content
