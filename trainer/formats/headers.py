"""The names, shapes and metadata of a model file without its numbers, every offset checked; torch-free."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ModelError

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
    """One tensor as the header describes it; start and end are file offsets (in a .ckpt: in a file of its zip)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A model file without its numbers. header_bytes: 0 where the file does not begin with a header."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    header_bytes: int
    size_bytes: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, every offset checked against the file's size; ModelError when it is broken."""
    if not path.is_file():
        raise model_error(f"{path} is missing", remedy="Download it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(1024)
        _refuse_other_content(path, start, size)
        length = struct.unpack("<Q", start[:8])[0]
        if length > MAX_HEADER_BYTES:
            raise model_error(
                f"{path} is no safetensors file: its header claims {length:,} bytes (the file has {size:,})",
                remedy="Download it again, or convert it to .safetensors",
            )
        if 8 + length > size:
            raise model_error(
                f"{path} is cut short: its header needs {8 + length:,} bytes, the file has {size:,}",
                remedy="Download it again",
            )
        file.seek(8)
        raw = file.read(length)
    entries, metadata = _parse_header(path, raw)
    tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    _check_layout(path, tensors, 8 + length, size)
    return Header(tensors=tensors, metadata=metadata, header_bytes=8 + length, size_bytes=size)


# ---------------------------------------------------------------- content that is no safetensors file


def model_error(message: str, *, remedy: str = "") -> ModelError:
    return ModelError(message, option=OPTION, remedy=remedy)


def _refuse_other_content(path: Path, start: bytes, size: int) -> None:
    if size == 0:
        raise model_error(f"{path} is empty (0 bytes)", remedy="Download it again")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise model_error(
            f"{path} looks like an HTML page ({size:,} bytes), not a model: did the download fail?",
            remedy="Download it again; some sites want you to be signed in",
        )
    if text.startswith(b"version https://git-lfs"):
        raise model_error(
            f"{path} is a Git LFS pointer ({size:,} bytes), not the model itself",
            remedy="Run git lfs pull, or download it",
        )
    is_zip = start.startswith(b"PK\x03\x04")
    is_pickle = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if (is_zip or is_pickle) and not start[8:9] == b"{":
        raise model_error(
            f"{path} is a pickle file (.ckpt, .pt or .bin) of a kind that is not read here: such files can run code",
            remedy="Convert it to .safetensors",
        )
    if start.startswith(b"GGUF"):
        raise model_error(
            f"{path} is a GGUF file, which cannot be trained", remedy="Use the original .safetensors model"
        )
    if size < 9:
        raise model_error(f"{path} is cut short: {size} bytes cannot hold a model", remedy="Download it again")


def _parse_header(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise model_error(f"{path} is no safetensors file: its header cannot be read ({error})") from error
    if not isinstance(entries, dict):
        raise model_error(f"{path} is no safetensors file: its header is no table")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise model_error(f"{path} is damaged: its metadata is no table", remedy="Download it again")
    return entries, {str(key): str(value) for key, value in metadata.items()}


def _tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise model_error(f"{path} is damaged: the header's entry of {name} makes no sense ({error})") from error
    if dtype not in DTYPE_BITS:
        raise model_error(f"{path}: {name} has the unknown number type {dtype}")
    if data_start + end > size:
        raise model_error(
            f"{path} is cut short: {name} ends at byte {data_start + end:,}, the file has {size:,}",
            remedy="Download it again",
        )
    needed = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if start < 0 or min(shape, default=0) < 0 or end - start != needed:
        raise model_error(
            f"{path} is damaged: {name} {list(shape)} {dtype} needs {needed:,} bytes, its header says {end - start:,}",
            remedy="Download it again",
        )
    return TensorInfo(dtype=dtype, shape=shape, start=data_start + start, end=data_start + end)


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """Tensors must lie side by side and fill the file, as the format demands."""
    if not tensors:
        raise model_error(f"{path} holds no tensors")
    reached, before = data_start, ""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != reached:
            what = "overlaps" if info.start < reached else "leaves a gap after"
            raise model_error(f"{path} is damaged: {name} {what} {before or 'the header'}", remedy="Download it again")
        reached, before = info.end, name
    if reached != size:
        raise model_error(
            f"{path} is damaged: {size - reached:,} bytes follow the last tensor", remedy="Download it again"
        )
