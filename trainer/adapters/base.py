"""What an adapter is: small trainable modules beside frozen layers, saved under kohya's names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer import plugins
from trainer.errors import Problem
from trainer.formats.kohya import AdapterTarget
from trainer.lazy import torch
from trainer.schema import Options, OptionSpec, nearest, opt, specs_of, validate

if TYPE_CHECKING:
    from torch import Tensor, nn


class AdapterOptions(Options):
    """Which adapter, how large, and what of the model it changes."""

    title: ClassVar[str] = "Network"

    network_module: str = opt("networks.lora", label="Network")
    """Which kind of adapter is trained. Known: networks.lora."""

    network_dim: int = opt(4, ge=1, le=4096, level="basic", label="Rank")
    """Size of the LoRA: how many directions each layer can change in. Larger learns more and makes a larger file."""

    network_alpha: float | None = opt(1.0, ge=0, level="basic", label="Alpha")
    """Strength: changes are multiplied by alpha / rank. Unset means the rank, so a strength of 1."""

    network_train_unet_only: bool = opt(False, label="Train the U-Net only")
    """Leave the text encoder as it is."""

    network_train_text_encoder_only: bool = opt(False, label="Train the text encoder only")
    """Leave the U-Net as it is."""

    network_dropout: float | None = opt(None, ge=0, lt=1, label="Dropout")
    """Part of the LoRA's inner values set to 0 in each step, against learning by heart."""

    rank_dropout: float | None = opt(None, ge=0, lt=1, label="Rank dropout")
    """Part of the ranks switched off in each step."""

    module_dropout: float | None = opt(None, ge=0, lt=1, label="Module dropout")
    """Part of the adapted layers switched off in each step."""

    scale_weight_norms: float | None = opt(None, gt=0, label="Largest weight norm")
    """After each step no layer's change is larger than this (the norm of its matrix, alpha counted in; 1 is usual):
    keeps a LoRA from burning in, and lets it mix with others. Unset: no limit."""

    loraplus_lr_ratio: float | None = opt(None, gt=0, label="LoRA+ ratio")
    """LoRA+: the up matrices learn this many times as fast as the down matrices (16 is the paper's advice for language
    models, 4 to 16 is tried here). Unset: equally fast. Hayou et al., 2024, https://arxiv.org/abs/2402.12354"""

    loraplus_unet_lr_ratio: float | None = opt(None, gt=0, label="LoRA+ ratio of the U-Net")
    """LoRA+ for the U-Net alone. Unset: loraplus_lr_ratio."""

    loraplus_text_encoder_lr_ratio: float | None = opt(None, gt=0, label="LoRA+ ratio of the text encoder")
    """LoRA+ for the text encoder alone. Unset: loraplus_lr_ratio."""

    network_weights: Path | None = opt(None, widget="path", label="Start from LoRA")
    """A LoRA file to go on from; its rank must be the one set here, unless dim_from_weights is set."""

    dim_from_weights: bool = opt(False, label="Rank and alpha from the file")
    """Take each layer's rank and alpha, and which layers are trained at all, from network_weights."""

    network_args: list[str] = opt([], label="Network arguments")
    """Options of the network as key=value, the way older command lines give them: rank_dropout, module_dropout
    and the three loraplus ratios."""

    def problems(self) -> Iterator[Problem]:
        known = known_adapters()
        if self.network_module not in known:
            near = nearest(self.network_module, tuple(known))
            remedy = f"Known: {', '.join(known)}" + (f". Did you mean {near}?" if near else "")
            yield Problem("network_module", "is not a network this version knows", self.network_module, remedy=remedy)
        if self.network_alpha == 0:
            yield Problem(
                "network_alpha",
                "0 would switch the network off",
                "0",
                remedy="Leave it unset for a strength of 1 (older trainers read 0 as the rank)",
            )
        if self.network_train_unet_only and self.network_train_text_encoder_only:
            yield Problem(
                "network_train_text_encoder_only",
                "together with network_train_unet_only nothing would train",
                "true",
                remedy="Turn one of the two off",
            )
        if self.dim_from_weights and self.network_weights is None:
            remedy = "Name the LoRA file in network_weights, or turn this off"
            yield Problem("dim_from_weights", "there is no file to take ranks from", "true", remedy=remedy)
        yield from self._read_args()[1]

    def plus_ratio(self, component: str) -> float | None:
        """How many times as fast the up matrices of a component learn (LoRA+), None for equally fast."""
        own = self.loraplus_unet_lr_ratio if component == "denoiser" else self.loraplus_text_encoder_lr_ratio
        return self.loraplus_lr_ratio if own is None else own

    def merged(self) -> AdapterOptions:
        """These options with `network_args` put in their place."""
        return self.model_copy(update={**self._read_args()[0], "network_args": []})

    def _read_args(self) -> tuple[dict[str, Any], list[Problem]]:
        values: dict[str, Any] = {}
        problems: list[Problem] = []
        specs = {spec.name: spec for spec in specs_of(AdapterOptions) if spec.name in ARGUMENT_NAMES}
        for text in self.network_args:
            key, equals, value = text.partition("=")
            if not equals or key.strip() not in specs:
                near = nearest(key.strip(), tuple(specs))
                remedy = f"Did you mean {near}?" if near else f"Known: {', '.join(specs)}"
                problems.append(Problem("network_args", "is no argument of this network", text, remedy=remedy))
                continue
            problems += _read_arg(self, specs[key.strip()], value, text, values)
        return values, problems


