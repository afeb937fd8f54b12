"""How a training task runs, from its configuration to the finished file."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.config import read_dataset
from trainer.errors import ConfigError, Problem
from trainer.events import Events, Finished, Start, Stopped
from trainer.hooks import resume
from trainer.hooks.base import Hook, Moment
from trainer.hooks.resume import Progress, ResumePoint
from trainer.hooks.sampling import Sampling
from trainer.hooks.saving import Saving, clash_problem, plan_saves, written_again
from trainer.hooks.tracking import Tracking
from trainer.hooks.validation import Validating
from trainer.lazy import torch
from trainer.loop import Maths, Parts, train
from trainer.maths.diffusion import Diffusion, ReadingCheck
from trainer.optim.optimizers import OLDER_FLAGS
from trainer.run_folder import Request, RunFolder
from trainer.tasks import debug_dataset
from trainer.tasks.base import Task, with_seed, write_record
from trainer.tasks.encoding import conditioning_of, latents_of, planned_captions
from trainer.tasks.environment import environment, fingerprint_of, packages
from trainer.tasks.metadata import Export
from trainer.tasks.schedule import Schedule, disk_problem, epoch_planner, schedule_of
from trainer.tasks.training_config import TrainingConfig, check
from trainer.tasks.validation import ValidationLoss, chosen_views

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.data.dataset import TrainingSet
    from trainer.families.base import Family
    from trainer.methods.base import Method
    from trainer.tasks.debug_dataset import DebugDatasetConfig, ShownOptions

log = logging.getLogger("trainer")


def look_at(
    training_set: TrainingSet,
    config: TrainingConfig | DebugDatasetConfig,
    options: ShownOptions,
    folder: RunFolder,
    events: Events,
) -> None:
    """Write what one process would train, in place of training it."""
    plan_epoch = epoch_planner(training_set, config, processes=1)
    total_steps = schedule_of(config.length, plan_epoch).total_steps
    training_set = dataclasses.replace(training_set, total_steps=total_steps)
    debug_dataset.show(training_set, plan_epoch, options, folder, events, seed=config.length.seed or 0)


def run(config: TrainingConfig, folder: RunFolder, events: Events) -> None:
    """Train from beginning to end, or from a resume point on."""
    began = time.monotonic()
    events.phase("starting")
    config, point = _settle(config)
    _set_threads(config, point)

    events.phase("scanning")
    training_set = _scan(config, events)
    if config.debug.debug_dataset:
        return look_at(training_set, config, config.debug, folder, events)

    events.phase("loading")
    accelerator = _accelerator(config, events)
    plan_epoch = epoch_planner(training_set, config, processes=accelerator.num_processes)
    schedule = schedule_of(config.length, plan_epoch)
    training_set = dataclasses.replace(training_set, total_steps=schedule.total_steps)
    progress = point.progress if point else Progress()
    _refuse_clashes(config, schedule, point)
    family, method = _build_model(config, accelerator, events)
    _refuse_small_disk(config, schedule, progress, method)
    depends = _depends(config, training_set, accelerator)
    captions = planned_captions(
        training_set,
        plan_epoch,
        seed=config.length.seed or 0,
        progress=progress,
        total_steps=schedule.total_steps,
    )
    parts = _build_parts(config, accelerator, family, method, training_set, schedule, captions, events)
    if point:
        resume.check_same(point, depends)
        _restore(Path(config.resume.resume or ""), parts)
    model = Path(config.model.pretrained_model_name_or_path)
    if accelerator.is_main_process:
        facts = environment(model, accelerator, training_set)
        write_record(config, folder, {**facts, "parents": list(point.parents) if point else []})
    events.emit(
        Start(
            task=config.task,
            output_name=config.saving.output_name,
            total_steps=schedule.total_steps,
            steps_per_epoch=schedule.steps_per_epoch,
            epochs=schedule.epochs,
            first_step=progress.step,
            num_pictures=len(training_set.samples),
            device=str(accelerator.device),
            trainable_parameters={g.name: sum(p.numel() for p in g.parameters) for g in method.groups()},
        )
    )

    seed = config.length.seed or 0
    where = Where(progress)
    saving = Saving(
        config.saving,
        events,
        folder,
        export=InUseExport(
            parts,
            Export(
                config.metadata,
                config.optimizer,
                config.flat(),
                family=family,
                method=method,
                training_set=training_set,
                schedule=schedule,
            ),
        ),
        save_state=StateWriter(parts, where, depends, folder, point),
        num_epochs=schedule.epochs,
        is_main=accelerator.is_main_process,
    )
    sampling = Sampling(
        config.sampling, events, folder.samples, family=family, method=method, averaging=parts.averaging, seed=seed
    )
    tracking = Tracking(config.tracking, events, folder.path, is_main=accelerator.is_main_process)
    hooks: list[Hook] = [
        tracking,
        *_validating(config, parts, training_set, events, tracking),
        *([sampling] if accelerator.is_main_process else []),
        saving,
    ]
    events.phase("training")
    finished = train(
        parts,
        plan_epoch=plan_epoch,
        progress=progress,
        total_steps=schedule.total_steps,
        hooks=hooks,
        requests=Requests(folder, accelerator),
        on_progress=where.update,
    )
    parts.loader.close()
    accelerator.wait_for_everyone()
    if finished:
        events.emit(Finished(schedule.total_steps, str(saving.final_path), round(time.monotonic() - began, 1)))
    else:
        events.emit(Stopped(where.progress.step, str(saving.state_path)))


def _settle(config: TrainingConfig) -> tuple[TrainingConfig, ResumePoint | None]:
    """Draw the seed if it was left open; a resumed run takes its seed from the resume point."""
    if config.resume.resume is None:
        return with_seed(config, "length"), None
    point = resume.read_point(Path(config.resume.resume))
    if config.length.seed is None:
        length = config.length.model_copy(update={"seed": point.depends["seed"]})
        sources = {**config.sources, "seed": "the resume point"}
        config = dataclasses.replace(config, length=length, sources=sources)
    return config, point


def _set_threads(config: TrainingConfig, point: ResumePoint | None) -> None:
    """Sums in another order end in other last digits, so a resumed run keeps its thread count."""
    threads = config.memory.num_cpu_threads or (point.threads if point else None)
    if threads:
        torch.set_num_threads(threads)


def _scan(config: TrainingConfig, events: Events) -> TrainingSet:
    from trainer.data.dataset import TrainingSet

    dataset = read_dataset(config.data, sources=config.sources)
    training_set = TrainingSet.build(dataset, progress=lambda done, total: events.phase("scanning", done, total))
    training_set = config.adapt(training_set)
    for note in training_set.notes:
        events.warning(note)
    _refuse_wrong_masks(config, training_set)
    return training_set


def _refuse_wrong_masks(config: TrainingConfig, training_set: TrainingSet) -> None:
    """masked_loss without masks, and masks without masked_loss; alpha_mask needs no second word."""
    if config.loss.masked_loss and not any(sample.has_mask for sample in training_set.samples):
        remedy = "Set alpha_mask, or conditioning_data_dir in the dataset file, or turn masked_loss off"
        source = config.sources.get("masked_loss", "")
        raise ConfigError([Problem("masked_loss", "no picture has a mask", "true", source, remedy)])
    if not config.loss.masked_loss and any(sample.mask_path for sample in training_set.samples):
        said = "the dataset file names masks, and nothing uses them"
        remedy = "Set masked_loss, or take conditioning_data_dir out of the dataset file"
        raise ConfigError([Problem("conditioning_data_dir", said, remedy=remedy)])


def _accelerator(config: TrainingConfig, events: Events) -> Accelerator:
    """Device and processes; what accelerate's own configuration says besides is said and not followed."""
    from accelerate import Accelerator

    for name, ours in (("MIXED_PRECISION", config.memory.mixed_precision), ("DYNAMO_BACKEND", "no")):
        theirs = os.environ.get(f"ACCELERATE_{name}", ours).lower()
        if theirs != ours:
            events.warning(f"accelerate's configuration says {name.lower()} {theirs}; this run uses {ours}")
    for name in ("USE_DEEPSPEED", "USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG"):
        if os.environ.pop(f"ACCELERATE_{name}", "false").lower() == "true":
            events.warning(f"accelerate's configuration says {name.lower()}, which this program does not use")
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "NO"
    return Accelerator(mixed_precision=config.memory.mixed_precision)


