"""Optimizers: which one, its rates for each component, and its arguments checked against its constructor."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.errors import ConfigError, Problem
from trainer.lazy import torch
from trainer.optim import arguments, shares
from trainer.schema import Options, nearest, opt

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


Trait = Literal["", "finds rate", "averages", "AdaFactor"]
"""What sets an optimizer apart: it finds the rate itself and ours are factors on it (D-Adaptation, Prodigy); it trains
at other weights than those to be used (schedule-free); or it may find steps and schedule itself (AdaFactor)."""


@dataclass(frozen=True)
class Known:
    """An optimizer under the name people write.

    adds: arguments it gets unless they are written. renames: arguments as kohya's tools write them -> as
    this class does.
    """

    module: str
    name: str
    adds: Mapping[str, Any] = field(default_factory=dict)
    trait: Trait = ""
    renames: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """All it is given: what is written, under its own names, and what is added."""
        return {**self.adds, **{self.renames.get(key, key): value for key, value in written.items()}}

    def find(self) -> type[Optimizer]:
        """The class; `ImportError` where its package is not installed."""
        found: type[Optimizer] = getattr(importlib.import_module(self.module), self.name)
        return found


_NESTEROV = {"nesterov": True, "momentum": 0.9}
_DECOUPLE = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction", "no_prox": "weight_decouple"}


def _adapts(name: str, adds: Mapping[str, Any] | None = None) -> Known:
    return Known("pytorch_optimizer", name, adds or {}, "finds rate", _DECOUPLE)


def _averages(name: str) -> Known:
    return Known("pytorch_optimizer", name, trait="averages")


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
    "AdaFactor": Known("transformers.optimization", "Adafactor", {"relative_step": True}, "AdaFactor"),
    # what is added are the dadaptation package's defaults, where they are others; with them these give its numbers,
    # which pytorch_optimizer's DAdaptAdan does not: it squares a square
    "DAdaptation": _adapts("DAdaptAdam"),
    "DAdaptAdam": _adapts("DAdaptAdam"),
    "DAdaptAdaGrad": _adapts("DAdaptAdaGrad"),
    "DAdaptLion": _adapts("DAdaptLion", {"betas": (0.9, 0.99), "weight_decouple": True}),
    "DAdaptSGD": _adapts("DAdaptSGD", {"momentum": 0.0}),
    "DAdaptAdamPreprint": Known("dadaptation.experimental", "DAdaptAdamPreprint", trait="finds rate"),
    "DAdaptAdan": Known("dadaptation", "DAdaptAdan", trait="finds rate"),
    "DAdaptAdanIP": Known("dadaptation.experimental", "DAdaptAdanIP", trait="finds rate"),
    "Prodigy": _adapts("Prodigy"),
    "AdamWScheduleFree": _averages("ScheduleFreeAdamW"),
    "RAdamScheduleFree": _averages("ScheduleFreeRAdam"),
    "SGDScheduleFree": _averages("ScheduleFreeSGD"),
}
"""The names kohya's tools know, in any capitals. Any other class of torch.optim goes by its own name."""

OLDER_FLAGS: Mapping[str, str] = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
"""Flags that name an optimizer, from before optimizer_type."""

MODULES = ("torch.optim", "bitsandbytes.optim", "pytorch_optimizer", "transformers.optimization")
"""Modules whose classes may be named in full, as in bitsandbytes.optim.lamb.LAMB; others could be anybody's code."""

