"""Learning-rate schedules by their usual names, stepped once per optimizer step; the curves are the libraries' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from trainer.errors import ConfigError, Problem
from trainer.lazy import diffusers, torch, transformers
from trainer.optim import arguments
from trainer.optim.optimizers import OptimizerOptions
from trainer.schema import Options, nearest, opt

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Name = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "piecewise_constant",
    "adafactor",
]

USED_BY: Mapping[str, tuple[Name, ...]] = {
    "lr_scheduler_num_cycles": ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
    "lr_scheduler_power": ("polynomial",),
    "lr_scheduler_timescale": ("inverse_sqrt",),
    "lr_scheduler_min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay"),
    "lr_decay_steps": ("warmup_stable_decay",),
}

TAKE_ARGUMENTS = ("piecewise_constant", "adafactor")
"""Schedules with arguments in lr_scheduler_args."""

ONE_FOR_ALL = ("CyclicLR", "OneCycleLR")
"""Schedules of torch that give every group the same rate, as those with an eta_min do."""


class ScheduleOptions(Options):
    """How the learning rate changes over the run."""

    title: ClassVar[str] = "Learning-rate schedule"

    lr_scheduler: Name = opt("constant", label="Schedule")
    """How the rate changes over the run: constant; falling to 0 by a line, a cosine, several cosines (with restarts) or
    a power (polynomial); by a cosine to a part of itself (with_min_lr); with 1/sqrt of the step; constant with an end
    that falls (warmup_stable_decay); in steps you write (piecewise_constant); or as AdaFactor finds it (adafactor or
    adafactor_scheduler; the rate after a colon, as in adafactor:1e-3, is what the log shows before the first step)."""

    lr_warmup_steps: int | float = opt(0, ge=0, label="Warm-up", unit="steps")
    """Steps in which the rate rises from 0; a number below 1 is a part of the whole run (0.1 is a tenth)."""

    lr_decay_steps: int | float = opt(0, ge=0, label="Decay", unit="steps")
    """Steps at the end of the run in which warmup_stable_decay falls; a number below 1 is a part of the whole run."""

    lr_scheduler_num_cycles: int = opt(1, ge=1, label="Cycles")
    """How often cosine_with_restarts begins anew; for cosine_with_min_lr and warmup_stable_decay the half waves."""

    lr_scheduler_power: float = opt(1.0, gt=0, label="Power")
    """The power of polynomial; 1 is a line, 2 falls faster at first."""

    lr_scheduler_timescale: int | None = opt(None, ge=1, label="Timescale", unit="steps")
    """How slowly inverse_sqrt falls; unset means the warm-up's length."""

    lr_scheduler_min_lr_ratio: float | None = opt(None, ge=0, le=1, label="Least rate", step=0.05)
    """Where cosine_with_min_lr and warmup_stable_decay end, as a part of the learning rate (0.1 is a tenth)."""

    lr_scheduler_type: str | None = opt(None, label="Schedule of torch")
    """A schedule of torch by its class name in place of lr_scheduler, such as CosineAnnealingLR or
    CosineAnnealingWarmRestarts. https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"""

    lr_scheduler_args: list[str] = opt([], aliases=("scheduler_args",), label="Schedule arguments")
    """Arguments of lr_scheduler_type as key=value, such as T_0=20; for piecewise_constant the steps, such as
    step_rules="1:100,0.1:200,0.01" (factor:until step, ..., the last factor); for adafactor its initial_lr."""

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        """adafactor_scheduler, and adafactor:1e-3 with the rate put among the arguments."""
        name, colon, rate = str(values.get("lr_scheduler", "")).partition(":")
        if name not in ("adafactor", "adafactor_scheduler"):
            return values
        more = {"lr_scheduler_args": [*(values.get("lr_scheduler_args") or ()), f"initial_lr={rate}"]} if colon else {}
        return {**values, "lr_scheduler": "adafactor", **more}

    def problems(self) -> Iterator[Problem]:
        """Lengths that are no lengths, and options that the chosen schedule does not have."""
        for name in ("lr_warmup_steps", "lr_decay_steps"):
            steps = getattr(self, name)
            if steps >= 1 and steps != int(steps):
                yield Problem(name, "should be a whole number of steps, or a part of the run below 1", str(steps))
        if self.lr_scheduler in ("constant", "adafactor") and self.lr_warmup_steps and not self.lr_scheduler_type:
            other = "lr_scheduler constant_with_warmup" if self.lr_scheduler == "constant" else "warmup_init=True"
            remedy = f"Use {other}, or set lr_warmup_steps to 0"
            said = f"the {self.lr_scheduler} schedule has no warm-up"
            yield Problem("lr_warmup_steps", said, str(self.lr_warmup_steps), remedy=remedy)
        if self.lr_scheduler == "cosine_with_min_lr" and self.lr_scheduler_min_lr_ratio is None:
            remedy = "Set it to 0.1, say; or use cosine, which ends at 0"
            yield Problem("lr_scheduler_min_lr_ratio", "is needed by cosine_with_min_lr", remedy=remedy)
        values, problems = arguments.parse("lr_scheduler_args", self.lr_scheduler_args)
        yield from problems
        if self.lr_scheduler == "piecewise_constant" and "step_rules" not in values:
            remedy = 'Write step_rules="1:100,0.1:200,0.01" there'
            yield Problem("lr_scheduler_args", "piecewise_constant needs its steps", remedy=remedy)
        yield from self._unused()

    def _unused(self) -> Iterator[Problem]:
        chosen = self.lr_scheduler_type or self.lr_scheduler
        for name, users in USED_BY.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and chosen not in users:
                yield Problem(name, f"is not used by {chosen}", str(value), severity="warning")
        if self.lr_scheduler_args and not self.lr_scheduler_type and self.lr_scheduler not in TAKE_ARGUMENTS:
            said = f"are not used by {chosen}; they belong to lr_scheduler_type"
            yield Problem("lr_scheduler_args", said, " ".join(self.lr_scheduler_args), severity="warning")

    def arguments(self) -> dict[str, Any]:
        """`lr_scheduler_args` as keyword arguments."""
        return arguments.parse("lr_scheduler_args", self.lr_scheduler_args)[0]


