"""Train an adapter (LoRA) on a Stable Diffusion model: `python -m trainer train_network`."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.adapters.base import AdapterOptions
from trainer.config import RunConfig, RunOptions, slot
from trainer.data.config import DatasetConfig, DataOptions, read_dataset
from trainer.errors import ConfigError, Problem, TrainerError
from trainer.events import Events, Finished, Start, Stopped
from trainer.families.base import ModelOptions, find_family
from trainer.hooks import resume
from trainer.hooks.base import Hook, Moment
from trainer.hooks.resume import Progress, ResumeOptions, ResumePoint
from trainer.hooks.sampling import Sampling, SamplingOptions
from trainer.hooks.saving import Saving, SavingOptions, clash_problem, plan_saves
from trainer.hooks.tracking import Tracking, TrackingOptions
from trainer.lazy import torch
from trainer.loop import LengthOptions, Maths, Parts, train
from trainer.maths.diffusion import Diffusion, TimestepOptions
from trainer.maths.losses import LossOptions
from trainer.maths.noise import NoiseOptions
from trainer.maths.rng import randn_slots
from trainer.memory import MemoryOptions, device_problems
from trainer.optim.optimizers import OptimizerOptions
from trainer.optim.schedules import ScheduleOptions
from trainer.run_folder import Request, RunFolder
from trainer.tasks.base import Task, with_seed, write_record

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from trainer.data.dataset import TrainingSet
    from trainer.data.loader import LoadedBatch
    from trainer.data.sampler import StepPlan
    from trainer.families.base import Family
    from trainer.methods.base import Method


@dataclass(frozen=True)
class TrainNetworkConfig(RunConfig):
    """Every option of train_network, in the order of the form."""

    task = "train_network"

    model: ModelOptions
    data: DataOptions
    length: LengthOptions
    adapter: AdapterOptions = slot("trainer.adapters", "trainer.adapters.base:Adapter", key="network_module")
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    noise: NoiseOptions
    timesteps: TimestepOptions
    loss: LossOptions
    memory: MemoryOptions
    sampling: SamplingOptions
    saving: SavingOptions
    resume: ResumeOptions
    tracking: TrackingOptions
    run: RunOptions

    def problems(self) -> Iterator[Problem]:
        """Options of different groups that do not go together."""
        if self.data.dataset_config is None and self.data.train_data_dir is None:
            remedy = "Name a dataset TOML with dataset_config, or a folder with train_data_dir"
            yield Problem("dataset_config", "no pictures are named", remedy=remedy)
        if self.resume.resume and self.adapter.network_weights:
            remedy = "resume goes on with a run; network_weights begins a new one from a LoRA"
            yield Problem("network_weights", "cannot go with resume", str(self.adapter.network_weights), remedy=remedy)


@dataclass(frozen=True)
class Schedule:
    """How long a run is. epoch_ends: epoch (from 1) -> the step it ends with."""

    total_steps: int
    steps_per_epoch: int
    epoch_ends: Mapping[int, int]

    @property
    def epochs(self) -> int:
        return len(self.epoch_ends)


def schedule_of(length: LengthOptions, plan_epoch: Callable[[int], Sequence[Any]]) -> Schedule:
    """The run's steps. Epochs may differ by a step where regularisation pictures take turns, so they are counted."""
    ends: dict[int, int] = {}
    steps = 0
    limit = math.inf if length.max_train_epochs else length.max_train_steps
    first = len(plan_epoch(0))
    while len(ends) < (length.max_train_epochs or math.inf) and steps < limit:
        steps += len(plan_epoch(len(ends)))
        ends[len(ends) + 1] = steps
    total = int(min(steps, limit))
    return Schedule(total, first, {epoch: min(end, total) for epoch, end in ends.items()})


def epoch_planner(
    training_set: TrainingSet, config: TrainNetworkConfig, *, processes: int
) -> Callable[[int], list[StepPlan]]:
    """plan_epoch(epoch) of this run; the last plans are kept, since schedule, loop and loader ask for the same."""
    from functools import lru_cache

    from trainer.data.sampler import plan_epoch

    seed = config.length.seed
    assert seed is not None
    accumulation = config.length.gradient_accumulation_steps
    return lru_cache(maxsize=4)(
        lambda epoch: plan_epoch(training_set, seed=seed, epoch=epoch, accumulation=accumulation, processes=processes)
    )