USUAL_FACTOR = 0.1
"""Where an optimizer finds the rate, a factor below this is most likely a rate meant for another optimizer."""

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
    rates: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """The options that set rates."""

    optimizer_type: str = opt("AdamW", label="Optimizer")
    """Optimizer by name; capitals do not matter: AdamW, AdamW8bit (less memory), PagedAdamW8bit (still less), Lion
    (at a third of AdamW's rate), Lion8bit, PagedLion8bit, SGDNesterov, SGDNesterov8bit, CAME; AdaFactor, which finds
    the size of its steps itself unless relative_step=False is among its arguments; DAdaptation (DAdaptAdam),
    DAdaptAdaGrad, DAdaptLion, DAdaptSGD, Prodigy and, from the dadaptation package, DAdaptAdan, DAdaptAdanIP and
    DAdaptAdamPreprint, which find the rate themselves, so that learning rates
    are factors on it and 1 is usual; AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree, which need no schedule; any
    other class of torch.optim; or one of bitsandbytes.optim, pytorch_optimizer or transformers.optimization with its
    module (pytorch_optimizer.AdEMAMix)."""

    use_8bit_adam: bool = opt(False, label="8-bit Adam")
    """The older way to say optimizer_type AdamW8bit."""

    use_lion_optimizer: bool = opt(False, label="Lion")
    """The older way to say optimizer_type Lion."""

    learning_rate: float = opt(2e-6, ge=0, level="basic", label="Learning rate")
    """Rate of every component that has none of its own. A LoRA usually wants about 1e-4, a whole model 1e-6 to 5e-6,
    a new word (textual inversion) 5e-4 to 5e-3; with an optimizer that finds the rate itself this is a factor on it,
    usually 1."""

    optimizer_args: list[str] = opt([], label="Optimizer arguments")
    """More arguments of the optimizer as key=value, such as weight_decay=0.01 or betas=0.9,0.99."""

    max_grad_norm: float = opt(1.0, ge=0, label="Largest gradient norm")
    """Gradients with a larger norm are scaled down to it; 0 switches this off."""

    @property
    def kind(self) -> str:
        """The optimizer's name, whichever way it was said."""
        return next((name for flag, name in OLDER_FLAGS.items() if vars(self)[flag]), self.optimizer_type)

    @property
    def trait(self) -> Trait:
        """What sets the optimizer apart from the usual ones."""
        known = known_of(self.kind)
        return known.trait if known else ""

    @property
    def finds_steps(self) -> bool:
        """Whether this is AdaFactor that finds the size of its steps itself; learning rates are then not used."""
        known = known_of(self.kind)
        if known is None or known.trait != "AdaFactor":
            return False
        return bool(known.arguments(self.arguments()).get("relative_step", True))

    def problems(self) -> Iterator[Problem]:
        said = {name.lower() for flag, name in OLDER_FLAGS.items() if vars(self)[flag]}
        default = type(self).model_fields["optimizer_type"].default  # a written-out default asks for nothing
        if said and self.optimizer_type.lower() != default.lower():
            said.add(self.optimizer_type.lower())
        if len(said) > 1:
            remedy = f"Leave {' and '.join(OLDER_FLAGS)} unset and name one in optimizer_type"
            yield Problem("optimizer_type", "several optimizers are asked for", ", ".join(sorted(said)), remedy=remedy)
        yield from arguments.parse("optimizer_args", self.optimizer_args)[1]
        yield from self._low_rates() if self.trait == "finds rate" else ()
        yield from self._adafactor() if self.trait == "AdaFactor" else ()

    def _low_rates(self) -> Iterator[Problem]:
        for name in self.rates:
            rate = getattr(self, name)
            if rate is not None and 0 < rate < USUAL_FACTOR:
                said = f"is a factor on the rate that {self.kind} finds itself, and this one is very small"
                yield Problem(name, said, str(rate), remedy="1 is usual", severity="warning")

    def _adafactor(self) -> Iterator[Problem]:
        values = self.arguments()
        if values.get("warmup_init") and not self.finds_steps:
            remedy = "Leave relative_step out, or set warmup_init=False"
            yield Problem("optimizer_args", "warmup_init needs relative_step=True", "warmup_init=True", remedy=remedy)
        if not self.finds_steps and self.max_grad_norm:
            said = "AdaFactor limits its steps itself, and works better on gradients that are not clipped"
            yield Problem("max_grad_norm", said, str(self.max_grad_norm), remedy="Set it to 0", severity="warning")
        for name in self.rates if self.finds_steps else ():
            rate = getattr(self, name)
            if rate and rate != type(self).model_fields[name].default:
                said = "is not used: AdaFactor finds the size of its steps itself (0 would leave this part untrained)"
                remedy = "To set rates, write optimizer_args relative_step=False"
                yield Problem(name, said, str(rate), remedy=remedy, severity="warning")

    def rate(self, component: str) -> float:
        """The learning rate of "denoiser" or of a text encoder."""
        return self.learning_rate

    def arguments(self) -> dict[str, Any]:
        """`optimizer_args` as keyword arguments."""
        return arguments.parse("optimizer_args", self.optimizer_args)[0]


