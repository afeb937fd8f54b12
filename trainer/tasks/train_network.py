"""Train an adapter (LoRA) on a Stable Diffusion model: `python -m trainer train_network`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from trainer.adapters.base import AdapterOptions
from trainer.config import RunConfig, RunOptions, Slot
from trainer.data.config import DataOptions, read_dataset
from trainer.errors import Problem, TrainerError
from trainer.families.base import ModelOptions, find_family, prediction_of
from trainer.hooks import resume
from trainer.hooks.resume import ResumeOptions
from trainer.hooks.sampling import SamplingOptions
from trainer.hooks.saving import SavingOptions, clash_problem, plan_saves
from trainer.hooks.tracking import TrackingOptions
from trainer.loop import LengthOptions
from trainer.maths.diffusion import TimestepOptions
from trainer.maths.losses import LossOptions, prediction_problems
from trainer.maths.noise import NoiseOptions
from trainer.memory import MemoryOptions, device_problems
from trainer.optim.optimizers import OptimizerOptions
from trainer.optim.schedules import ScheduleOptions, problems_with
from trainer.tasks.base import Task
from trainer.tasks.debug_dataset import DebugOptions, dir_problems
from trainer.tasks.metadata import MetadataOptions
from trainer.tasks.training import run


@dataclass(frozen=True)
class TrainNetworkConfig(RunConfig):
    """Every option of train_network, in the order of the form."""

    task = "train_network"

    model: ModelOptions
    data: DataOptions
    length: LengthOptions
    adapter: Annotated[AdapterOptions, Slot("trainer.adapters", "trainer.adapters.base:Adapter", key="network_module")]
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    noise: NoiseOptions
    timesteps: TimestepOptions
    loss: LossOptions
    memory: MemoryOptions
    sampling: SamplingOptions
    saving: SavingOptions
    metadata: MetadataOptions
    resume: ResumeOptions
    tracking: TrackingOptions
    debug: DebugOptions
    run: RunOptions

    def problems(self) -> Iterator[Problem]:
        """Options of different groups that do not go together."""
        if self.data.dataset_config is None and self.data.train_data_dir is None and self.data.in_json is None:
            remedy = "Name a dataset TOML with dataset_config, or a folder with train_data_dir"
            yield Problem("dataset_config", "no pictures are named", remedy=remedy)
        if self.data.caches_text and not self.adapter.network_train_unet_only:
            said = "cannot be used while the text encoder trains: its answers change with every step"
            name = "cache_text_encoder_outputs" + ("" if self.data.cache_text_encoder_outputs else "_to_disk")
            yield Problem(name, said, remedy="Set network_train_unet_only, or turn it off")
        if self.resume.resume and self.adapter.network_weights:
            remedy = "resume goes on with a run; network_weights begins a new one from a LoRA"
            yield Problem("network_weights", "cannot go with resume", str(self.adapter.network_weights), remedy=remedy)
        yield from problems_with(self.schedule, self.optimizer)


# before anything loads


def check(config: TrainNetworkConfig) -> list[Problem]:
    """What only the model's headers, the folders, the disk and torch can tell is wrong; no model is loaded."""
    from trainer.formats import prompts
    from trainer.optim import optimizers, schedules

    looks: list[Callable[[], Sequence[Problem]]] = [
        lambda: _model_problems(config),
        lambda: _raises(lambda: read_dataset(config.data, sources=config.sources)),
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


def _model_problems(config: TrainNetworkConfig) -> Sequence[Problem]:
    _, facts = find_family(config.model)
    return list(prediction_problems(config.loss, prediction_of(config.model, facts)))


def _raises(read: Callable[[], object]) -> Sequence[Problem]:
    """Something that raises what is wrong instead of returning it."""
    read()
    return ()


def _output_problems(config: TrainNetworkConfig) -> list[Problem]:
    from trainer import host

    folder = config.saving.output_dir
    if folder.exists() and not folder.is_dir():
        return [Problem("output_dir", "is a file, not a folder", str(folder))]
    if not host.is_writable(folder):
        return [Problem("output_dir", "cannot be written to", str(folder), remedy="Choose another folder")]
    final = plan_saves(config.saving, {}, first_step=0, total_steps=0)
    problem = clash_problem(config.saving, final)
    return [problem] if problem else []


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