# before anything loads


def check(config: TrainNetworkConfig) -> list[Problem]:
    """What only the model's headers, the folders, the disk and torch can tell is wrong; no model is loaded."""
    from trainer.formats import prompts
    from trainer.optim.optimizers import argument_problems

    problems: list[Problem] = []

    def collect(look: Callable[[], Sequence[Problem] | None]) -> None:
        try:
            problems.extend(look() or ())
        except TrainerError as error:
            problems.extend(error.problems)

    collect(lambda: find_family(config.model) and ())
    collect(lambda: _read_dataset(config) and ())
    collect(lambda: device_problems(config.memory))
    collect(lambda: argument_problems(config.optimizer))
    collect(lambda: _output_problems(config))
    if config.sampling.sample_prompts:
        collect(lambda: prompts.read_prompts(Path(config.sampling.sample_prompts or ""))[1])
    if config.resume.resume:
        collect(lambda: resume.read_point(Path(config.resume.resume or "")) and ())
    sources = config.sources
    return [dataclasses.replace(p, source=p.source or sources.get(p.option, "")) for p in problems]


def _read_dataset(config: TrainNetworkConfig) -> DatasetConfig:
    return read_dataset(config.data, sources=config.sources)


def _output_problems(config: TrainNetworkConfig) -> list[Problem]:
    from trainer import host

    folder = config.saving.output_dir
    if folder.exists() and not folder.is_dir():
        return [Problem("output_dir", "is a file, not a folder", str(folder))]
    if not host.is_writable(folder):
        return [Problem("output_dir", "cannot be written to", str(folder), remedy="Choose another folder")]
    final = plan_saves(config.saving, {}, first_step=0, total_steps=0)
    problem = None if config.resume.resume else clash_problem(config.saving, final)
    return [problem] if problem else []


def _disk_problem(config: TrainNetworkConfig, schedule: Schedule, first_step: int, model_bytes: int) -> Problem | None:
    """Whether all planned saves fit on the disk; a resume point is three times a float32 model."""
    from trainer import host

    plan = plan_saves(config.saving, schedule.epoch_ends, first_step=first_step, total_steps=schedule.total_steps)
    size = {"float": 4, "fp16": 2, "bf16": 2}[config.saving.save_precision or "float"] * model_bytes // 4
    models = len(plan.models)
    for keep, every in (
        (config.saving.save_last_n_epochs, config.saving.save_every_n_epochs),
        (config.saving.save_last_n_steps, config.saving.save_every_n_steps),
    ):
        if keep and every:
            models = min(models, keep // every + 2)
    needed = models * size + max(1, min(len(plan.states), models)) * model_bytes * 3
    free = host.free_bytes(config.saving.output_dir)
    if free > needed:
        return None
    said = f"{models} planned saves need about {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
    remedy = "Make room, choose another folder, save less often, or keep fewer with save_last_n_epochs"
    return Problem("output_dir", said, str(config.saving.output_dir), remedy=remedy)


# the run


def run(config: TrainNetworkConfig, folder: RunFolder, events: Events) -> None:
    """Train from beginning to end, or from a resume point on."""
    began = time.monotonic()
    events.phase("starting")
    config, point = _settle(config)
    _set_threads(config, point)
    write_record(config, folder, {"parents": list(point.parents) if point else []})

    events.phase("scanning")
    training_set = _scan(config, events)

    events.phase("loading")
    accelerator = _accelerator(config, events)
    plan_epoch = epoch_planner(training_set, config, processes=accelerator.num_processes)
    schedule = schedule_of(config.length, plan_epoch)
    progress = point.progress if point else Progress()
    _refuse_clashes(config, schedule, progress)
    family, method = _build_model(config, accelerator)
    _refuse_small_disk(config, schedule, progress, method)
    depends = _depends(config, training_set, accelerator)
    parts = _build_parts(config, accelerator, family, method, training_set, schedule, events)
    if point:
        resume.check_same(point, depends)
        _restore(Path(config.resume.resume or ""), parts)
    write_record(config, folder, _facts(config, accelerator, training_set, point))
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
        export=Export(config, family, method, training_set, schedule),
        save_state=StateWriter(parts, where, depends, folder, point),
        is_main=accelerator.is_main_process,
    )
    hooks: list[Hook] = [
        Tracking(config.tracking, events, folder.path, is_main=accelerator.is_main_process),
        *([Sampling(config.sampling, events, folder.samples, family=family, method=method, seed=seed)]
          if accelerator.is_main_process else []),
        saving,
    ]  # fmt: skip
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


