"""Say what a model file or folder is from its headers alone, and refuse early what cannot be trained; torch-free."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ModelError

Layout = Literal["diffusers", "single_file"]
Prediction = Literal["epsilon", "v_prediction", "unknown"]

TRAINABLE = ("sd1",)
"""Kinds that a file in trainer/families can train (a test compares); the page, which loads no family, asks here."""
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "sd1": ("unet", "vae", "text_encoder"),
    "sd2": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
"""What models of a kind are made of, by the names of diffusers' folders."""
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
"""Empty tensors by which a single file says that it predicts velocity, on a schedule that ends in pure noise."""
OPTION = "pretrained_model_name_or_path"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it; start and end are file offsets."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A safetensors file without its numbers."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    header_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """What a model is. detail: in words for people, "Stable Diffusion 1.x"."""

    path: Path
    kind: str
    prediction: Prediction
    layout: Layout
    size_bytes: int
    num_tensors: int
    detail: str
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)


def inspect_model(path: Path | str) -> ModelFacts:
    """What the model at `path` is, by content; ModelError when it is nothing a training can start from."""
    facts = identify(path)
    if facts.kind not in TRAINABLE:
        raise _error(
            f"{path} is {facts.detail}, which this version cannot train yet", remedy="Give a Stable Diffusion 1.x model"
        )
    return facts


def identify(path: Path | str) -> ModelFacts:
    """What any base model is, trainable or not; ModelError for what is broken or no base model."""
    path = Path(path)
    if not path.exists():
        raise _error(f"{path} does not exist", remedy="Give the path of a .safetensors file or of a diffusers folder")
    if path.is_dir():
        return _inspect_folder(path)
    header = read_header(path)
    kind, detail = _kind_of_keys(path, header)
    return ModelFacts(
        path=path,
        kind=kind,
        prediction=_single_file_prediction(kind, header.metadata),
        layout="single_file",
        size_bytes=header.size_bytes,
        num_tensors=len(header.tensors),
        detail=detail,
        metadata=header.metadata,
    )


