"""The one training loop: it reads like the description of training and knows no family, method or adapter by name.

Shapes: B picture, C H W latent.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from trainer.errors import Problem, RunError
from trainer.hooks.base import Hook, Moment
from trainer.hooks.resume import Progress
from trainer.lazy import torch
from trainer.maths.diffusion import Diffusion, TimestepOptions, draw_timesteps
from trainer.maths.losses import LossOptions, error, level_weight, picture_loss
from trainer.maths.noise import NoiseOptions, perturbed, sample_noise
from trainer.maths.rng import derive
from trainer.optim.shares import found_rates
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from trainer.data.loader import LoadedBatch, Loader
    from trainer.data.sampler import StepPlan
    from trainer.families.base import Conditioning, Family
    from trainer.methods.base import Method
    from trainer.optim.averaged import Averaging


class LengthOptions(Options):
    """How long is trained, and in what portions."""

    title: ClassVar[str] = "Length"

    max_train_steps: int = opt(1600, ge=1, unit="steps")
    """Optimizer steps to train. max_train_epochs wins where both are set."""
    max_train_epochs: int | None = opt(None, ge=1, level="basic", unit="epochs", label="Epochs")
    """Times the data set, repeats included, is gone through."""
    gradient_accumulation_steps: int = opt(1, ge=1)
    """Micro-batches whose gradients are summed for one step: a larger batch's effect in a small one's memory."""
    seed: int | None = opt(None, ge=0, le=2**32 - 1)
    """Start of all randomness; the same seed gives the same run. Unset: one is drawn and kept in config.toml."""

    def problems(self) -> Iterator[Problem]:
        """Steps that somebody chose and that epochs overrule."""
        steps = self.max_train_steps
        if self.max_train_epochs is not None and steps != type(self).model_fields["max_train_steps"].default:
            said = f"is not used: max_train_epochs ({self.max_train_epochs}) wins where both are set"
            remedy = "Leave max_train_epochs out, or raise it"
            yield Problem("max_train_steps", said, str(steps), remedy=remedy, severity="warning")


@dataclass(frozen=True)
class Maths:
    """The options of the objective."""

    noise: NoiseOptions
    timesteps: TimestepOptions
    loss: LossOptions


@dataclass
class Parts:
    """Everything built that one step needs."""

    family: Family
    method: Method
    diffusion: Diffusion
    loader: Loader
    latents: Callable[[LoadedBatch], Tensor]
    conditioning: Callable[[LoadedBatch], Conditioning]
    optimizer: Optimizer
    schedule: LRScheduler
    averaging: Averaging
    accelerator: Accelerator
    maths: Maths
    max_grad_norm: float
    seed: int
    watch: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    """Told (prediction, latents, noise, timesteps) of each micro-batch."""


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step and its place: epoch and index from 0."""

    epoch: int
    index: int
    plan: StepPlan
    ends_epoch: bool


AVERAGED_STEPS = 100
"""The running average of the loss is over at most this many steps."""

PlanEpoch = Callable[[int], Sequence["StepPlan"]]


def steps_from(plan_epoch: PlanEpoch, progress: Progress, *, total_steps: int) -> Iterator[PlannedStep]:
    """The steps still to do, epoch after epoch, from where the run stands to its last step."""
    epoch, index, left = progress.epoch, progress.step_in_epoch, total_steps - progress.step
    while left > 0:
        plans = plan_epoch(epoch)
        for position in range(index, min(len(plans), index + left)):
            yield PlannedStep(epoch, position, plans[position], ends_epoch=position + 1 == len(plans))
        left -= len(plans) - index
        epoch, index = epoch + 1, 0


def train(
    parts: Parts,
    *,
    plan_epoch: PlanEpoch,
    progress: Progress,
    total_steps: int,
    hooks: Sequence[Hook],
    requests: Callable[[], frozenset[str]],
    on_progress: Callable[[Progress], None],
) -> bool:
    """Train from `progress` to `total_steps`; True when it got there, False when it was asked to stop.

    requests: what a person asked for since the last call, the same on every process. on_progress is told after each
    step where the run stands, before the hooks run.
    """
    planned = steps_from(plan_epoch, progress, total_steps=total_steps)
    # the loop reads the steps, and ahead of it the loader's workers do
    planned, for_loader = itertools.tee(planned)
    rank = parts.accelerator.process_index
    batches = parts.loader.batches(micro for step in for_loader for micro in step.plan.micro_batches[rank])

    moment = Moment(progress.step, progress.epoch + 1, epoch_ended=False, last=False)
    for hook in hooks:
        hook.begin(moment)

    parts.method.train()
    began = time.monotonic()
    for step in planned:
        micro_batches = step.plan.micro_batches[rank]
        loss = 0.0
        for position in range(len(micro_batches)):
            # gradients travel between processes once, with the last micro-batch
            with _synced(parts, position + 1 == len(micro_batches)):
                loss += _backward(parts, next(batches), step, position * parts.accelerator.num_processes + rank)
        loss = _sum_over_processes(parts, loss)
        _refuse_non_finite(loss, progress)

        grad_norm = _clip(parts)
        parts.optimizer.step()
        parts.schedule.step()
        parts.optimizer.zero_grad(set_to_none=True)
        figures = parts.method.after_update()
        parts.averaging.update()

        progress = _advance(progress, step, loss)
        on_progress(progress)
        now = time.monotonic()
        moment = Moment(
            step=progress.step,
            epoch=step.epoch + 1,
            epoch_ended=step.ends_epoch,
            last=progress.step == total_steps,
            loss=loss,
            loss_average=sum(progress.recent_losses) / len(progress.recent_losses),
            grad_norm=grad_norm,
            seconds=now - began,
            lr={group["name"]: float(group["lr"]) for group in parts.optimizer.param_groups},
            wanted=requests(),
            figures={**figures, **found_rates(parts.optimizer)},
        )
        for hook in hooks:
            hook.after_step(moment)
        if "stop" in moment.wanted and not moment.last:
            for hook in hooks:
                hook.end(moment, stopped=True)
            return False
        # hooks may have put the model into eval mode, and their time is not a step's
        parts.method.train()
        began = time.monotonic()

    for hook in hooks:
        hook.end(replace(moment, last=True), stopped=False)
    return True