def known_of(kind: str) -> Known | None:
    """What is known of an optimizer by its name, or by its class with its module; imports nothing."""
    for name, known in KNOWN.items():
        if name.lower() == kind.lower():
            return known
    module, _, name = kind.rpartition(".")
    if not _is_ours(module):
        return None
    root = module.partition(".")[0]
    same = (k for k in KNOWN.values() if k.name == name and (k.module.startswith(root) or k.trait == "finds rate"))
    found = next(same, Known(module, name))
    return Known(module, name, trait=found.trait, renames=found.renames)


def _is_ours(module: str) -> bool:
    """Whether a module may be imported because a configuration names it."""
    return any(module == name or module.startswith(f"{name}.") for name in MODULES)


def find(options: OptimizerOptions) -> Known:
    """The optimizer of a name in any capitals; `ConfigError` when there is none or its package is missing."""
    typed = options.kind
    known = known_of(typed)
    if known is None and "." not in typed:
        known = next((Known("torch.optim", each) for each in _of_torch() if each.lower() == typed.lower()), None)
    if known is None:
        raise ConfigError([_unknown(typed)])
    try:
        known.find()
    except ImportError as error:
        remedy = f"Install it with: pip install {known.module.partition('.')[0]}"
        said = f"needs a package that is not installed ({error})"
        raise ConfigError([Problem("optimizer_type", said, typed, remedy=remedy)]) from error
    except AttributeError as error:
        raise ConfigError([Problem("optimizer_type", f"{known.module} has no {known.name}", typed)]) from error
    if problem := _unfit(known):
        raise ConfigError([Problem("optimizer_type", problem, typed, remedy="Choose another, such as AdamW")])
    return known


def _unknown(typed: str) -> Problem:
    if "." in typed:
        said = "is in a module that is not run because a configuration names it: it could be anybody's code"
        return Problem("optimizer_type", said, typed, remedy=f"Name a class of {', '.join(MODULES)}")
    names = (*KNOWN, *_of_torch())
    near = nearest(typed, names)
    remedy = f"Known: {', '.join(names)}, and classes of {', '.join(MODULES)} with their module"
    remedy += f". Did you mean {near}?" if near else ""
    return Problem("optimizer_type", "is not an optimizer this version knows", typed, remedy=remedy)


def _unfit(known: Known) -> str:
    """Why a class cannot be used here, "" when it can."""
    found: Any = known.find()
    if not isinstance(found, type) or not issubclass(found, torch.optim.Optimizer):
        return "is not an optimizer"
    if known.name in _NEED_MORE:
        return "wants more of a step than its gradients"
    if hasattr(found, "eval") and known.trait != "averages":
        return "keeps other weights for training than for use, in a way that is not known here"
    return ""


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
    values = {known.renames.get(key, key): value for key, value in options.arguments().items()}
    return arguments.unknown("optimizer_args", values, known.find(), ours=("params", "lr", "kwargs"))


def described(options: OptimizerOptions) -> str:
    """The class and all arguments it is given, as sd-scripts writes it into a file's metadata."""
    known = find(options)
    written = ",".join(f"{key}={value}" for key, value in known.arguments(options.arguments()).items())
    return f"{known.find().__module__}.{known.name}({written})"


def build(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> Optimizer:
    """The optimizer over all groups, each with its own rate, ready to train."""
    assert groups, "nothing to train"
    if problems := argument_problems(options):
        raise ConfigError(problems)
    known = find(options)
    # AdaFactor's own steps know no rate; it wants to be told so
    rates = [None if options.finds_steps else group.learning_rate for group in groups]
    params = [{"params": list(g.parameters), "lr": rate, "name": g.name} for g, rate in zip(groups, rates, strict=True)]
    build_it: Any = known.find()
    try:
        built: Optimizer = build_it(params, lr=rates[0], **known.arguments(options.arguments()))
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem("optimizer_args", str(error), " ".join(options.optimizer_args))]) from error
    if known.trait == "finds rate":
        shares.share_one_rate(built)
    return built