def read_header(path: Path) -> SafetensorsHeader:
    """The header of a safetensors file, every offset checked against the file's size; ModelError when it is broken."""
    if not path.is_file():
        raise _error(f"{path} is missing", remedy="Download it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(1024)
        _refuse_other_content(path, start, size)
        length = struct.unpack("<Q", start[:8])[0]
        if length > MAX_HEADER_BYTES:
            raise _error(
                f"{path} is no safetensors file: its header claims {length:,} bytes (the file has {size:,})",
                remedy="Download it again, or convert it to .safetensors",
            )
        if 8 + length > size:
            raise _error(
                f"{path} is cut short: its header needs {8 + length:,} bytes, the file has {size:,}",
                remedy="Download it again",
            )
        file.seek(8)
        raw = file.read(length)
    entries, metadata = _parse_header(path, raw)
    tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    _check_layout(path, tensors, 8 + length, size)
    return SafetensorsHeader(tensors=tensors, metadata=metadata, header_bytes=8 + length, size_bytes=size)


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
    found = {component: _component_weights(folder / component) for component in ("unet", "vae", "text_encoder")}
    return sorted(file for files in found.values() for file in files)


# ---------------------------------------------------------------- content that is no safetensors file


def _error(message: str, *, remedy: str = "") -> ModelError:
    return ModelError(message, option=OPTION, remedy=remedy)


def _refuse_other_content(path: Path, start: bytes, size: int) -> None:
    if size == 0:
        raise _error(f"{path} is empty (0 bytes)", remedy="Download it again")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise _error(
            f"{path} looks like an HTML page ({size:,} bytes), not a model: did the download fail?",
            remedy="Download it again; some sites want you to be signed in",
        )
    if text.startswith(b"version https://git-lfs"):
        raise _error(
            f"{path} is a Git LFS pointer ({size:,} bytes), not the model itself",
            remedy="Run git lfs pull, or download it",
        )
    is_zip = start.startswith(b"PK\x03\x04")
    is_pickle = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if (is_zip or is_pickle) and not start[8:9] == b"{":
        raise _error(
            f"{path} is a pickle checkpoint (.ckpt, .pt or .bin), which is not supported yet: such files can run code",
            remedy="Convert it to .safetensors",
        )
    if start.startswith(b"GGUF"):
        raise _error(f"{path} is a GGUF file, which cannot be trained", remedy="Use the original .safetensors model")
    if size < 9:
        raise _error(f"{path} is cut short: {size} bytes cannot hold a model", remedy="Download it again")


def _parse_header(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _error(f"{path} is no safetensors file: its header cannot be read ({error})") from error
    if not isinstance(entries, dict):
        raise _error(f"{path} is no safetensors file: its header is no table")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _error(f"{path} is damaged: its metadata is no table", remedy="Download it again")
    return entries, {str(key): str(value) for key, value in metadata.items()}


def _tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise _error(f"{path} is damaged: the header's entry of {name} makes no sense ({error})") from error
    if dtype not in DTYPE_BITS:
        raise _error(f"{path}: {name} has the unknown number type {dtype}")
    if data_start + end > size:
        raise _error(
            f"{path} is cut short: {name} ends at byte {data_start + end:,}, the file has {size:,}",
            remedy="Download it again",
        )
    needed = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if start < 0 or min(shape, default=0) < 0 or end - start != needed:
        raise _error(
            f"{path} is damaged: {name} {list(shape)} {dtype} needs {needed:,} bytes, its header says {end - start:,}",
            remedy="Download it again",
        )
    return TensorInfo(dtype=dtype, shape=shape, start=data_start + start, end=data_start + end)


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """Tensors must lie side by side and fill the file, as the format demands."""
    if not tensors:
        raise _error(f"{path} holds no tensors")
    reached, before = data_start, ""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != reached:
            what = "overlaps" if info.start < reached else "leaves a gap after"
            raise _error(f"{path} is damaged: {name} {what} {before or 'the header'}", remedy="Download it again")
        reached, before = info.end, name
    if reached != size:
        raise _error(f"{path} is damaged: {size - reached:,} bytes follow the last tensor", remedy="Download it again")


# ---------------------------------------------------------------- which model the keys are

_LORA_MARKS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1")
_SD_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_CROSS_ATTENTION = "attn2.to_k.weight"


def _kind_of_keys(path: Path, header: SafetensorsHeader) -> tuple[str, str]:
    """(kind, detail) of a single file; raises for files that are no whole model."""
    keys = header.tensors
    if any(key.endswith(mark) or mark in key for key in keys for mark in _LORA_MARKS):
        raise _error(
            f"{path} is a LoRA (or alike), not a base model", remedy="To go on training it, give it as network_weights"
        )
    if set(keys) <= {"emb_params", "clip_l", "clip_g", "string_to_param"}:
        raise _error(f"{path} is a textual-inversion embedding, not a base model")
    if _SD_UNET in keys:
        return _kind_of_sd(path, keys)
    if any(key.startswith(("double_blocks.", "model.diffusion_model.double_blocks.")) for key in keys):
        return "flux", "FLUX"
    if any("joint_blocks." in key for key in keys):
        return "sd3", "Stable Diffusion 3"
    raise _error(f"{path} is no model known here; {_some(keys)}", remedy="Give a Stable Diffusion 1.x model")


def _kind_of_sd(path: Path, keys: Mapping[str, TensorInfo]) -> tuple[str, str]:
    in_channels = keys[_SD_UNET].shape[1:2]
    has_first_stage = any(key.startswith("first_stage_model.") for key in keys)
    if any(key.startswith("conditioner.embedders.1.") for key in keys) or (
        "model.diffusion_model.label_emb.0.0.weight" in keys
    ):
        return "sdxl", "Stable Diffusion XL"
    if any(key.startswith("cond_stage_model.model.") for key in keys):
        return "sd2", "Stable Diffusion 2.x"
    if in_channels == (9,):
        return "sd1_inpainting", "a Stable Diffusion 1.x inpainting model"
    if not any(key.startswith("cond_stage_model.") for key in keys) or not has_first_stage:
        missing = "VAE" if not has_first_stage else "text encoder"
        raise _error(f"{path} holds a Stable Diffusion U-Net but no {missing}", remedy="Give a complete checkpoint")
    return "sd1", "Stable Diffusion 1.x"


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return f"it holds {len(names)} tensors such as {', '.join(names[:3])}"


def _single_file_prediction(kind: str, metadata: Mapping[str, str]) -> Prediction:
    stated = metadata.get("modelspec.prediction_type", "")
    if stated in ("epsilon", "e"):
        return "epsilon"
    if stated in ("v", "v_prediction"):
        return "v_prediction"
    return "unknown"


# ---------------------------------------------------------------- diffusers folders


def _inspect_folder(folder: Path) -> ModelFacts:
    index = _read_json(
        folder / "model_index.json", missing=f"{folder} is no diffusers model: it has no model_index.json"
    )
    kind, detail = _kind_of_pipeline(folder, index)
    size = num_tensors = 0
    for component in (name for name in ("unet", "vae", "text_encoder") if kind == "sd1"):
        _read_json(folder / component / "config.json", missing=f"{folder} lacks {component}/config.json")
        files = _component_weights(folder / component)
        if not files:
            raise _missing_weights(folder / component)
        headers = [read_header(file) for file in files]
        size += sum(header.size_bytes for header in headers)
        num_tensors += sum(len(header.tensors) for header in headers)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    stated = _read_json(scheduler, missing=f"{folder} lacks scheduler/scheduler_config.json").get("prediction_type")
    prediction: Prediction = "v_prediction" if stated == "v_prediction" else "epsilon"
    return ModelFacts(
        path=folder,
        kind=kind,
        prediction=prediction,
        layout="diffusers",
        size_bytes=size,
        num_tensors=num_tensors,
        detail=detail,
    )


def _kind_of_pipeline(folder: Path, index: Mapping[str, Any]) -> tuple[str, str]:
    name = str(index.get("_class_name", ""))
    if name.startswith("StableDiffusionXL"):
        return "sdxl", "Stable Diffusion XL"
    if name.startswith("StableDiffusion3"):
        return "sd3", "Stable Diffusion 3"
    if name.startswith("Flux"):
        return "flux", "FLUX"
    if name not in ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline"):
        raise _error(f"{folder} is a {name or 'nameless pipeline'}, no model known here")
    unet = _read_json(folder / "unet" / "config.json", missing=f"{folder} lacks unet/config.json")
    encoder = _read_json(folder / "text_encoder" / "config.json", missing=f"{folder} lacks text_encoder/config.json")
    if unet.get("in_channels") == 9:
        return "sd1_inpainting", "a Stable Diffusion 1.x inpainting model"
    # SD2's OpenCLIP encoder uses gelu and linear projections, SD1's CLIP quick_gelu and 1x1 convolutions
    if unet.get("use_linear_projection") or encoder.get("hidden_act") == "gelu":
        return "sd2", "Stable Diffusion 2.x"
    return "sd1", "Stable Diffusion 1.x"


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
        return _error(
            f"{folder} holds only {', '.join(others)}: pickle weights are not supported yet",
            remedy="Convert the folder to .safetensors",
        )
    found = f" (it holds {', '.join(others)})" if others else ""
    return _error(f"{folder} has no weights: no .safetensors file of the usual name{found}", remedy="Download it again")


def _read_json(path: Path, *, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise _error(missing, remedy="Give a complete folder in the diffusers layout or a .safetensors file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise _error(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _error(f"{path} should hold a JSON table")
    return content