def in_steps(length: int | float, total_steps: int) -> int:
    """A length in optimizer steps; below 1 it is a part of the run."""
    return int(length * total_steps) if length < 1 else int(length)


def more_arguments(options: ScheduleOptions, *, total_steps: int) -> dict[str, Any]:
    """What the chosen schedule takes beside the lengths of warm-up and run."""
    ratio = options.lr_scheduler_min_lr_ratio
    cycles = options.lr_scheduler_num_cycles
    match options.lr_scheduler:
        case "cosine_with_restarts":
            return {"num_cycles": cycles}
        case "cosine_with_min_lr":
            return {"num_cycles": cycles / 2, "min_lr_rate": ratio}
        case "polynomial":
            return {"power": options.lr_scheduler_power}
        case "inverse_sqrt":
            return {"timescale": options.lr_scheduler_timescale}
        case "warmup_stable_decay":
            decay = in_steps(options.lr_decay_steps, total_steps)
            return {"num_decay_steps": decay, "num_cycles": cycles / 2, "min_lr_ratio": ratio or 0.0}
    return {}


def argument_problems(options: ScheduleOptions) -> list[Problem]:
    """A schedule of torch that does not exist, or its arguments (this imports torch: it is not part of `problems`)."""
    if not options.lr_scheduler_type:
        return []
    known = _torch_schedules()
    if options.lr_scheduler_type not in known:
        near = nearest(options.lr_scheduler_type, tuple(known))
        remedy = f"Known: {', '.join(known)}" + (f". Did you mean {near}?" if near else "")
        return [Problem("lr_scheduler_type", "is no schedule of torch", options.lr_scheduler_type, remedy=remedy)]
    takes = known[options.lr_scheduler_type]
    return arguments.unknown("lr_scheduler_args", options.arguments(), takes, ours=("optimizer",))