def _build_model(config: TrainingConfig, accelerator: Accelerator, events: Events) -> tuple[Family, Method]:
    from trainer.families.base import load_family

    family = load_family(config.model, dtype=config.weight_dtype, device=accelerator.device)
    method = config.build_method(family)
    for note in method.notes:
        events.warning(note)
    if config.memory.gradient_checkpointing:
        text_encoders = any(name.startswith("text_encoder") for name in method.trainable_components())
        family.enable_gradient_checkpointing(text_encoders=text_encoders)
    if config.model.zero_terminal_snr and family.prediction_type == "epsilon":
        events.warning("zero_terminal_snr is meant for models that predict velocity, and this one predicts noise")
    return family, method


def _build_parts(
    config: TrainingConfig,
    accelerator: Accelerator,
    family: Family,
    method: Method,
    training_set: TrainingSet,
    schedule: Schedule,
    captions: Iterable[str],
    events: Events,
) -> Parts:
    """Optimizer, schedule, data and the prepared modules."""
    from trainer.data.loader import Loader
    from trainer.optim import averaged, optimizers, schedules

    optimizer = optimizers.build(config.optimizer, method.groups())
    if accelerator.is_main_process:
        log.info("optimizer %s", optimizers.described(config.optimizer))
    rate = config.optimizer.learning_rate
    modules = method.modules()
    *prepared, prepared_optimizer = accelerator.prepare(*modules.values(), optimizer)
    method.use_prepared(dict(zip(modules, prepared, strict=True)))
    loader = Loader(
        training_set,
        seed=config.length.seed or 0,
        load_pixels=not config.data.caches_latents,
        num_workers=config.data.max_data_loader_n_workers,
        persistent=config.data.persistent_data_loader_workers,
    )
    diffusion = Diffusion(family.alphas_cumprod, family.prediction_type)
    return Parts(
        family=family,
        method=method,
        diffusion=diffusion,
        loader=loader,
        latents=latents_of(config, family, training_set, accelerator, events),
        conditioning=conditioning_of(config, family, method, captions, accelerator, events),
        optimizer=prepared_optimizer,
        schedule=schedules.build(config.schedule, optimizer, schedule.total_steps, initial_rate=rate),
        averaging=averaged.averaging_of(config.average, optimizer),
        accelerator=accelerator,
        maths=Maths(config.noise, config.timesteps, config.loss),
        max_grad_norm=config.optimizer.max_grad_norm,
        seed=config.length.seed or 0,
        watch=ReadingCheck(diffusion, events.warning),
    )


