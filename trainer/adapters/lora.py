"""LoRA (https://arxiv.org/abs/2106.09685): beside a layer W trains up @ down of a small rank, added times alpha / rank.

PEFT does the work inside the model; names, start values, dropouts and files are kohya's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.adapters.base import Adapter, AdapterOptions, add_dropouts
from trainer.errors import ModelError
from trainer.formats.kohya import AdapterTarget, read_tensors, split_lora
from trainer.lazy import peft, torch
from trainer.maths.rng import generator

if TYPE_CHECKING:
    from torch import Tensor, nn

PEFT_NAME = "default"


@dataclass(frozen=True)
class Size:
    """Of one layer's matrices."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def _sizes_in(path: Path | None) -> dict[str, Size]:
    """Layer name -> size in a LoRA file."""
    assert path is not None, "dim_from_weights without network_weights is refused before"
    file = split_lora(read_tensors(path), source=str(path))
    return {name: Size(w.rank, float(w.rank) if w.alpha is None else w.alpha) for name, w in file.items()}


class Lora(Adapter):
    """Plain LoRA on linear layers and convolutions."""

    kind = "networks.lora"

    def __init__(self, options: AdapterOptions, *, seed: int) -> None:
        super().__init__(options, seed=seed)
        rank, alpha = self.options.network_dim, self.options.network_alpha
        self._size = Size(rank, float(rank) if alpha is None else alpha)
        self._sizes = _sizes_in(self.options.network_weights) if self.options.dim_from_weights else None
        self._layers: dict[str, dict[str, Any]] = {}

    def size(self, name: str) -> Size | None:
        """Rank and alpha of a layer by its name in files; None where it is left alone."""
        return self._size if self._sizes is None else self._sizes.get(name)

    def inject(self, target: AdapterTarget) -> None:
        assert target.component not in self._layers, f"{target.component} is adapted already"
        sizes = {path: size for path, name in target.names.items() if (size := self.size(name))}
        if not sizes:
            raise ModelError(
                f"{self.options.network_weights} holds no layer of the {target.component}, which is to be trained",
                option="dim_from_weights",
                remedy="Train only what the file holds (network_train_unet_only, network_train_text_encoder_only)",
            )
        config = peft.LoraConfig(
            r=self._size.rank,
            lora_alpha=self._size.alpha,  # type: ignore[arg-type, unused-ignore]
            target_modules=list(sizes),
            rank_pattern={re.escape(path): size.rank for path, size in sizes.items() if self._sizes},
            alpha_pattern={re.escape(path): size.alpha for path, size in sizes.items() if self._sizes},
            lora_dropout=0.0,
            init_lora_weights=False,
        )
        peft.inject_adapter_in_model(config, target.module, adapter_name=PEFT_NAME)
        layers = {target.names[path]: target.module.get_submodule(path) for path in sizes}
        self._layers[target.component] = layers
        trained = {id(p) for name, layer in layers.items() for p in self._prepare(name, layer)}
        target.module.train(target.module.training)  # new layers begin in training mode, whatever the rest is in
        for parameter in target.module.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    def parameters(self, component: str) -> list[nn.Parameter]:
        return [p for layer in self._layers[component].values() for p in (_down(layer).weight, _up(layer).weight)]

    def faster(self, component: str) -> list[nn.Parameter]:
        return [_up(layer).weight for layer in self._layers[component].values()]

    def limit_norms(self, largest: float) -> list[tuple[float, bool]]:
        """Both matrices of a layer take half of the scaling, as sd-scripts does it."""
        found = []
        with torch.no_grad():
            for name, layer in self._all().items():
                down, up = _down(layer).weight, _up(layer).weight
                norm = _product_norm(up.flatten(1), down.flatten(1)) * self._of(name).scale
                if is_above := norm > largest:
                    for factor in (down, up):
                        factor.mul_(math.sqrt(largest / norm))
                found.append((min(norm, largest), is_above))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, layer in self._all().items():
            found[f"{name}.lora_down.weight"] = _copy(_down(layer).weight)
            found[f"{name}.lora_up.weight"] = _copy(_up(layer).weight)
            found[f"{name}.alpha"] = torch.tensor(self._of(name).alpha)
        return found

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        wanted = self.state_dict()
        if differing := sorted(set(wanted) ^ set(tensors)):
            raise ModelError(
                f"the saved state belongs to another network: {len(differing)} names such as {differing[0]}"
            )
        for key, tensor in tensors.items():
            is_alpha = key.endswith(".alpha")
            if tensor.shape != wanted[key].shape or (is_alpha and float(tensor) != float(wanted[key])):
                raise ModelError(f"the saved state belongs to another network: {key} is {_words(tensor)}")
        self._fill({name: (w.down, w.up) for name, w in split_lora(tensors, source="the saved state").items()})

    def start_from(self, path: Path) -> None:
        file = split_lora(read_tensors(path), source=str(path))
        layers = self._all()
        if not set(file) & set(layers):
            raise ModelError(f"{path} fits no layer that is trained here", option="network_weights")
        if unknown := sorted(set(file) - set(layers)):
            raise ModelError(
                f"{path} changes {len(unknown)} layers that are not trained here, such as {unknown[0]}",
                option="network_weights",
                remedy="Train the same components as it did",
            )
        for name, weights in file.items():
            if weights.rank != self._of(name).rank:
                raise ModelError(
                    f"{path} has rank {weights.rank} at {name}, network_dim is {self._of(name).rank}",
                    option="network_weights",
                    remedy=f"Set network_dim to {weights.rank}, or dim_from_weights",
                )
            if (
                weights.down.shape != _down(layers[name]).weight.shape
                or weights.up.shape != _up(layers[name]).weight.shape
            ):
                raise ModelError(f"{path} is made for another model: {name} differs", option="network_weights")
        self._fill({name: (w.down, w.up.float() * (w.scale / self._of(name).scale)) for name, w in file.items()})

    def _prepare(self, name: str, layer: Any) -> list[nn.Parameter]:
        """Start values that depend on seed and name only, float32, dropouts; returns what trains."""
        down, up = _down(layer).float(), _up(layer).float()
        start = torch.empty(down.weight.shape)
        torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator(self.seed, f"init/{name}"))
        with torch.no_grad():
            down.weight.copy_(start)
            up.weight.zero_()
        add_dropouts(down, self.options)
        return [down.weight, up.weight]

    def _of(self, name: str) -> Size:
        """The size of a layer that is trained."""
        size = self.size(name)
        assert size is not None
        return size

    def _all(self) -> dict[str, Any]:
        return {name: layer for layers in self._layers.values() for name, layer in layers.items()}

    def _fill(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        layers = self._all()
        with torch.no_grad():
            for name, (down, up) in weights.items():
                _down(layers[name]).weight.copy_(down)
                _up(layers[name]).weight.copy_(up)


def _down(layer: Any) -> Any:
    return layer.lora_A[PEFT_NAME]


def _up(layer: Any) -> Any:
    return layer.lora_B[PEFT_NAME]


def _product_norm(up_OR: Tensor, down_RI: Tensor) -> float:
    """The Frobenius norm of up @ down, without making that: |UD|^2 = tr((U'U)(DD'))."""
    up_OR, down_RI = up_OR.double(), down_RI.double()
    return math.sqrt(max(0.0, float(((up_OR.T @ up_OR) * (down_RI @ down_RI.T)).sum())))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _words(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" if tensor.ndim else f"{float(tensor):g}"