def _backward(parts: Parts, batch: LoadedBatch, step: PlannedStep, micro_index: int) -> float:
    """Forward and backward of one micro-batch; returns its part of the step's loss."""
    seed, epoch, slots = parts.seed, batch.epoch, batch.slots
    device = parts.accelerator.device
    # dropouts inside the networks draw from here: the same whichever process does this micro-batch
    torch.manual_seed(derive(seed, "dropout", epoch, step.index, micro_index))

    latents_BCHW = parts.latents(batch)
    noise_BCHW = sample_noise(latents_BCHW, parts.maths.noise, seed=seed, epoch=epoch, slots=slots)
    timesteps_B = draw_timesteps(parts.maths.timesteps, seed=seed, epoch=epoch, slots=slots).to(device)
    seen_BCHW = perturbed(noise_BCHW, parts.maths.noise, seed=seed, epoch=epoch, slots=slots)
    noisy_BCHW = parts.diffusion.noisy(latents_BCHW, seen_BCHW, timesteps_B)
    target_BCHW = parts.diffusion.target(latents_BCHW, noise_BCHW, timesteps_B)

    with parts.accelerator.autocast():
        conditioning = parts.conditioning(batch)
        prediction_BCHW = parts.family.predict(
            parts.method.denoiser, noisy_BCHW, timesteps_B, conditioning, batch.frames_B4
        )

    parts.watch(prediction_BCHW, latents_BCHW, noise_BCHW, timesteps_B)
    error_BCHW = error(parts.maths.loss, parts.diffusion, prediction_BCHW, target_BCHW, timesteps_B)
    loss_B = picture_loss(error_BCHW, batch.masks_BHW) * batch.weights_B.to(device)
    loss_B = loss_B * level_weight(parts.maths.loss, parts.diffusion, timesteps_B)
    loss = loss_B.mean() * (batch.weight / step.plan.num_present)
    # processes average their gradients, and the step's loss is the sum over all of them
    parts.accelerator.backward(loss * parts.accelerator.num_processes)
    return float(loss.detach())


@contextlib.contextmanager
def _synced(parts: Parts, is_last: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if not is_last:
            for module in (parts.method.denoiser, *parts.method.text_encoders):
                stack.enter_context(parts.accelerator.no_sync(module))
        yield


def _clip(parts: Parts) -> float:
    """Scale gradients down to max_grad_norm (0: leave them); returns their norm before."""
    parameters = [p for group in parts.optimizer.param_groups for p in group["params"]]
    limit = parts.max_grad_norm or math.inf
    norm = parts.accelerator.clip_grad_norm_(parameters, limit)
    return float(norm) if norm is not None else 0.0


def _sum_over_processes(parts: Parts, loss: float) -> float:
    if parts.accelerator.num_processes == 1:
        return loss
    value = torch.tensor(loss, device=parts.accelerator.device, dtype=torch.float64)
    return float(parts.accelerator.reduce(value, "sum"))


def _refuse_non_finite(loss: float, progress: Progress) -> None:
    """Stop before the update that would ruin the weights."""
    if not math.isfinite(loss):
        remedy = "Lower the learning rate, or use mixed_precision bf16 or no; saved models and resume points are good"
        raise RunError(f"the loss is {loss} at step {progress.step + 1}", remedy=remedy)


def _advance(progress: Progress, step: PlannedStep, loss: float) -> Progress:
    losses = deque(progress.recent_losses, maxlen=AVERAGED_STEPS)
    losses.append(loss)
    next_epoch, next_index = (step.epoch + 1, 0) if step.ends_epoch else (step.epoch, step.index + 1)
    return Progress(progress.step + 1, next_epoch, next_index, tuple(losses))
