"""A store of tensors on disk, by the content they were made from, so that an entry is right or not there at all.

The key says everything an entry depends on; nothing is ever looked up by a picture's name or time. Each entry is a
safetensors file with a checksum, written under a temporary name. It may be deleted at any time: what is missing is made
again, and so is what is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trainer.errors import RunError

_FORMAT = "1"


class DamagedEntry(ValueError):
    """An entry whose file is cut off, changed or holds values that are not finite."""


def content_key(*parts: Any) -> str:
    """One name for everything that decides a value; parts are plain values, as JSON writes them."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts], sort_keys=True).encode()).hexdigest()


def weights_identity(module: nn.Module) -> str:
    """A hash of a network's weights, with their names, kinds and device (which changes last digits)."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.device.type}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class TensorStore:
    """Entries of named tensors below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> dict[str, Tensor] | None:
        """An entry in memory of its own, None when there is none; raises DamagedEntry."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedEntry(f"{path}: {error}") from None
        if told.get("key") != key or told.get("checksum") != _checksum(found):
            raise DamagedEntry(f"{path}: its checksum is another")
        if not all(bool(torch.isfinite(value).all()) for value in found.values()):
            raise DamagedEntry(f"{path}: holds values that are not finite")
        return found

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep an entry. It is not synced to the disk: after a power cut the checksum tells."""
        values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        data = save(values, metadata={"key": key, "checksum": _checksum(values)})
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            remedy = "Make room, or choose another folder with latents_cache_dir"
            raise RunError(f"{self.folder}: cannot be written to ({error.strerror})", remedy=remedy) from None

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
