"""Draw regularisation pictures of a class with the base model: `python -m trainer make_regularisation`.

Picture n has its own seed, so a run that was stopped goes on with the same pictures it would have drawn.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from trainer import host
from trainer.config import RunConfig, RunFolderOptions
from trainer.data.buckets import Size
from trainer.data.config import DataOptions, read_dataset
from trainer.errors import ConfigError, Problem, TrainerError
from trainer.events import Events, Finished, Sample, Start, Stopped
from trainer.families.base import SAMPLER_NAMES, ModelOptions, SampleRequest, find_family, load_family
from trainer.hooks.sampling import SamplerOptions, save_png
from trainer.lazy import torch
from trainer.maths.rng import derive
from trainer.memory import MemoryOptions, device_problems
from trainer.run_folder import RunFolder, write_atomically
from trainer.schema import nearest, opt
from trainer.tasks.base import Task, write_record

RECORD = "make_regularisation"
"""Name of the PNG text that says how a picture was made."""
ON_THE_PAGE = 12
"""So many pictures are also shown in the view of the run."""


class RegularisationOptions(SamplerOptions):
    """What is drawn, and where to."""

    title: ClassVar[str] = "Regularisation pictures"

    class_prompt: str = opt(..., min_length=1, level="basic")
    """What the pictures show: the class without the trigger word, as in "dog" or "photo of a woman". It is also written
    beside each picture as its caption."""

    output_dir: Path = opt(..., level="basic", widget="folder")
    """Folder for the pictures, reg_00000.png and so on. What lies in it stays as it is; of this command's own pictures
    only missing ones are drawn."""

    reg_count: int = opt(100, ge=1, le=100_000, level="basic", unit="pictures")
    """How many pictures the folder shall hold. 100 give enough variety to begin with; more than the training pictures
    times their repeats are not used in one epoch."""

    negative_prompt: str = opt("")
    """What the pictures shall not show."""

    seed: int = opt(0, ge=0, le=2**32 - 1)
    """Start of all randomness: the same seed draws the same pictures."""

    sample_steps: int = opt(30, ge=1, le=1000, unit="steps")
    """Steps of the sampler. 20 to 50 is usual; fewer are faster and coarser."""

    scale: float = opt(7.5, ge=0, le=100)
    """How closely the prompt is followed (classifier-free guidance). 5 to 10 is usual."""

    def problems(self) -> Iterator[Problem]:
        """A sampler nobody knows."""
        if self.sample_sampler not in SAMPLER_NAMES:
            near = nearest(self.sample_sampler, SAMPLER_NAMES)
            remedy = f"Did you mean {near}?" if near else f"Known: {', '.join(SAMPLER_NAMES)}"
            yield Problem("sample_sampler", "is not a sampler this version knows", self.sample_sampler, remedy=remedy)


@dataclass(frozen=True)
class RegularisationConfig(RunConfig):
    """Every option of make_regularisation. The data options say which sizes are wanted."""

    task = "make_regularisation"

    model: ModelOptions
    pictures: RegularisationOptions
    data: DataOptions
    memory: MemoryOptions
    run: RunFolderOptions

    @property
    def has_data(self) -> bool:
        data = self.data
        return any(path is not None for path in (data.dataset_config, data.train_data_dir, data.in_json))


@dataclass(frozen=True)
class Drawing:
    """One picture to be: its place in the series, its files, and what is asked of the model."""

    index: int
    path: Path
    request: SampleRequest
    record: Mapping[str, Any]

    @property
    def caption_path(self) -> Path:
        return self.path.with_suffix(".txt")


def share_out(sizes: Mapping[Size, int], count: int) -> list[Size]:
    """`count` sizes in proportion to how often each is wanted, mixed; a longer list begins like a shorter one.

    Each place goes to the size that is furthest behind its share (the largest, then the first, of equals).
    """
    total, given = sum(sizes.values()), Counter[Size]()
    found = []
    for place in range(1, count + 1):
        size = max(sorted(sizes), key=lambda s: (sizes[s] * place - given[s] * total, sizes[s]))
        given[size] += 1
        found.append(size)
    return found


def wanted_sizes(config: RegularisationConfig, events: Events) -> dict[Size, int]:
    """Bucket -> uses of training pictures in an epoch; the resolution alone where no pictures are named."""
    if not config.has_data:
        return {config.data.resolution_wh(): 1}
    from trainer.data.dataset import TrainingSet

    dataset = read_dataset(config.data, sources=config.sources, without_reg=True)
    training_set = TrainingSet.build(dataset, progress=lambda done, total: events.phase("scanning", done, total))
    sizes = Counter[Size]()
    for sample in training_set.samples:
        sizes[sample.geometry.bucket] += sample.repeats
    return sizes


def drawings(config: RegularisationConfig, sizes: Sequence[Size]) -> list[Drawing]:
    """The whole series."""
    options = config.pictures
    model = Path(config.model.pretrained_model_name_or_path).name
    found = []
    for index, (width, height) in enumerate(sizes):
        seed = derive(options.seed, "regularisation", index) % 2**31
        how: dict[str, Any] = {"prompt": options.class_prompt, "negative_prompt": options.negative_prompt, "seed": seed}
        how |= {"steps": options.sample_steps, "scale": options.scale, "sampler": options.sample_sampler}
        request = SampleRequest(**how, width=width, height=height)
        path = options.output_dir / f"reg_{index:05}.png"
        found.append(Drawing(index, path, request, {"index": index, "model": model, **how}))
    return found


def folder_problems(series: Sequence[Drawing]) -> list[Problem]:
    """Files in the way: not of this command, or of another series of it. Nothing is ever replaced."""
    present = [(drawing, _record_of(drawing.path)) for drawing in series if drawing.path.exists()]
    foreign = [drawing.path.name for drawing, record in present if record is None]
    foreign += [drawing.caption_path.name for drawing in series if _is_foreign_caption(drawing)]
    problems = []
    if foreign:
        said = f"{_some(foreign)} would be in the way, and was not made by this command"
        problems.append(_in_the_way(series, said))
    for name in ("prompt", "negative_prompt", "model", "seed", "steps", "scale", "sampler"):
        other = [(d, record.get(name)) for d, record in present if record and record.get(name) != d.record[name]]
        if other:
            first, was = other[0]
            said = f"{_some([d.path.name for d, _ in other])} was made with {name} {was!r}, not {first.record[name]!r}"
            problems.append(_in_the_way(series, said))
    return problems


def _in_the_way(series: Sequence[Drawing], said: str) -> Problem:
    remedy = "Choose another folder; to go on with a series, ask for the same as before"
    return Problem("output_dir", said, str(series[0].path.parent), remedy=remedy)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _record_of(path: Path) -> dict[str, Any] | None:
    """How a picture was made; None for a picture of somebody else."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            record = json.loads(image.info[RECORD])
    except (OSError, ValueError, KeyError, SyntaxError):
        return None
    return record if isinstance(record, dict) else None


