"""Optimizers: which one, its rates for each component, and its arguments checked against its constructor."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.errors import ConfigError, Problem
from trainer.lazy import torch
from trainer.optim import arguments
from trainer.schema import Options, nearest, opt

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Known:
    """An optimizer under the name people write. adds: arguments it gets unless they are written."""

    module: str
    name: str
    adds: Mapping[str, Any] = field(default_factory=dict)

    def find(self) -> type[Optimizer]:
        """The class; `ImportError` where its package is not installed."""
        found: type[Optimizer] = getattr(importlib.import_module(self.module), self.name)
        return found


_NESTEROV = {"nesterov": True, "momentum": 0.9}

KNOWN: Mapping[str, Known] = {
    "AdamW": Known("torch.optim", "AdamW"),
    "AdamW8bit": Known("bitsandbytes.optim", "AdamW8bit"),
    "PagedAdamW": Known("bitsandbytes.optim", "PagedAdamW"),
    "PagedAdamW8bit": Known("bitsandbytes.optim", "PagedAdamW8bit"),
    "PagedAdamW32bit": Known("bitsandbytes.optim", "PagedAdamW32bit"),
    "Lion": Known("pytorch_optimizer", "Lion"),
    "Lion8bit": Known("bitsandbytes.optim", "Lion8bit"),
    "PagedLion8bit": Known("bitsandbytes.optim", "PagedLion8bit"),
    "SGDNesterov": Known("torch.optim", "SGD", _NESTEROV),
    "SGDNesterov8bit": Known("bitsandbytes.optim", "SGD8bit", _NESTEROV),
    "CAME": Known("pytorch_optimizer", "CAME"),
}
"""The names kohya's tools know, in any capitals. Any other class of torch.optim goes by its own name."""

OLDER_FLAGS: Mapping[str, str] = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
"""Flags that name an optimizer, from before optimizer_type."""

MODULES = ("torch.optim", "bitsandbytes.optim", "pytorch_optimizer")
"""Modules whose classes may be named in full, as in bitsandbytes.optim.LAMB8bit; others could be anybody's code."""

_NEED_MORE = ("LBFGS", "SparseAdam")
"""Classes of torch that a plain step does not serve: one calls the model again, one wants sparse gradients."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a rate. name: what the log calls it ("unet", "textencoder")."""

    name: str
    component: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float


class OptimizerOptions(Options):
    """Which optimizer, and how fast it learns; a method adds rates for the parts it trains."""

    title: ClassVar[str] = "Optimizer"

    optimizer_type: str = opt("AdamW", label="Optimizer")
    """Optimizer by name; capitals do not matter: AdamW, AdamW8bit (less memory), PagedAdamW8bit (still less), Lion
    (at a third of AdamW's rate), Lion8bit, PagedLion8bit, SGDNesterov, SGDNesterov8bit, CAME; any other class of
    torch.optim; or one of bitsandbytes.optim or pytorch_optimizer with its module (pytorch_optimizer.AdEMAMix)."""

    use_8bit_adam: bool = opt(False, label="8-bit Adam")
    """The older way to say optimizer_type AdamW8bit."""

    use_lion_optimizer: bool = opt(False, label="Lion")
    """The older way to say optimizer_type Lion."""

    learning_rate: float = opt(2e-6, ge=0, level="basic", label="Learning rate")
    """Rate of every component that has none of its own. A LoRA usually wants about 1e-4, a whole model 1e-6 to 5e-6."""

    optimizer_args: list[str] = opt([], label="Optimizer arguments")
    """More arguments of the optimizer as key=value, such as weight_decay=0.01 or betas=0.9,0.99."""

    max_grad_norm: float = opt(1.0, ge=0, label="Largest gradient norm")
    """Gradients with a larger norm are scaled down to it; 0 switches this off."""

    @property
    def kind(self) -> str:
        """The optimizer's name, whichever way it was said."""
        return next((name for flag, name in OLDER_FLAGS.items() if vars(self)[flag]), self.optimizer_type)

    def problems(self) -> Iterator[Problem]:
        said = {name.lower() for flag, name in OLDER_FLAGS.items() if vars(self)[flag]}
        default = type(self).model_fields["optimizer_type"].default  # a written-out default asks for nothing
        if said and self.optimizer_type.lower() != default.lower():
            said.add(self.optimizer_type.lower())
        if len(said) > 1:
            remedy = f"Leave {' and '.join(OLDER_FLAGS)} unset and name one in optimizer_type"
            yield Problem("optimizer_type", "several optimizers are asked for", ", ".join(sorted(said)), remedy=remedy)
        yield from arguments.parse("optimizer_args", self.optimizer_args)[1]

    def rate(self, component: str) -> float:
        """The learning rate of "denoiser" or of a text encoder."""
        return self.learning_rate

    def arguments(self) -> dict[str, Any]:
        """`optimizer_args` as keyword arguments."""
        return arguments.parse("optimizer_args", self.optimizer_args)[0]


