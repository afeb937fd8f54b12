"""Optimizers: which one, its rates for each component, and its arguments checked against its constructor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.errors import ConfigError, Problem
from trainer.lazy import torch
from trainer.optim import arguments
from trainer.schema import Options, nearest, opt

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

KNOWN: Mapping[str, Callable[[], type[Optimizer]]] = {"AdamW": lambda: torch.optim.AdamW}
"""Name as written in a config -> the class, fetched when needed."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a rate. name: what the log calls it ("unet", "textencoder")."""

    name: str
    component: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float


class OptimizerOptions(Options):
    """Which optimizer, and how fast each part learns."""

    title: ClassVar[str] = "Optimizer"

    optimizer_type: str = opt("AdamW", label="Optimizer")
    """Optimizer by name; capitals do not matter. Known: AdamW."""

    learning_rate: float = opt(2e-6, ge=0, level="basic", label="Learning rate")
    """Rate of every component that has none of its own. A LoRA usually wants about 1e-4."""

    unet_lr: float | None = opt(None, ge=0, label="U-Net learning rate")
    """Rate of the denoiser; unset means the learning rate, 0 means it is not trained."""

    text_encoder_lr: float | None = opt(None, ge=0, label="Text encoder learning rate")
    """Rate of the text encoder; unset means the learning rate, 0 means it is not trained."""

    optimizer_args: list[str] = opt([], label="Optimizer arguments")
    """More arguments of the optimizer as key=value, such as weight_decay=0.01 or betas=0.9,0.99."""

    max_grad_norm: float = opt(1.0, ge=0, label="Largest gradient norm")
    """Gradients with a larger norm are scaled down to it; 0 switches this off."""

    def problems(self) -> Iterator[Problem]:
        if known_name(self.optimizer_type) is None:
            near = nearest(self.optimizer_type, tuple(KNOWN))
            remedy = f"Known: {', '.join(KNOWN)}" + (f". Did you mean {near}?" if near else "")
            yield Problem(
                "optimizer_type", "is not an optimizer this version knows", self.optimizer_type, remedy=remedy
            )
        yield from arguments.parse("optimizer_args", self.optimizer_args)[1]

    def rate(self, component: str) -> float:
        """The learning rate of "denoiser" or of a text encoder."""
        own = self.unet_lr if component == "denoiser" else self.text_encoder_lr
        return self.learning_rate if own is None else own

    def arguments(self) -> dict[str, Any]:
        """`optimizer_args` as keyword arguments."""
        return arguments.parse("optimizer_args", self.optimizer_args)[0]


def known_name(name: str) -> str | None:
    """The spelling of KNOWN for a name in any capitals, None when there is none."""
    return next((known for known in KNOWN if known.lower() == name.lower()), None)


def argument_problems(options: OptimizerOptions) -> list[Problem]:
    """Arguments the constructor does not have (this imports torch, so it is not part of `problems`)."""
    name = known_name(options.optimizer_type)
    assert name is not None, "problems() refuses unknown optimizers"
    return arguments.unknown("optimizer_args", options.arguments(), KNOWN[name](), ours=("params", "lr"))


def build(options: OptimizerOptions, groups: Sequence[ParamGroup]) -> Optimizer:
    """The optimizer over all groups, each with its own rate."""
    assert groups, "nothing to train"
    if problems := argument_problems(options):
        raise ConfigError(problems)
    optimizer_class = KNOWN[known_name(options.optimizer_type) or ""]()
    params = [{"params": list(g.parameters), "lr": g.learning_rate, "name": g.name} for g in groups]
    build_it: Any = optimizer_class
    try:
        built: Optimizer = build_it(params, **options.arguments())
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem("optimizer_args", str(error), " ".join(options.optimizer_args))]) from error
    return built