def _settle(config: TrainNetworkConfig) -> tuple[TrainNetworkConfig, ResumePoint | None]:
    """Draw the seed if it was left open; a resumed run takes its seed from the resume point."""
    if config.resume.resume is None:
        return with_seed(config, "length"), None
    point = resume.read_point(Path(config.resume.resume))
    if config.length.seed is None:
        length = config.length.model_copy(update={"seed": point.depends["seed"]})
        sources = {**config.sources, "seed": "the resume point"}
        config = dataclasses.replace(config, length=length, sources=sources)
    return config, point


def _set_threads(config: TrainNetworkConfig, point: ResumePoint | None) -> None:
    """Sums in another order end in other last digits, so a resumed run keeps its thread count."""
    threads = config.memory.num_cpu_threads or (point.threads if point else None)
    if threads:
        torch.set_num_threads(threads)


def _scan(config: TrainNetworkConfig, events: Events) -> TrainingSet:
    from trainer.data.dataset import TrainingSet

    dataset = _read_dataset(config)
    training_set = TrainingSet.build(dataset, progress=lambda done, total: events.phase("scanning", done, total))
    for note in training_set.notes:
        events.warning(note)
    return training_set


def _accelerator(config: TrainNetworkConfig, events: Events) -> Accelerator:
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


def _build_model(config: TrainNetworkConfig, accelerator: Accelerator) -> tuple[Family, Method]:
    from trainer.families.base import load_family
    from trainer.methods.adapter import AdapterMethod

    family = load_family(config.model, dtype=config.memory.weight_dtype, device=accelerator.device)
    method = AdapterMethod(family, config.adapter, config.optimizer, seed=config.length.seed or 0)
    if config.memory.gradient_checkpointing:
        family.enable_gradient_checkpointing(text_encoders=len(method.trainable_components()) > 1)
    return family, method


def _build_parts(
    config: TrainNetworkConfig,
    accelerator: Accelerator,
    family: Family,
    method: Method,
    training_set: TrainingSet,
    schedule: Schedule,
    events: Events,
) -> Parts:
    """Optimizer, schedule, data and the prepared modules."""
    from trainer.data.loader import Loader
    from trainer.optim import optimizers, schedules

    optimizer = optimizers.build(config.optimizer, method.groups())
    modules = method.modules()
    *prepared, prepared_optimizer = accelerator.prepare(*modules.values(), optimizer)
    method.use_prepared(dict(zip(modules, prepared, strict=True)))
    loader = Loader(
        training_set,
        seed=config.length.seed or 0,
        load_pixels=not config.data.cache_latents,
        num_workers=config.data.max_data_loader_n_workers,
        persistent=config.data.persistent_data_loader_workers,
    )
    return Parts(
        family=family,
        method=method,
        diffusion=Diffusion(family.alphas_cumprod, family.prediction_type),
        loader=loader,
        latents=_latents(config, family, training_set, accelerator, events),
        optimizer=prepared_optimizer,
        schedule=schedules.build(config.schedule, optimizer, schedule.total_steps),
        accelerator=accelerator,
        maths=Maths(config.noise, config.timesteps, config.loss),
        max_grad_norm=config.optimizer.max_grad_norm,
        seed=config.length.seed or 0,
    )