def find(options: OptimizerOptions) -> Known:
    """The optimizer of a name in any capitals; `ConfigError` when there is none or its package is missing."""
    typed = options.kind
    module, _, name = typed.rpartition(".")
    known = next((known for key, known in KNOWN.items() if key.lower() == typed.lower()), None)
    if known is None and module in MODULES:
        known = Known(module, name)
    if known is None and not module:
        known = next((Known("torch.optim", each) for each in _of_torch() if each.lower() == typed.lower()), None)
    if known is None:
        names = (*KNOWN, *_of_torch())
        near = nearest(typed, names)
        remedy = f"Known: {', '.join(names)}, and classes of {', '.join(MODULES)} with their module"
        remedy += f". Did you mean {near}?" if near else ""
        raise ConfigError([Problem("optimizer_type", "is not an optimizer this version knows", typed, remedy=remedy)])
    try:
        known.find()
    except ImportError as error:
        remedy = f"Install it with: pip install {known.module.partition('.')[0]}"
        said = f"needs a package that is not installed ({error})"
        raise ConfigError([Problem("optimizer_type", said, typed, remedy=remedy)]) from error
    except AttributeError as error:
        raise ConfigError([Problem("optimizer_type", f"{module} has no {name}", typed)]) from error
    if problem := _unfit(known, options):
        raise ConfigError([Problem("optimizer_type", problem, typed, remedy="Choose another, such as AdamW")])
    return known


def _unfit(known: Known, options: OptimizerOptions) -> str:
    """Why a class cannot be used here, "" when it can."""
    found: Any = known.find()
    if not isinstance(found, type) or not issubclass(found, torch.optim.Optimizer):
        return "is not an optimizer"
    if known.name in _NEED_MORE:
        return "wants more of a step than its gradients"
    if hasattr(found, "eval"):
        return "keeps other weights for training than for use, which is not told apart here yet"
    rates = {rate for name in ("denoiser", "text_encoder") if (rate := options.rate(name))}
    if _finds_one_rate(found) and len(rates) > 1:
        return "finds one rate for everything, so the rates of U-Net and text encoder must be equal"
    return ""


def _finds_one_rate(found: Any) -> bool:
    """Whether an optimizer seeks the learning rate itself (D-Adaptation, Prodigy), one for all groups."""
    return "d0" in inspect.signature(found).parameters


def _of_torch() -> list[str]:
    """The classes of torch.optim that an ordinary step serves."""
    module = torch.optim
    found = {name for name, value in vars(module).items() if isinstance(value, type)}
    return sorted(
        name for name in found - {*_NEED_MORE, "Optimizer"} if issubclass(getattr(module, name), module.Optimizer)
    )


def argument_problems(options: OptimizerOptions) -> list[Problem]:
    """A name nobody knows, or arguments its class does not have (this imports torch: it is not part of `problems`)."""
    try:
        known = find(options)
    except ConfigError as error:
        return list(error.problems)
    return arguments.unknown("optimizer_args", options.arguments(), known.find(), ours=("params", "lr", "kwargs"))


def described(options: OptimizerOptions) -> str:
    """The class and all arguments it is given, as sd-scripts writes it into a file's metadata."""
    known = find(options)
    values = {**known.adds, **options.arguments()}
    written = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{known.find().__module__}.{known.name}({written})"


def build(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> Optimizer:
    """The optimizer over all groups, each with its own rate."""
    assert groups, "nothing to train"
    if problems := argument_problems(options):
        raise ConfigError(problems)
    known = find(options)
    if _finds_one_rate(known.find()) and len({g.learning_rate for g in groups}) > 1:
        said = "finds one rate for everything, so LoRA+ cannot be used with it"
        raise ConfigError([Problem("optimizer_type", said, options.kind)])
    params = [{"params": list(g.parameters), "lr": g.learning_rate, "name": g.name} for g in groups]
    build_it: Any = known.find()
    try:
        built: Optimizer = build_it(params, lr=groups[0].learning_rate, **{**known.adds, **options.arguments()})
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem("optimizer_args", str(error), " ".join(options.optimizer_args))]) from error
    return built