ARGUMENT_NAMES = (
    *("rank_dropout", "module_dropout"),
    *("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"),
)
"""Options that kohya takes through network_args."""


def _read_arg(
    options: AdapterOptions, spec: OptionSpec, text: str, whole: str, values: dict[str, Any]
) -> list[Problem]:
    """Put one argument into `values`, or say what is wrong with it."""
    value = spec.parse(text)
    given = vars(options)[spec.name]
    if spec.name in values or (given is not None and given != value):
        return [Problem("network_args", f"{spec.name} is given twice with different values", whole)]
    _, problems = validate(AdapterOptions, {spec.name: value})
    values[spec.name] = value
    return [Problem("network_args", f"{spec.name} {p.message}", whole) for p in problems]


class Adapter(ABC):
    """One algorithm, over any number of components. Subclasses live one per file."""

    kind: ClassVar[str]
    """kohya's module name: "networks.lora"."""
    Options: ClassVar[type[AdapterOptions]] = AdapterOptions
    """This kind's options: those all kinds share, and its own."""

    def __init__(self, options: AdapterOptions, *, seed: int) -> None:
        self.options = options.merged()
        self.seed = seed

    @abstractmethod
    def inject(self, target: AdapterTarget) -> None:
        """Wrap the target's layers in place and freeze the rest of its module; nothing changes before a step."""

    @abstractmethod
    def parameters(self, component: str) -> list[nn.Parameter]:
        """The trainable parameters in one component, in float32."""

    def faster(self, component: str) -> list[nn.Parameter]:
        """Those of `parameters` that LoRA+ gives a rate of their own."""
        return []

    def limit_norms(self, largest: float) -> list[tuple[float, bool]]:
        """Scale down, in place, every layer's change whose norm is above `largest`; each layer's norm afterwards, and
        whether it was scaled."""
        return []

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything trained, under kohya's names, in float32 on the CPU, in memory of its own."""

    @abstractmethod
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back exactly what `state_dict` gave; ModelError when names or shapes differ."""

    @abstractmethod
    def start_from(self, path: Path) -> None:
        """Begin with a LoRA file's weights (`network_weights`), whatever its alpha, at its own strength."""


def known_adapters() -> dict[str, type[Adapter]]:
    """kohya's module name -> class, for every file of this package."""
    known: dict[str, type[Adapter]] = plugins.discover("trainer.adapters", Adapter)  # type: ignore[type-abstract]
    return known


def build_adapter(options: AdapterOptions, *, seed: int) -> Adapter:
    """The adapter that `network_module` names."""
    return known_adapters()[options.network_module](options, seed=seed)


def add_dropouts(down: nn.Module, options: AdapterOptions) -> None:
    """Drop after `down` while training, as kohya does: whole module, single values, then ranks (scaled up).

    A dropped module multiplies by 0 instead of being skipped, so that every parameter keeps a gradient (DDP needs it).
    The draws come from torch's global state, which the loop seeds before each forward.
    """
    value, rank, module = options.network_dropout or 0.0, options.rank_dropout or 0.0, options.module_dropout or 0.0
    if not (value or rank or module):
        return

    def drop(layer: nn.Module, _: Any, inner: Tensor) -> Tensor:
        if not layer.training:
            return inner
        if module:
            inner = inner * float(torch.rand(()).item() >= module)
        if value:
            inner = torch.nn.functional.dropout(inner, p=value)
        if rank:
            inner = inner * _rank_mask(inner, rank, channels_first=isinstance(layer, torch.nn.Conv2d))
        return inner

    down.register_forward_hook(drop)


def _rank_mask(inner: Tensor, probability: float, *, channels_first: bool) -> Tensor:
    """1 / (1 - p) for kept ranks and 0 for dropped ones, drawn for each sample."""
    shape = [inner.shape[0], *[1] * (inner.ndim - 1)]
    axis = 1 if channels_first else inner.ndim - 1
    shape[axis] = inner.shape[axis]
    kept = torch.rand(shape, device=inner.device) >= probability
    return kept.to(inner.dtype) / (1 - probability)
