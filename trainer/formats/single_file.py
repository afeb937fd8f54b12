"""Single files of Stable Diffusion 1.x, 2.x and XL: their configs, checking, reading and writing."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ModelError
from trainer.formats.checkpoint import CONVERT, is_checkpoint, read_tensors
from trainer.formats.headers import OPTION
from trainer.formats.key_names import SCHEMES, VAE, key_map, leftover_names, made_up
from trainer.formats.kohya import save_safetensors, torch_dtype
from trainer.formats.model_facts import COMPONENTS, CONFIGS_KEY, V_MARK, ZERO_SNR_MARK
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "COMPONENTS",
    "CONFIGS_KEY",
    "check_sizes",
    "component_configs",
    "key_map",
    "leftovers",
    "read_component",
    "write_single_file",
]

Sizes = Mapping[str, tuple[int, ...]]

# ---------------------------------------------------------------- reading


def component_configs(
    path: Path, kind: str, *, model_config: Path | None, built_in: Path
) -> tuple[dict[str, Any], str]:
    """(configs of the components and the scheduler, where they come from): the file itself, a folder, or built-in."""
    wanted = (*COMPONENTS[kind], "scheduler")
    metadata = read_tensors(path).metadata
    if CONFIGS_KEY in metadata:
        try:
            configs = json.loads(metadata[CONFIGS_KEY])
        except ValueError as error:
            raise ModelError(f"{path} describes itself unreadably: {error}") from error
        if not isinstance(configs, dict) or not set(wanted) <= set(configs):
            raise ModelError(f"{path} describes itself incompletely ({CONFIGS_KEY} in its metadata)")
        return configs, "the file's own metadata"
    folder = built_in if model_config is None else model_config
    files = {name: "scheduler_config.json" if name == "scheduler" else "config.json" for name in wanted}
    return {name: _read_config(folder / name / file) for name, file in files.items()}, str(folder)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", option="model_config") from error
    assert isinstance(content, dict)
    return content


def check_sizes(path: Path, kind: str, wanted: Mapping[str, Sizes], *, source: str) -> None:
    """Compare a file with the sizes its config asks for; wanted: component -> diffusers key -> shape."""
    tensors = read_tensors(path).tensors
    wrong: list[str] = []
    known = set(leftover_names(kind, tensors))
    for component, sizes in wanted.items():
        for place in key_map(kind, component, sizes):
            known.update(place.spellings)
            shape = place.form.shape([sizes[key] for key in place.keys])
            info = next((tensors[name] for name in place.spellings if name in tensors), None)
            if info is None:
                wrong.append(f"{place.name} is missing")
            elif _matrix(info.shape) != _matrix(shape):
                wrong.append(f"{place.name} is {list(info.shape)} instead of {list(shape)}")
    parts = tuple(prefix for component in wanted for prefix in _filled(SCHEMES[kind][component].prefix))
    wrong += [f"{name} is too many" for name in tensors if name.startswith(parts) and name not in known]
    if wrong:
        raise ModelError(
            f"{path} does not fit the sizes in {source}: {len(wrong)} differences, the first: {wrong[0]}",
            option="model_config",
            remedy="Give a diffusers folder that describes this model as model_config",
        )


def _filled(prefix: str) -> tuple[str, ...]:
    """Below what no tensor is without a meaning; beside a VAE's halves files keep what it was trained with."""
    return (f"{prefix}encoder.", f"{prefix}decoder.") if prefix == VAE else (prefix,)


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Programs differ in whether they keep a linear layer as matrix or as 1x1 convolution; the numbers are the same."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def read_component(path: Path, kind: str, component: str, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor]:
    """One component's tensors under diffusers keys, each in memory of its own (alignment changes last bits)."""
    present = read_tensors(path).tensors
    found: dict[str, Tensor] = {}
    with _opened(path) as stored:
        for place in key_map(kind, component, sizes):
            whole = stored(next(name for name in place.spellings if name in present))
            parts = place.form.unpack(whole, [sizes[key] for key in place.keys])
            for key, part in zip(place.keys, parts, strict=True):
                own = part.reshape(sizes[key])
                found[key] = own.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return found


def leftovers(path: Path, kind: str) -> dict[str, Tensor]:
    """What a file holds that training has no use for and other programs look for, by its names there: the parts of text
    encoders that diffusers leaves out, and the marks of v-prediction. (Where a file lacks the spare last layer of
    Stable Diffusion 2.x, its last layer of all is among them; a component that is written beside it comes first.)"""
    present = read_tensors(path).tensors
    marks = [name for name in (V_MARK, ZERO_SNR_MARK) if name in present]
    with _opened(path) as stored:
        return {name: stored(name).clone() for name in (*leftover_names(kind, present), *marks)}


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """A function that reads one tensor by its name."""
    if is_checkpoint(path):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}", option=OPTION, remedy=CONVERT) from error
        yield content.get("state_dict", content).__getitem__
        return
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        yield file.get_tensor


# ---------------------------------------------------------------- writing

ARCHITECTURES = {
    ("sd1", False): "stable-diffusion-v1",
    ("sd1", True): "stable-diffusion-v1",
    ("sd2", False): "stable-diffusion-v2-512",
    ("sd2", True): "stable-diffusion-v2-768-v",
    ("sdxl", False): "stable-diffusion-xl-v1-base",
    ("sdxl", True): "stable-diffusion-xl-v1-base",
}
"""modelspec's names; of (kind, whether velocity is predicted)."""


def write_single_file(
    kind: str,
    components: Mapping[str, nn.Module],
    path: Path,
    *,
    configs: Mapping[str, Any],
    precision: str = "float",
    metadata: Mapping[str, str] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a whole model as one file that describes itself. configs: the components' and the scheduler's; beside: the
    `leftovers` of the file it came from; what other programs need and neither has is made up."""
    dtype = torch_dtype(precision)
    tensors: dict[str, Tensor] = {}
    for component in COMPONENTS[kind]:
        state = components[component].state_dict()
        for place in key_map(kind, component, state):
            parts = [state[key].detach().to("cpu", dtype) for key in place.keys]
            tensors[place.name] = place.form.pack(parts).contiguous()
    new = {**made_up(kind, tensors), **_marks(kind, configs["scheduler"])}
    kept = {name: t.to("cpu", dtype if t.is_floating_point() else t.dtype) for name, t in (beside or {}).items()}
    tensors = {**new, **kept, **tensors}
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    described = {
        CONFIGS_KEY: json.dumps({name: configs[name] for name in (*COMPONENTS[kind], "scheduler")}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[kind, prediction == "v_prediction"],
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
    }
    return save_safetensors(tensors, path, metadata={**described, **(metadata or {})})


def _marks(kind: str, scheduler: Mapping[str, Any]) -> dict[str, Tensor]:
    """The empty tensors by which programs that draw pictures know velocity-predicting models of Stable Diffusion XL."""
    if kind != "sdxl" or scheduler.get("prediction_type") != "v_prediction":
        return {}
    zero_snr = [ZERO_SNR_MARK] if scheduler.get("rescale_betas_zero_snr") else []
    return {name: torch.zeros(0) for name in (V_MARK, *zero_snr)}