def _latents(
    config: TrainNetworkConfig, family: Family, training_set: TrainingSet, accelerator: Accelerator, events: Events
) -> Callable[[LoadedBatch], Tensor]:
    """How a batch becomes latents: drawn from the cache, or encoded on the spot; the same bits either way."""
    from trainer.data.cache import LatentCache, draw_latents, encode_each

    seed, device, batch_size = config.length.seed or 0, accelerator.device, config.data.vae_batch_size

    def noise(batch: LoadedBatch, shape: Sequence[int]) -> Tensor:
        return randn_slots(seed, "latent", batch.epoch, batch.slots, shape)

    if config.data.cache_latents:
        say = lambda done, total: events.phase("caching", done, total)  # noqa: E731
        cache = LatentCache.build(training_set, family.encode_latents, batch_size=batch_size, progress=say)
        # the VAE has done its work; sampling brings it back
        family.vae.to("cpu")

        def cached(batch: LoadedBatch) -> Tensor:
            mean_BCHW, std_BCHW = cache.moments(batch.keys)
            return draw_latents(mean_BCHW, std_BCHW, noise(batch, mean_BCHW.shape[1:])).to(device)

        return cached

    def encoded(batch: LoadedBatch) -> Tensor:
        assert batch.pixels_BCHW is not None
        mean_BCHW, std_BCHW = encode_each(family.encode_latents, batch.pixels_BCHW, batch_size=batch_size)
        drawn_BCHW = draw_latents(mean_BCHW.cpu(), std_BCHW.cpu(), noise(batch, mean_BCHW.shape[1:]))
        return drawn_BCHW.to(device)

    return encoded


def _refuse_clashes(config: TrainNetworkConfig, schedule: Schedule, progress: Progress) -> None:
    plan = plan_saves(
        config.saving, schedule.epoch_ends, first_step=progress.step, total_steps=schedule.total_steps
    )
    if problem := clash_problem(config.saving, plan):
        raise ConfigError([problem])


def _refuse_small_disk(config: TrainNetworkConfig, schedule: Schedule, progress: Progress, method: Method) -> None:
    trained = sum(p.numel() for group in method.groups() for p in group.parameters)
    if problem := _disk_problem(config, schedule, progress.step, trained * 4):
        raise ConfigError([problem])


# going on


@dataclass
class Where:
    """Where the run stands now; the loop moves it on."""

    progress: Progress

    def update(self, progress: Progress) -> None:
        self.progress = progress


def _depends(config: TrainNetworkConfig, training_set: TrainingSet, accelerator: Accelerator) -> dict[str, Any]:
    """What must be the same for a run to go on as it was. Two processes may become one with twice the accumulation."""
    flat = config.flat()
    names = (
        *("seed", "network_module", "network_dim", "network_alpha", "clip_skip", "optimizer_type", "mixed_precision"),
        *("min_timestep", "max_timestep", "noise_offset", "min_snr_gamma", "lr_scheduler", "lr_warmup_steps"),
        *("learning_rate", "unet_lr", "text_encoder_lr", "optimizer_args", "max_grad_norm", "prior_loss_weight"),
    )
    accumulated = config.length.gradient_accumulation_steps * accelerator.num_processes
    return {
        **{name: flat[name] for name in names},
        "gradient_accumulation_steps": accumulated,
        "dataset": dataset_fingerprint(training_set),
    }


def dataset_fingerprint(training_set: TrainingSet) -> str:
    """A hash over every picture's content, caption, geometry, repeats and weight, and the batch sizes."""
    import hashlib

    digest = hashlib.sha256()
    for sample in training_set.samples:
        facts = (sample.picture.sha256, sample.caption_text, sample.dataset, sample.geometry, sample.repeats)
        digest.update(repr((*facts, sample.is_reg, sample.loss_weight, sample.subset.pictures)).encode())
    digest.update(repr([dataset.batch_size for dataset in training_set.datasets]).encode())
    return digest.hexdigest()


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
        point = ResumePoint(self.where.progress, self.depends, torch.get_num_threads(), parents, versions=_versions())
        scaler = self.parts.accelerator.scaler
        state = {
            "optimizer": self.parts.optimizer.state_dict(),
            "schedule": self.parts.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
        }
        return resume.save(path, point, self.parts.method.state_dict(), state)


def _restore(path: Path, parts: Parts) -> None:
    """Put weights, optimizer and schedule back as they were saved."""
    _, trained, state = resume.load(path)
    parts.method.load_state_dict(trained)
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
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


# what is written about the run


def _versions() -> dict[str, str]:
    from importlib.metadata import distributions

    return {d.metadata["Name"]: d.version for d in sorted(distributions(), key=lambda d: d.metadata["Name"].lower())}


