"""Train an adapter (LoRA, ...) on the denoiser and the text encoders; the base model stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.base import AdapterOptions, build_adapter
from trainer.errors import ConfigError, Problem
from trainer.formats.kohya import save_lora
from trainer.methods.base import DENOISER, Method, log_name
from trainer.optim.optimizers import OptimizerOptions, ParamGroup
from trainer.schema import opt

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.families.base import Family


class AdapterOptimizerOptions(OptimizerOptions):
    """How fast an adapter's parts learn."""

    rates: ClassVar[tuple[str, ...]] = ("learning_rate", "unet_lr", "text_encoder_lr")

    unet_lr: float | None = opt(None, ge=0, label="U-Net learning rate")
    """Rate of the denoiser; unset means the learning rate, 0 means it is not trained."""

    text_encoder_lr: float | None = opt(None, ge=0, label="Text encoder learning rate")
    """Rate of the text encoder; unset means the learning rate, 0 means it is not trained."""

    def rate(self, component: str) -> float:
        """The part's own rate, where it has one."""
        own = self.unet_lr if component == DENOISER else self.text_encoder_lr
        return self.learning_rate if own is None else own


def trained_components(
    adapter: AdapterOptions, rates: AdapterOptimizerOptions, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Which of a family's components train: not switched off, and with a rate above 0."""
    wanted = [
        name
        for name in names
        if not (adapter.network_train_unet_only if name != DENOISER else adapter.network_train_text_encoder_only)
    ]
    return tuple(name for name in wanted if rates.rate(name) > 0)


class AdapterMethod(Method):
    """Adapter modules train, everything else is frozen."""

    kind = "adapter"
    architecture_suffix = "/lora"

    def __init__(self, family: Family, options: AdapterOptions, rates: AdapterOptimizerOptions, *, seed: int) -> None:
        self._modules = family.components()
        self._components = trained_components(options, rates, tuple(self._modules))
        if not self._components:
            raise ConfigError(
                [Problem("learning_rate", "nothing would train: every rate is 0 or its component is switched off")]
            )
        self._rates = rates
        self._adapter = build_adapter(options, seed=seed)
        for module in self._modules.values():
            module.requires_grad_(False)
        for target in family.adapter_targets():
            if target.component in self._components:
                self._adapter.inject(target)
        if options.network_weights is not None:
            self._adapter.start_from(options.network_weights)
        self.train()

    def trainable_components(self) -> tuple[str, ...]:
        return self._components

    def groups(self) -> list[ParamGroup]:
        return [group for name in self._components for group in self._groups_of(name)]

    def _groups_of(self, component: str) -> Iterator[ParamGroup]:
        """One group, or with LoRA+ two: "unet" and, with the higher rate, "unet plus"."""
        parameters, rate = self._adapter.parameters(component), self._rates.rate(component)
        name = log_name(component)
        ratio = self._adapter.options.plus_ratio(component)
        faster = [] if ratio is None else self._adapter.faster(component)
        ids = {id(parameter) for parameter in faster}
        yield ParamGroup(name, component, tuple(p for p in parameters if id(p) not in ids), rate)
        if ratio is not None and faster:
            yield ParamGroup(f"{name} plus", component, tuple(faster), rate * ratio)

    def after_update(self) -> Mapping[str, float]:
        largest = self._adapter.options.scale_weight_norms
        norms = [] if largest is None else self._adapter.limit_norms(largest)
        if not norms:
            return {}
        values = [norm for norm, _ in norms]
        return {
            "max_norm/keys_scaled": sum(was_scaled for _, was_scaled in norms),
            "max_norm/average_key_norm": sum(values) / len(values),
            "max_norm/max_key_norm": max(values),
        }

    def modules(self) -> dict[str, nn.Module]:
        return {name: self._modules[name] for name in self._components}

    def train(self) -> None:
        for name, module in self._modules.items():
            module.train(name in self._components)

    def state_dict(self) -> dict[str, Tensor]:
        return self._adapter.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self._adapter.load_state_dict(tensors)

    def export(self, path: Path, *, precision: str, metadata: Mapping[str, str]) -> Path:
        return save_lora(self.state_dict(), path, precision=precision, metadata=metadata)
