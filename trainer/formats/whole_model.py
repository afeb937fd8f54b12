"""A whole model on disk: as a .ckpt file or as a folder in the diffusers layout; whole and read back, or not there."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer import host
from trainer.errors import ModelError, RunError
from trainer.formats.kohya import torch_dtype, verify_tensor, whole_file
from trainer.lazy import accelerate, torch, transformers

if TYPE_CHECKING:
    from torch import Tensor, nn

ModelKind = Literal["safetensors", "ckpt", "diffusers", "diffusers_safetensors"]


def write_ckpt(source: Path, path: Path, *, epoch: int, step: int) -> Path:
    """A model in a safetensors file once more as .ckpt: {"epoch", "global_step", "state_dict"}, of plain tensors."""
    from safetensors.torch import load_file

    tensors = load_file(source)
    with whole_file(path) as part:
        try:
            torch.save({"epoch": epoch, "global_step": step, "state_dict": tensors}, part)
        except RuntimeError as error:  # how torch says that the disk is full
            raise OSError(str(error).splitlines()[0]) from error
        _verify_ckpt(part, tensors)
    return path


def _verify_ckpt(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """In a function of its own: Windows renames no file that is still mapped."""
    read: dict[str, Tensor] = torch.load(path, weights_only=True, mmap=True, map_location="cpu")["state_dict"]
    if read.keys() != tensors.keys():
        raise ModelError(f"{path} does not hold what was written to it")
    for name, tensor in tensors.items():
        verify_tensor(path, name, read[name], tensor)


def write_folder(parts: Mapping[str, nn.Module], path: Path, *, precision: str, add: Callable[[Path], None]) -> Path:
    """A folder with each part as diffusers and transformers save it, and what `add` writes besides."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        add(temporary)
        for name, part in parts.items():
            _write_part(part, temporary / name, torch_dtype(precision))
        for file in (found for found in temporary.rglob("*") if found.is_file()):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        host.replace_folder(temporary, path)
    except (OSError, ModelError) as error:
        raise RunError(f"{path} could not be saved: {error}", remedy="Check the free space and rights there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _write_part(part: Any, folder: Path, dtype: torch.dtype) -> None:
    """A stand-in without memory of its own is given the weights and saved, so that the part itself stays as it is."""
    with accelerate.init_empty_weights(include_buffers=False):
        if isinstance(part, transformers.PreTrainedModel):
            stand_in: Any = type(part)(copy.deepcopy(part.config))
        else:
            stand_in = type(part).from_config(dict(part.config))
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in part.state_dict().items()
    }
    stand_in.load_state_dict(tensors, strict=True, assign=True)
    stand_in.save_pretrained(folder)
    _verify_part(folder, tensors)


def _verify_part(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor must be there, finite and as it was; names may have got a level in front."""
    from safetensors import safe_open

    left = dict(tensors)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118
                short = name if name in left else name.partition(".")[2]
                if short not in left:
                    raise ModelError(f"{path} does not hold what was written to it: {name} is too many")
                verify_tensor(path, name, file.get_tensor(name), left.pop(short))
    if left:
        raise ModelError(f"{folder} does not hold what was written to it: {len(left)} tensors are missing")
