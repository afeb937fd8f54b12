"""Embedding files (textual inversion): the vectors of a new word, one tensor for each text encoder.

Stable Diffusion 1 and 2: {"emb_params": [n, D]}; XL: {"clip_l": [n, 768], "clip_g": [n, 1280]}; as .safetensors or .pt.
Read besides: what diffusers writes ({word: vectors}) and A1111's older files ({"string_to_param": {"*": vectors}}).

Shapes: N vectors, D width of a token's state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import ModelError
from trainer.formats.checkpoint import is_checkpoint
from trainer.formats.kohya import read_tensors, save_safetensors, torch_dtype, verify_tensor, whole_file
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

EmbeddingKind = Literal["safetensors", "pt"]


@cache
def word_pattern(word: str) -> re.Pattern[str]:
    """Finds the word in a text: in any capitals, as CLIP reads, and not within a longer word or number."""
    before = r"(?<![^\W_])" if word[0].isalnum() else ""
    after = r"(?![^\W_])" if word[-1].isalnum() else ""
    return re.compile(before + re.escape(word) + after, re.IGNORECASE)


def save_embedding(tensors: Mapping[str, Tensor], path: Path, *, precision: str, metadata: Mapping[str, str]) -> Path:
    """Write the vectors by their keys, in the form that the path's ending says; whole and read back, or not at all.

    A .pt holds the tensors alone: programs that draw take a single tensor in it for the vectors.
    """
    dtype = torch_dtype(precision)
    ready = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        return save_safetensors(ready, path, metadata=metadata)
    with whole_file(path) as part:
        torch.save(ready, part)
        read: dict[str, Tensor] = torch.load(part, weights_only=True)
        for key, tensor in ready.items():
            verify_tensor(part, key, read[key], tensor)
    return path


def read_embedding(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """The vectors [N, D] of an embedding file by these keys; for one key, a lone tensor of any name is it."""
    content: Mapping[str, Any] = _unpickled(path) if is_checkpoint(path) else read_tensors(path)
    content = content.get("string_to_param", content)
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    if len(keys) == 1 and len(tensors) == 1:
        tensors = {keys[0]: next(iter(tensors.values()))}
    if set(tensors) != set(keys):
        held, wanted = ", ".join(sorted(tensors)[:5]) or "no tensors", " and ".join(keys)
        raise _error(f"{path} is no embedding of this kind of model: it holds {held}, not {wanted}")
    return {key: tensor.reshape(-1, tensor.shape[-1]).float() for key, tensor in tensors.items()}


def _unpickled(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise _error(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise _error(f"{path} is no embedding: it holds a {type(content).__name__}")
    return content


def _error(said: str) -> ModelError:
    return ModelError(said, option="weights", remedy="Give an embedding trained for this kind of model")