def _is_foreign_caption(drawing: Drawing) -> bool:
    """A caption without its picture that says something else; beside a picture it may have been edited."""
    if drawing.path.exists() or not drawing.caption_path.exists():
        return False
    return drawing.caption_path.read_bytes() != _caption(drawing)


def _caption(drawing: Drawing) -> bytes:
    return f"{drawing.request.prompt}\n".encode()


# ---------------------------------------------------------------- the task


def run(config: RegularisationConfig, folder: RunFolder, events: Events) -> None:
    """Draw what is missing of the series."""
    if os.environ.get("RANK", "0") != "0":
        return
    began = time.monotonic()
    options = config.pictures
    events.phase("scanning")
    series = drawings(config, share_out(wanted_sizes(config, events), options.reg_count))
    if problems := folder_problems(series):
        raise ConfigError(problems)
    missing = [drawing for drawing in series if not drawing.path.exists()]
    _say_what_is_kept(series, events)

    events.phase("loading")
    device, draw = _drawer(config) if missing else ("cpu", None)
    write_record(config, folder, {"device": device})
    options.output_dir.mkdir(parents=True, exist_ok=True)
    events.emit(_start(config, series, missing, device))
    done = len(series) - len(missing)
    for drawing in missing:
        if folder.take("stop"):
            events.emit(Stopped(done, ""))
            return
        assert draw is not None
        events.phase("drawing", done, len(series))
        _keep(drawing, draw(drawing.request), folder, events)
        done += 1
    events.phase("drawing", done, len(series))
    events.emit(Finished(done, str(options.output_dir.absolute()), round(time.monotonic() - began, 1)))