def _facts(
    config: TrainNetworkConfig, accelerator: Accelerator, training_set: TrainingSet, point: ResumePoint | None
) -> dict[str, Any]:
    """environment.json: packages, commit, device, driver, model and data fingerprints."""
    from trainer.formats.model_facts import fingerprint

    device: dict[str, Any] = {"device": str(accelerator.device), "processes": accelerator.num_processes}
    if torch.cuda.is_available():
        device |= {"device_name": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": _driver()}
    return {
        **device,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "packages": _versions(),
        "model_fingerprint": fingerprint(Path(config.model.pretrained_model_name_or_path)),
        "data_fingerprint": dataset_fingerprint(training_set),
        "parents": list(point.parents) if point else [],
    }


def _driver() -> str:
    import subprocess

    argv = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _commit() -> str:
    """The commit of this program, "" where it is no git checkout."""
    import subprocess

    argv = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class Export:
    """Writes the trained adapter as a file with kohya's keys and metadata."""

    def __init__(
        self, config: TrainNetworkConfig, family: Family, method: Method, training_set: TrainingSet, schedule: Schedule
    ) -> None:
        self._config = config
        self._family = family
        self._method = method
        self._training_set = training_set
        self._schedule = schedule
        self._started = time.time()

    def __call__(self, path: Path, moment: Moment) -> Path:
        precision = self._config.saving.save_precision or "float"
        return self._method.export(path, precision=precision, metadata=self._metadata(path, moment))

    def _metadata(self, path: Path, moment: Moment) -> dict[str, str]:
        from trainer.formats import kohya

        config, summary = self._config, self._training_set.summary()
        model = Path(config.model.pretrained_model_name_or_path)
        legacy, new = self._model_hashes(model)
        facts = kohya.RunFacts(
            session_id=int(self._started * 1000) % 2**32,
            started_at=self._started,
            finished_at=time.time(),
            output_name=config.saving.output_name,
            num_train_images=summary.uses,
            num_reg_images=summary.reg_uses,
            num_batches_per_epoch=summary.batches,
            num_epochs=self._schedule.epochs,
            epoch=moment.epoch,
            steps=moment.step,
            max_train_steps=self._schedule.total_steps,
            base_model_version=self._family.base_model_version,
            optimizer=f"torch.optim.{config.optimizer.optimizer_type}({','.join(config.optimizer.optimizer_args)})",
            model_name=model.name,
            model_hash=legacy,
            new_model_hash=new,
            datasets=self._datasets(),
            dataset_dirs=self._folders(),
            tag_frequency=self._tags(),
        )
        spec = kohya.modelspec_metadata(
            architecture=f"{self._family.architecture}/lora",
            title=path.stem,
            resolution=self._training_set.datasets[0].resolution,
            prediction_type=self._family.prediction_type,
            saved_at=time.time(),
            encoder_layer=config.model.clip_skip,
        )
        return {**kohya.training_metadata(config.flat(), facts), **spec}

    @staticmethod
    def _model_hashes(model: Path) -> tuple[str, str]:
        from trainer.formats.model_facts import kohya_model_hashes

        return kohya_model_hashes(model)

    def _folders(self) -> dict[str, Any]:
        counts: dict[str, Any] = {}
        for sample in self._training_set.samples:
            entry = counts.setdefault(sample.subset.image_dir.name, {"n_repeats": sample.repeats, "img_count": 0})
            entry["img_count"] += 1
        return counts

    def _tags(self) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        for sample in self._training_set.samples:
            tags = counts.setdefault(sample.subset.image_dir.name, {})
            for tag in filter(None, (part.strip().lower() for part in sample.caption_text.split(","))):
                tags[tag] = tags.get(tag, 0) + 1
        return counts

    def _datasets(self) -> list[dict[str, Any]]:
        return [
            {
                "is_dreambooth": True,
                "batch_size_per_device": dataset.batch_size,
                "resolution": list(dataset.resolution),
                "enable_bucket": dataset.buckets.enable_bucket,
                "subsets": [
                    {
                        "image_dir": subset.image_dir.name,
                        "num_repeats": subset.num_repeats,
                        "is_reg": subset.is_reg,
                        "class_tokens": subset.class_tokens,
                    }
                    for subset in dataset.subsets
                ],
            }
            for dataset in self._training_set.datasets
        ]


TASK = Task(
    name=TrainNetworkConfig.task,
    about="Train a LoRA on a Stable Diffusion 1 model.",
    config=TrainNetworkConfig,
    run=run,
    check=check,
    name_of=lambda config: str(config.saving.output_name),
    output_dir_of=lambda config: Path(config.saving.output_dir),
)
COMMAND = TASK.command()