def _validating(
    config: TrainingConfig, parts: Parts, training_set: TrainingSet, events: Events, tracking: Tracking
) -> list[Hook]:
    """The validation, where pictures were kept for it."""
    views = chosen_views(training_set, config.validation.max_validation_steps)
    if not views:
        return []
    measure = ValidationLoss(parts, views, events)
    return [Validating(config.validation, events, measure=measure, num_pictures=len(views), write=tracking.write)]


def _refuse_clashes(config: TrainingConfig, schedule: Schedule, point: ResumePoint | None) -> None:
    first = point.progress.step if point else 0
    plan = plan_saves(config.saving, schedule.epoch_ends, first_step=first, total_steps=schedule.total_steps)
    again = written_again(config.saving, plan, point.parents, first_step=first) if point else frozenset()
    if problem := clash_problem(config.saving, plan, again=again):
        raise ConfigError([problem])


def _refuse_small_disk(config: TrainingConfig, schedule: Schedule, progress: Progress, method: Method) -> None:
    trained = sum(p.numel() for group in method.groups() for p in group.parameters)
    saved = method.num_saved()
    copies = 4 if config.average.use_ema else 3
    if problem := disk_problem(
        config.saving, schedule, progress.step, num_saved=saved, num_trained=trained, copies=copies
    ):
        raise ConfigError([problem])