def problems_with(options: ScheduleOptions, optimizer: OptimizerOptions) -> Iterator[Problem]:
    """What of a schedule does not go with the optimizer."""
    chosen = options.lr_scheduler_type or options.lr_scheduler
    if optimizer.finds_steps and chosen not in ("constant", "adafactor"):
        said = "cannot be used: AdaFactor finds the size of its steps itself"
        remedy = "Use lr_scheduler adafactor, or optimizer_args relative_step=False"
        yield Problem(_where(options), said, chosen, remedy=remedy)
    if chosen == "adafactor" and not optimizer.finds_steps:
        said = "belongs to optimizer_type AdaFactor with relative_step=True"
        yield Problem("lr_scheduler", said, chosen, remedy="Use another schedule, such as constant")
    if optimizer.trait == "averages" and chosen not in ("constant", "constant_with_warmup"):
        said = f"is not needed: {optimizer.kind} averages its weights instead of lowering the rate, and will do both"
        yield Problem(_where(options), said, chosen, remedy="constant is usual", severity="warning")
    same_for_all = chosen in ONE_FOR_ALL or options.arguments().get("eta_min")
    if optimizer.trait == "finds rate" and options.lr_scheduler_type and same_for_all:
        said = f"does not keep the share of each part's rate, which {optimizer.kind} needs"
        yield Problem("lr_scheduler_type", said, chosen, remedy="Use another, or leave eta_min out")


def _where(options: ScheduleOptions) -> str:
    return "lr_scheduler_type" if options.lr_scheduler_type else "lr_scheduler"


def build(
    options: ScheduleOptions, optimizer: Optimizer, total_steps: int, *, initial_rate: float = 0.0
) -> LRScheduler:
    """A torch scheduler to step once after each optimizer step. initial_rate: what the log shows before AdaFactor's
    first step, unless lr_scheduler_args say."""
    if problems := argument_problems(options):
        raise ConfigError(problems)
    scheduler: LRScheduler
    try:
        if _finds_steps(optimizer):
            rate = options.arguments().get("initial_lr", initial_rate)
            scheduler = transformers.optimization.AdafactorSchedule(optimizer, rate)
        elif options.lr_scheduler_type:
            scheduler = _torch_schedules()[options.lr_scheduler_type](optimizer, **options.arguments())
        elif options.lr_scheduler == "piecewise_constant":
            scheduler = diffusers.optimization.get_piecewise_constant_schedule(optimizer, **options.arguments())
        else:
            scheduler = transformers.get_scheduler(
                options.lr_scheduler,
                optimizer,
                num_warmup_steps=in_steps(options.lr_warmup_steps, total_steps),
                num_training_steps=total_steps,
                scheduler_specific_kwargs=more_arguments(options, total_steps=total_steps),
            )
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem("lr_scheduler_args", str(error), " ".join(options.lr_scheduler_args))]) from error
    return scheduler


def _finds_steps(optimizer: Optimizer) -> bool:
    group = optimizer.param_groups[0]
    return group["lr"] is None and bool(group["relative_step"])


def _torch_schedules() -> dict[str, Callable[..., LRScheduler]]:
    """torch's schedules by name; the one that needs a validation loss, and those made of others, are left out."""
    module = torch.optim.lr_scheduler
    left_out = {"LRScheduler", "ReduceLROnPlateau", "SequentialLR", "ChainedScheduler", "LambdaLR", "MultiplicativeLR"}
    found = {name: getattr(module, name) for name in module.__all__ if name not in left_out}
    return dict(sorted(found.items()))
