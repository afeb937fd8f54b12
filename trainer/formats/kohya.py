"""LoRA files as kohya's sd-scripts writes them: key names, `ss_*` and modelspec metadata, hashes, atomic saving."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer import host
from trainer.errors import ModelError, RunError
from trainer.formats.model_facts import legacy_hash, read_header, sha256_file
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Precision = Literal["float", "fp16", "bf16"]
SUFFIXES = ("lora_down.weight", "lora_up.weight", "alpha")


@dataclass(frozen=True)
class AdapterTarget:
    """The layers of one component that an adapter may wrap.

    component: "denoiser", "text_encoder", "text_encoder_2", ...
    names: module path inside `module` -> its name in files ("lora_unet_mid_block_attentions_0_proj_in").
    """

    component: str
    module: nn.Module
    names: Mapping[str, str]

    @classmethod
    def build(
        cls, component: str, *, prefix: str, module: nn.Module, paths: Sequence[str], level: str = ""
    ) -> AdapterTarget:
        """level: a leading part of the saved path that the module in memory lacks ("text_model")."""
        return cls(component, module, {path: lora_name(prefix, path, level=level) for path in paths})


def lora_name(prefix: str, path: str, *, level: str = "") -> str:
    """kohya's name of a module: prefix and path with dots as underscores."""
    full = path if not level or path.startswith(f"{level}.") else f"{level}.{path}"
    return f"{prefix}_{full.replace('.', '_')}"


@dataclass(frozen=True)
class LoraWeights:
    """One adapted module of a file; alpha None where the file states none (its meaning is then the rank)."""

    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


def split_lora(tensors: Mapping[str, Tensor], *, source: str) -> dict[str, LoraWeights]:
    """Module name -> weights, from a file's tensors; anything that is no plain LoRA is an error."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, suffix = key.partition(".")
        if suffix not in SUFFIXES:
            raise ModelError(f"{source} is no plain LoRA with kohya's names: it holds {key}", option="network_weights")
        parts.setdefault(name, {})[suffix] = tensor
    for name, part in parts.items():
        for suffix in SUFFIXES[:2]:
            if suffix not in part:
                raise ModelError(f"{source} lacks {name}.{suffix}", option="network_weights")
    return {
        name: LoraWeights(
            down=part["lora_down.weight"],
            up=part["lora_up.weight"],
            alpha=float(part["alpha"]) if "alpha" in part else None,
        )
        for name, part in parts.items()
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file on the CPU, each in memory of its own (alignment changes last bits)."""
    from safetensors import safe_open

    read_header(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118


# ---------------------------------------------------------------- metadata


@dataclass(frozen=True)
class RunFacts:
    """What the metadata of a trained file tells of its run beyond the options.

    datasets, dataset_dirs, tag_frequency: as sd-scripts nests them; written as JSON.
    """

    session_id: int
    started_at: float
    finished_at: float | None
    output_name: str
    num_train_images: int
    num_reg_images: int
    num_batches_per_epoch: int
    num_epochs: int
    epoch: int
    steps: int
    max_train_steps: int
    base_model_version: str
    optimizer: str
    model_name: str
    model_hash: str
    new_model_hash: str
    datasets: Sequence[Mapping[str, Any]] = ()
    dataset_dirs: Mapping[str, Any] = field(default_factory=dict)
    tag_frequency: Mapping[str, Any] = field(default_factory=dict)


_FROM_OPTIONS: Mapping[str, Any] = {
    "adaptive_noise_scale": None,
    "cache_latents": False,
    "caption_dropout_every_n_epochs": 0,
    "caption_dropout_rate": 0.0,
    "caption_tag_dropout_rate": 0.0,
    "clip_skip": None,
    "face_crop_aug_range": None,
    "fp8_base": False,
    "fp8_base_unet": False,
    "full_fp16": False,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "huber_c": 0.1,
    "huber_scale": 1.0,
    "huber_schedule": "snr",
    "ip_noise_gamma": None,
    "ip_noise_gamma_random_strength": False,
    "learning_rate": None,
    "loss_type": "l2",
    "lowram": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_grad_norm": 1.0,
    "max_token_length": None,
    "max_validation_steps": None,
    "min_snr_gamma": None,
    "mixed_precision": "no",
    "multires_noise_discount": 0.3,
    "multires_noise_iterations": None,
    "network_alpha": None,
    "network_dim": None,
    "network_dropout": None,
    "network_module": "networks.lora",
    "noise_offset": None,
    "noise_offset_random_strength": False,
    "prior_loss_weight": 1.0,
    "resize_interpolation": None,
    "scale_weight_norms": None,
    "seed": None,
    "text_encoder_lr": None,
    "training_comment": None,
    "unet_lr": None,
    "v2": False,
    "validate_every_n_epochs": None,
    "validate_every_n_steps": None,
    "validation_seed": None,
    "validation_split": 0.0,
    "zero_terminal_snr": False,
}
"""sd-scripts' keys that repeat an option, with what it writes where the option is not set or not known here."""


def training_metadata(options: Mapping[str, Any], run: RunFacts) -> dict[str, str]:
    """The `ss_*` table; options: flat option values by name, as many as there are."""
    values: dict[str, Any] = {name: options.get(name, default) for name, default in _FROM_OPTIONS.items()}
    values["debiased_estimation"] = options.get("debiased_estimation_loss", False)
    if values["network_alpha"] is None:
        values["network_alpha"] = values["network_dim"]
    if options.get("network_args"):
        values["network_args"] = json.dumps(dict(text.split("=", 1) for text in options["network_args"]))
    values |= {
        "session_id": run.session_id,
        "training_started_at": run.started_at,
        "training_finished_at": run.finished_at,
        "output_name": run.output_name,
        "num_train_images": run.num_train_images,
        "num_reg_images": run.num_reg_images,
        "num_validation_images": 0,
        "num_batches_per_epoch": run.num_batches_per_epoch,
        "num_epochs": run.num_epochs,
        "epoch": run.epoch,
        "steps": run.steps,
        "max_train_steps": run.max_train_steps,
        "base_model_version": run.base_model_version,
        "optimizer": run.optimizer,
        "sd_model_name": run.model_name,
        "sd_model_hash": run.model_hash,
        "new_sd_model_hash": run.new_model_hash,
        "datasets": json.dumps(list(run.datasets)),
        "dataset_dirs": json.dumps(dict(run.dataset_dirs)),
        "tag_frequency": json.dumps(dict(run.tag_frequency)),
    }
    return {f"ss_{name}": str(value) for name, value in values.items()}


_ALWAYS = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)