@dataclass
class Where:
    """Where the run stands now; the loop moves it on."""

    progress: Progress

    def update(self, progress: Progress) -> None:
        self.progress = progress


def _depends(config: TrainingConfig, training_set: TrainingSet, accelerator: Accelerator) -> dict[str, Any]:
    """What must be the same for a run to go on as it was. Two processes may become one with twice the accumulation."""
    flat = config.flat()
    groups = (
        *(config.noise, config.timesteps, config.loss, config.schedule),
        *(config.method, config.optimizer, config.average),
    )
    # network_weights or weights is where a run began, and it goes on from its state
    left_out = {"network_weights", "weights", "optimizer_type", *OLDER_FLAGS}
    names = (
        *("seed", "clip_skip", "max_token_length", "weighted_captions", "mixed_precision", "prior_loss_weight"),
        *("zero_terminal_snr", *(name for group in groups for name in type(group).model_fields)),
    )
    accumulated = config.length.gradient_accumulation_steps * accelerator.num_processes
    return {
        **{name: flat[name] for name in names if name not in left_out},
        "optimizer_type": config.optimizer.kind,
        "gradient_accumulation_steps": accumulated,
        "dataset": fingerprint_of(training_set),
    }


@dataclass(frozen=True)
class InUseExport:
    """Exports the weights to be used, which may be others than those that train."""

    parts: Parts
    export: Callable[[Path, Moment], Path]

    def __call__(self, path: Path, moment: Moment) -> Path:
        with self.parts.averaging.in_use():
            return self.export(path, moment)


@dataclass(frozen=True)
class StateWriter:
    """Writes a resume point of the run as it stands."""

    parts: Parts
    where: Where
    depends: Mapping[str, Any]
    folder: RunFolder
    point: ResumePoint | None

    def __call__(self, path: Path, moment: Moment) -> Path:
        if not self.parts.accelerator.is_main_process:
            return path
        parents = (*(self.point.parents if self.point else ()), str(self.folder.path))
        point = ResumePoint(self.where.progress, self.depends, torch.get_num_threads(), parents, versions=packages())
        scaler = self.parts.accelerator.scaler
        state = {
            "optimizer": self.parts.optimizer.state_dict(),
            "schedule": self.parts.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "averaging": self.parts.averaging.state_dict(),
        }
        return resume.save(path, point, self.parts.method.state_dict(), state)


def _restore(path: Path, parts: Parts) -> None:
    """Put weights, optimizer and schedule back as they were saved."""
    _, trained, state = resume.load(path)
    parts.method.load_state_dict(trained)
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
    parts.averaging.load_state_dict(state.get("averaging", {}))
    if parts.accelerator.scaler and state["scaler"]:
        parts.accelerator.scaler.load_state_dict(state["scaler"])


class Requests:
    """Requests left in the run folder; read by the first process, acted on by all after the same step."""

    def __init__(self, folder: RunFolder, accelerator: Accelerator) -> None:
        self._folder = folder
        self._accelerator = accelerator

    def __call__(self) -> frozenset[str]:
        names: tuple[Request, ...] = ("stop", "save", "sample")
        found = [n for n in names if self._accelerator.is_main_process and self._folder.take(n)]
        if self._accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            shared = [found]
            broadcast_object_list(shared)
            found = shared[0]
        return frozenset(found)


def training_task(config: type[TrainingConfig], *, about: str) -> Task:
    """A training as a task: all run, are checked and are named the same way."""
    return Task(
        name=config.task,
        about=about,
        config=config,
        run=run,
        check=check,
        name_of=lambda config: str(config.saving.output_name),
        output_dir_of=lambda config: Path(config.saving.output_dir),
    )
