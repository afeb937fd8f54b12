"""What every training is configured by, whatever its method, and what is looked at before anything loads."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import RunConfig, RunOptions
from trainer.data.config import DataOptions, read_dataset
from trainer.errors import Problem, TrainerError
from trainer.families.base import ModelOptions, doubts, find_family, prediction_of
from trainer.hooks import resume
from trainer.hooks.resume import ResumeOptions
from trainer.hooks.sampling import SamplingOptions
from trainer.hooks.saving import SavingOptions, clash_problem, plan_saves
from trainer.hooks.tracking import TrackingOptions
from trainer.hooks.validation import ValidationOptions
from trainer.loop import LengthOptions
from trainer.maths.diffusion import TimestepOptions
from trainer.maths.losses import LossOptions, prediction_problems
from trainer.maths.noise import NoiseOptions
from trainer.memory import MemoryOptions, device_problems
from trainer.optim.averaged import AverageOptions, averaging_problems
from trainer.optim.optimizers import OptimizerOptions
from trainer.optim.schedules import ScheduleOptions, problems_with
from trainer.schema import Options
from trainer.tasks.debug_dataset import DebugOptions, dir_problems
from trainer.tasks.metadata import MetadataOptions

if TYPE_CHECKING:
    import torch

    from trainer.data.dataset import TrainingSet
    from trainer.families.base import Family
    from trainer.methods.base import Method


@dataclass(frozen=True)
class TrainingConfig(RunConfig, ABC):
    """The options of a training, in the order of the form; a task puts its own in place of `method`, and may put larger
    groups in place of others."""

    model: ModelOptions
    data: DataOptions
    length: LengthOptions
    method: Options
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    average: AverageOptions
    noise: NoiseOptions
    timesteps: TimestepOptions
    loss: LossOptions
    memory: MemoryOptions
    sampling: SamplingOptions
    validation: ValidationOptions
    saving: SavingOptions
    metadata: MetadataOptions
    resume: ResumeOptions
    tracking: TrackingOptions
    debug: DebugOptions
    run: RunOptions

    @abstractmethod
    def build_method(self, family: Family) -> Method:
        """The method over a loaded family."""

    def adapt(self, training_set: TrainingSet) -> TrainingSet:
        """The pictures and captions as this training uses them, with what there is to say of them in `notes`."""
        return training_set

    @property
    def weight_dtype(self) -> torch.dtype:
        """The number format the model is loaded in: frozen weights may be of half precision."""
        return self.memory.weight_dtype

    @property
    @abstractmethod
    def keeps_text_encoder_by(self) -> str:
        """What would keep the text encoder from training, as a remedy; "" where it does not train."""

    def problems(self) -> Iterator[Problem]:
        """Options of different groups that do not go together."""
        if self.data.dataset_config is None and self.data.train_data_dir is None and self.data.in_json is None:
            remedy = "Name a dataset TOML with dataset_config, or a folder with train_data_dir"
            yield Problem("dataset_config", "no pictures are named", remedy=remedy)
        if self.data.caches_text and (remedy := self.keeps_text_encoder_by):
            said = "cannot be used while the text encoder trains: its answers change with every step"
            name = "cache_text_encoder_outputs" + ("" if self.data.cache_text_encoder_outputs else "_to_disk")
            yield Problem(name, said, remedy=f"{remedy}, or turn it off")
        yield from problems_with(self.schedule, self.optimizer)
        yield from averaging_problems(self.average, self.optimizer.trait, self.optimizer.kind)


def check(config: TrainingConfig) -> list[Problem]:
    """What only the model's headers, the folders, the disk and torch can tell is wrong; no model is loaded."""
    from trainer.formats import prompts
    from trainer.optim import optimizers, schedules

    looks: list[Callable[[], Sequence[Problem]]] = [
        lambda: _model_problems(config),
        lambda: _dataset_problems(config),
        lambda: _raises(lambda: config.resume.resume and resume.read_point(Path(config.resume.resume))),
        lambda: device_problems(config.memory),
        lambda: optimizers.argument_problems(config.optimizer),
        lambda: schedules.argument_problems(config.schedule),
        lambda: _output_problems(config),
        lambda: list(dir_problems(config.debug)),
        lambda: prompts.read_prompts(Path(config.sampling.sample_prompts))[1] if config.sampling.sample_prompts else [],
    ]
    problems: list[Problem] = []
    for look in looks:
        try:
            problems.extend(look())
        except TrainerError as error:
            problems.extend(error.problems)
    sources = config.sources
    return [dataclasses.replace(p, source=p.source or sources.get(p.option, "")) for p in problems]


def _model_problems(config: TrainingConfig) -> Sequence[Problem]:
    _, facts = find_family(config.model)
    found = prediction_problems(config.loss, prediction_of(config.model, facts))
    return [*found, *doubts(config.model, facts)]


def _dataset_problems(config: TrainingConfig) -> Sequence[Problem]:
    """What the dataset file says wrong, and a validation without pictures: each of its tables may keep some."""
    datasets = read_dataset(config.data, sources=config.sources).datasets
    return () if any(dataset.split.validation_split for dataset in datasets) else list(config.validation.unused())


def _raises(read: Callable[[], object]) -> Sequence[Problem]:
    """Something that raises what is wrong instead of returning it."""
    read()
    return ()


def _output_problems(config: TrainingConfig) -> list[Problem]:
    from trainer import host

    folder = config.saving.output_dir
    if folder.exists() and not folder.is_dir():
        return [Problem("output_dir", "is a file, not a folder", str(folder))]
    if not host.is_writable(folder):
        return [Problem("output_dir", "cannot be written to", str(folder), remedy="Choose another folder")]
    final = plan_saves(config.saving, {}, first_step=0, total_steps=0)
    problem = clash_problem(config.saving, final)
    return [problem] if problem else []
