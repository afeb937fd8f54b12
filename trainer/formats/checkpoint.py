"""The names and shapes in a .ckpt checkpoint (torch's zip around a pickle), read without torch; nothing of it is run.

A pickle may name any function to be called. Here it may name the few that tensors are made of, and in place of each
stands one that makes a description; a file that names anything else is refused, as it is when its numbers are read.
"""

from __future__ import annotations

import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.formats.headers import DTYPE_BITS, MAX_HEADER_BYTES, Header, TensorInfo, model_error, read_header

CONVERT = "Convert it to .safetensors with a program and a file that you trust"
_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


def read_tensors(path: Path) -> Header:
    """The names and shapes in a model file, whether .safetensors or .ckpt, by its content."""
    return read_checkpoint(path) if is_checkpoint(path) else read_header(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as torch's checkpoints do: as a zip file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    return start.startswith(b"PK\x03\x04") and start[8:] != b"{"


def read_checkpoint(path: Path) -> Header:
    """The tensors of a checkpoint, those below `state_dict` where it has that level; ModelError when it is broken."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = _described(path, archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise model_error(
            f"{path} is cut short or damaged: it begins as a checkpoint but is no whole zip file ({error})",
            remedy="Download it again",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    items = state.items() if isinstance(state, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, TensorInfo)}
    if not tensors:
        raise model_error(f"{path} is a checkpoint that holds no tensors", remedy="Give a complete checkpoint")
    return Header(tensors=tensors, metadata={}, header_bytes=0, size_bytes=path.stat().st_size)


def _described(path: Path, archive: zipfile.ZipFile) -> Any:
    """What the pickle holds, with descriptions for tensors."""
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    pickles = [name for name in sizes if PurePosixPath(name).name == "data.pkl"]
    if len(pickles) != 1:
        raise model_error(f"{path} is a zip file but no checkpoint: it has {len(pickles)} data.pkl instead of one")
    if sizes[pickles[0]] > MAX_HEADER_BYTES:
        raise model_error(f"{path} is no model checkpoint: its data.pkl has {sizes[pickles[0]]:,} bytes")
    folder = PurePosixPath(pickles[0]).parent / "data"
    with archive.open(pickles[0]) as file:
        try:
            return _Describer(file, folder=folder, sizes=sizes).load()
        except _Refused as error:
            raise model_error(
                f"{path} is a pickle checkpoint that {error}; such files can run code", remedy=CONVERT
            ) from error
        except _DAMAGE as error:
            raise model_error(f"{path} is damaged: its data.pkl cannot be read ({error})", remedy=CONVERT) from error


class _Refused(Exception):
    """What a pickle names beyond tensors."""


_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What unpickling raises for bytes that make no sense."""


@dataclass(frozen=True)
class _Numbers:
    """Where tensors have their numbers: a file of the zip."""

    dtype: str
    count: int


def _tensor(numbers: _Numbers, offset: int, shape: tuple[int, ...], *_: Any) -> TensorInfo:
    width, count = DTYPE_BITS[numbers.dtype] // 8, math.prod(shape)
    if offset < 0 or min(shape, default=0) < 0 or offset + count > numbers.count:
        raise ValueError(f"a tensor {list(shape)} from {offset} on in a storage of {numbers.count:,}")
    return TensorInfo(dtype=numbers.dtype, shape=tuple(shape), start=offset * width, end=(offset + count) * width)


def _parameter(tensor: TensorInfo, *_: Any) -> TensorInfo:
    return tensor


_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _Describer(pickle.Unpickler):
    """Makes descriptions; nothing that a pickle names is imported."""

    def __init__(self, file: Any, *, folder: PurePosixPath, sizes: Mapping[str, int]) -> None:
        super().__init__(file)
        self._folder = folder
        self._sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in _KNOWN:
            raise _Refused(f"names {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Numbers:
        _, dtype, key, _, count = pid
        needed, found = count * DTYPE_BITS[dtype] // 8, self._sizes[str(self._folder / str(key))]
        if needed > found:
            raise ValueError(f"data/{key} has {found:,} bytes instead of {needed:,}")
        return _Numbers(dtype, count)