def _drawer(config: RegularisationConfig) -> tuple[str, Callable[[SampleRequest], Image.Image]]:
    """(device, what draws a picture): the base model, loaded."""
    from accelerate import Accelerator

    if config.memory.num_cpu_threads:
        torch.set_num_threads(config.memory.num_cpu_threads)
    device = Accelerator(mixed_precision=config.memory.mixed_precision).device
    family = load_family(config.model, dtype=config.memory.weight_dtype, device=device)
    return str(device), lambda request: family.sample(family.denoiser, family.text_encoders, request)


def _say_what_is_kept(series: Sequence[Drawing], events: Events) -> None:
    """Pictures of a series begun with another data set may have sizes that are no longer wanted."""
    wanted = {(d.request.width, d.request.height) for d in series}
    other = []
    for drawing in series:
        if drawing.path.exists():
            with Image.open(drawing.path) as image:
                other += [drawing.path.name] if image.size not in wanted else []
    if other:
        events.warning(f"kept as they are, in a size that the data set does not use now: {_some(other)}", "output_dir")


def _start(config: RegularisationConfig, series: Sequence[Drawing], missing: Sequence[Drawing], device: str) -> Start:
    return Start(
        task=config.task,
        output_name=config.pictures.output_dir.name,
        total_steps=len(series),
        steps_per_epoch=0,
        epochs=0,
        first_step=len(series) - len(missing),
        num_pictures=len(series),
        device=device,
    )


def _keep(drawing: Drawing, picture: Image.Image, folder: RunFolder, events: Events) -> None:
    """Write caption and picture; the picture last, since its presence says that both are done."""
    write_atomically(drawing.caption_path, _caption(drawing))
    save_png(picture, drawing.path, drawing.request, texts={RECORD: json.dumps(drawing.record, ensure_ascii=False)})
    if drawing.index < ON_THE_PAGE:
        folder.samples.mkdir(exist_ok=True)
        picture.save(folder.samples / drawing.path.name)
        shown = f"{folder.samples.name}/{drawing.path.name}"
        events.emit(Sample(0, drawing.index, shown, drawing.request.prompt, drawing.request.seed or 0))


def check(config: RegularisationConfig) -> list[Problem]:
    """What model, folders and data set alone can tell is wrong; nothing is loaded."""
    problems: list[Problem] = []
    try:
        family, _ = find_family(config.model)
        if not config.has_data:
            problems += _size_problems(config.data.resolution_wh(), family.latent_factor)
    except TrainerError as error:
        problems += error.problems
    try:
        if config.has_data:
            read_dataset(config.data, sources=config.sources, without_reg=True)
    except TrainerError as error:
        problems += error.problems
    problems += device_problems(config.memory)
    folder = config.pictures.output_dir
    if folder.exists() and not folder.is_dir():
        problems.append(Problem("output_dir", "is a file, not a folder", str(folder)))
    elif not host.is_writable(folder):
        problems.append(Problem("output_dir", "cannot be written to", str(folder), remedy="Choose another folder"))
    else:
        # sizes do not matter here: they are not compared
        problems += folder_problems(drawings(config, [(8, 8)] * config.pictures.reg_count))
    return [replace(p, source=p.source or config.sources.get(p.option, "")) for p in problems]


def _size_problems(size: Size, factor: int) -> list[Problem]:
    wrong = [str(side) for side in size if side % factor]
    return [Problem("resolution", f"should be a multiple of {factor} pixels", side) for side in wrong]


TASK = Task(
    name=RegularisationConfig.task,
    about="Draw regularisation pictures of a class with the base model.",
    config=RegularisationConfig,
    run=run,
    check=check,
    name_of=lambda config: f"regularisation-{config.pictures.output_dir.name or 'pictures'}",
    output_dir_of=lambda config: config.pictures.output_dir,
)
COMMAND = TASK.command()
