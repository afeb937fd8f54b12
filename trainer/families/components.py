"""The parts of a Stable-Diffusion-type model (networks, tokenizers, noise schedule) from a folder or a single file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ModelError
from trainer.families.base import ModelOptions
from trainer.formats import single_file
from trainer.formats.model_facts import ModelFacts
from trainer.lazy import accelerate, diffusers, torch, transformers

if TYPE_CHECKING:
    from torch import nn

CONFIGS = Path(__file__).parent / "configs"
VOCABULARY = CONFIGS / "sd1" / "tokenizer"
"""CLIP's, which every family here reads with."""

CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}
"""Folder of the diffusers layout -> (library, class)."""


@dataclass(frozen=True)
class Components:
    """A model's parts by their folders' names. leftovers: tensors of the file that none of them holds."""

    networks: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]
    tokenizers: tuple[Any, ...]
    leftovers: Mapping[str, Any]


def read_components(
    facts: ModelFacts, options: ModelOptions, *, dtypes: Mapping[str, torch.dtype], paddings: tuple[str, ...]
) -> Components:
    """Every network in its own dtype; paddings: each tokenizer's padding token, where the model brings none along."""
    read = _from_folder if facts.layout == "diffusers" else _from_single_file
    return read(facts, options, dtypes, paddings)


def _from_folder(
    facts: ModelFacts, options: ModelOptions, dtypes: Mapping[str, torch.dtype], paddings: tuple[str, ...]
) -> Components:
    networks: dict[str, Any] = {}
    for name, dtype in dtypes.items():
        try:
            with _without_progress_bars():
                networks[name] = _class_of(name).from_pretrained(
                    str(facts.path), subfolder=name, torch_dtype=dtype, use_safetensors=True, local_files_only=True
                )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{facts.path}/{name} cannot be loaded: {reason}", option="pretrained_model_name_or_path"
            ) from error
        _own_memory(networks[name])
    scheduler_config = json.loads((facts.path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    folders = [facts.path / name for name in ("tokenizer", "tokenizer_2")]
    tokenizers = tuple(_tokenizer(folder, padding) for folder, padding in zip(folders, paddings, strict=False))
    return Components(networks, scheduler_config, tokenizers, {})


def _from_single_file(
    facts: ModelFacts, options: ModelOptions, dtypes: Mapping[str, torch.dtype], paddings: tuple[str, ...]
) -> Components:
    configs, source = single_file.component_configs(
        facts.path, facts.kind, model_config=options.model_config_folder, built_in=CONFIGS / facts.kind
    )
    networks = {name: empty(name, configs[name], source) for name in dtypes}
    sizes = {
        name: {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        for name, network in networks.items()
    }
    single_file.check_sizes(facts.path, facts.kind, sizes, source=source)
    for name, network in networks.items():
        tensors = single_file.read_component(facts.path, facts.kind, name, sizes[name], dtypes[name])
        network.load_state_dict(tensors, strict=True, assign=True)
        network.eval()
    scheduler_config = dict(configs["scheduler"])
    if facts.prediction != "unknown":
        scheduler_config["prediction_type"] = facts.prediction
    tokenizers = tuple(_tokenizer(VOCABULARY, padding) for padding in paddings)
    return Components(networks, scheduler_config, tokenizers, single_file.leftovers(facts.path, facts.kind))


def _class_of(name: str) -> Any:
    library, class_name = CLASSES[name]
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)


def empty(name: str, config: Mapping[str, Any], source: str) -> Any:
    """The component without memory for its weights; they are put in when the sizes have been compared."""
    try:
        with accelerate.init_empty_weights(include_buffers=False):
            if CLASSES[name][0] == "transformers":
                return _class_of(name)(transformers.CLIPTextConfig(**config))
            return _class_of(name).from_config(dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"the {name} config in {source} describes no model: {error}", option="model_config") from error


def config_of(network: Any) -> dict[str, Any]:
    """A network's own configuration, as it lies in its folder."""
    is_text = isinstance(network, transformers.PreTrainedModel)
    text: str = network.config.to_json_string() if is_text else network.to_json_string()
    found: dict[str, Any] = json.loads(text)
    return found


def _own_memory(module: nn.Module) -> None:
    """Move every weight out of the mapped file: its alignment there would change last bits."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws one per component, into the run's console."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _tokenizer(folder: Path, padding: str) -> Any:
    """The folder's own tokenizer, or the common vocabulary with this padding."""
    if folder.is_dir() and folder != VOCABULARY:
        return transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return transformers.CLIPTokenizer.from_pretrained(str(VOCABULARY), local_files_only=True, pad_token=padding)