def minimal_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What `--no_metadata` leaves: what a loader needs, and modelspec."""
    return {key: value for key, value in metadata.items() if key in _ALWAYS or key.startswith("modelspec.")}


def modelspec_metadata(
    *,
    architecture: str,
    title: str,
    resolution: tuple[int, int],
    prediction_type: str,
    saved_at: float,
    encoder_layer: int | None = None,
    implementation: str = "diffusers",
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The `modelspec.*` table; extra: author, license, tags, ... without the prefix."""
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": implementation,
        "title": title,
        "resolution": f"{resolution[0]}x{resolution[1]}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(saved_at)),
        "prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
    }
    if encoder_layer is not None:
        values["encoder_layer"] = str(encoder_layer)
    return {f"modelspec.{key}": value for key, value in {**values, **(extra or {})}.items()}


# ---------------------------------------------------------------- saving


def torch_dtype(precision: str) -> torch.dtype:
    """The number type that `save_precision` names."""
    return {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def save_lora(tensors: Mapping[str, Tensor], path: Path, *, precision: str, metadata: Mapping[str, str]) -> Path:
    """Write a LoRA with its hashes in the metadata, atomically."""
    dtype = torch_dtype(precision)
    ready = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    for key, tensor in ready.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RunError(f"{path} was not written: {key} holds numbers that are not finite in {precision}")
    return save_safetensors(ready, path, metadata={**metadata, **lora_hashes(ready, metadata)})


def lora_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The hashes web UIs know a LoRA by; computed over the file as it would be with `ss_*` metadata alone."""
    from safetensors.torch import save

    content = save(dict(tensors), {key: value for key, value in metadata.items() if key.startswith("ss_")})
    data_start = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(content)[data_start:]).hexdigest(),
        "sshs_legacy_hash": legacy_hash(content[0x100000:0x110000]),
    }


def model_hash(path: Path) -> str:
    """A saved LoRA's `sshs_model_hash`, from its file."""
    return sha256_file(path, start=read_header(path).header_bytes)


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str]) -> Path:
    """Write a file with its metadata; it is whole, and read back, or not there."""
    from safetensors.torch import save_file

    with whole_file(path) as part:
        save_file(dict(tensors), part, dict(metadata))
        _verify(part, tensors)
    return path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside the goal to write to and look at; synced and renamed then, so a file of this name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, ModelError) as error:
        raise RunError(f"{path} could not be saved: {error}", remedy="Check the free space and rights there") from error
    finally:
        part.unlink(missing_ok=True)
    host.sync_folder(path.parent)


def _verify(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read a file back: every tensor there, finite, and equal to what was to be written."""
    from safetensors import safe_open

    written = {name: info.shape for name, info in read_header(path).tensors.items()}
    if written != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise ModelError(f"{path} does not hold what was written to it")
    with safe_open(path, framework="pt", device="cpu") as file:
        for name, tensor in tensors.items():
            verify_tensor(path, name, file.get_tensor(name), tensor)


def verify_tensor(path: Path, name: str, read: Tensor, written: Tensor) -> None:
    """A tensor as it was read back; ModelError where it is not finite, or another than was written."""
    if not bool(torch.isfinite(read).all()):
        raise ModelError(f"{name} holds numbers that are not finite in {str(read.dtype).removeprefix('torch.')}")
    if not torch.equal(read, written):
        raise ModelError(f"{path} does not hold what was written to it: {name} is another")


def unused_names(file: Mapping[str, LoraWeights], targets: Sequence[AdapterTarget]) -> Iterator[str]:
    """Module names of a file that no target has."""
    known = {name for target in targets for name in target.names.values()}
    return (name for name in file if name not in known)
