"""See what the model would see: the pictures as they are trained, each with the caption drawn for it, in a folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from trainer import host
from trainer.config import RunConfig, RunFolderOptions
from trainer.data.config import DataOptions, read_dataset
from trainer.errors import ConfigError, Problem, TrainerError
from trainer.events import Events, Finished, Sample, Stopped
from trainer.loop import LengthOptions
from trainer.run_folder import RunFolder, write_atomically
from trainer.schema import Options, opt
from trainer.tasks.base import Task, with_seed

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.data.dataset import TrainingSet, View
    from trainer.data.loader import LoadedBatch, Loader
    from trainer.data.sampler import MicroBatch, StepPlan

INDEX = "index.json"
ON_THE_PAGE = 12
"""So many pictures are also shown in the view of the run."""
KEYS = {"s": "next", "e": "epoch", "esc": "stop", "": "stop"}
HELP = "S: next batch   E: next epoch   Esc: end\n"


class ShownOptions(Options):
    """How much of the data set is written, and where to."""

    title: ClassVar[str] = "Look at the data set"

    debug_dir: Path | None = opt(None, widget="folder")
    """Folder for the pictures as the model gets them; a new or an empty one. Unset: debug_dataset in the run folder."""

    debug_epochs: int | None = opt(None, ge=1, unit="epochs")
    """Epochs to look at. Unset: 1, or at a terminal as many as you like."""

    debug_max_pictures: int = opt(500, ge=1, unit="pictures")
    """Pictures written at most; not counted at a terminal, where each batch waits for a key."""


class DebugOptions(ShownOptions):
    """The same as options of a training."""

    debug_dataset: bool = opt(False)
    """Train nothing, and write the pictures and captions as the model would get them to debug_dir: resized, cropped,
    mirrored, captions drawn. At a terminal S shows the next batch, E the next epoch, and Esc ends."""


@dataclass(frozen=True)
class DebugDatasetConfig(RunConfig):
    """Every option of debug_dataset."""

    task = "debug_dataset"

    data: DataOptions
    length: LengthOptions
    shown: ShownOptions
    run: RunFolderOptions


def run(config: DebugDatasetConfig, folder: RunFolder, events: Events) -> None:
    """Scan, and write what would be trained."""
    from trainer.data.dataset import TrainingSet
    from trainer.tasks.training import look_at  # which imports this module for its flag

    config = with_seed(config, "length")
    events.phase("scanning")
    dataset = read_dataset(config.data, sources=config.sources)
    training_set = TrainingSet.build(dataset, progress=lambda done, total: events.phase("scanning", done, total))
    for note in training_set.notes:
        events.warning(note)
    look_at(training_set, config, config.shown, folder, events)


def show(
    training_set: TrainingSet,
    plan_epoch: Callable[[int], Sequence[StepPlan]],
    options: ShownOptions,
    folder: RunFolder,
    events: Events,
    *,
    seed: int,
) -> None:
    """Write the batches of the first epochs; stops at the limit, at a request, or when Esc is pressed."""
    from trainer.data.loader import Loader

    if os.environ.get("RANK", "0") != "0":
        return
    began = time.monotonic()
    at_terminal = host.has_keyboard()
    writer = _Writer(_folder_for(options, folder), seed, folder, events)
    loader = Loader(training_set, seed=seed)
    last_epoch = options.debug_epochs or (None if at_terminal else 1)
    limit = sys.maxsize if at_terminal else options.debug_max_pictures
    stopped = False
    events.phase("writing")
    try:
        with _asking() if at_terminal else contextlib.nullcontext(_never_ask) as ask:
            for epoch in itertools.islice(itertools.count(), last_epoch):
                micro_batches = [micro for step in plan_epoch(epoch) for micro in step.micro_batches[0]]
                answer = _show_epoch(loader, micro_batches, writer, ask, limit)
                stopped = folder.take("stop")
                if stopped or answer == "stop" or writer.count >= limit:
                    break
    finally:
        writer.write_index()
    if stopped:
        events.emit(Stopped(writer.num_batches, ""))
    else:
        events.emit(Finished(writer.num_batches, str(writer.path), round(time.monotonic() - began, 1)))


def _show_epoch(
    loader: Loader, micro_batches: Sequence[MicroBatch], writer: _Writer, ask: Callable[[], str], limit: int
) -> str:
    """Write an epoch's batches until the answer after one of them is another than "next"."""
    total = min(limit, writer.count + sum(len(micro.slots) for micro in micro_batches))
    for number, batch in enumerate(loader.batches(micro_batches), start=1):
        writer.write(batch, number, of=len(micro_batches), room=limit - writer.count)
        writer.events.phase("writing", writer.count, total)
        if writer.count >= limit or writer.folder.asked("stop"):
            return "stop"
        if (answer := ask()) != "next":
            return answer
    return "next"


def _folder_for(options: ShownOptions, folder: RunFolder) -> Path:
    path = (options.debug_dir or folder.path / "debug_dataset").absolute()
    if problems := dir_problems(options):
        raise ConfigError(problems)
    path.mkdir(parents=True, exist_ok=True)
    return path


def dir_problems(options: ShownOptions) -> list[Problem]:
    """Only a new or empty folder is written to, so that nobody's files are replaced."""
    path = options.debug_dir
    if path is None or not path.exists():
        return []
    if not path.is_dir():
        return [Problem("debug_dir", "is a file, not a folder", str(path))]
    remedy = "Name a new folder, or leave debug_dir unset"
    return [Problem("debug_dir", "is not empty", str(path), remedy=remedy)] if any(path.iterdir()) else []


def _never_ask() -> str:
    return "next"


@contextlib.contextmanager
def _asking() -> Iterator[Callable[[], str]]:
    """A function that asks the person at the terminal what comes: "next", "epoch" or "stop"."""
    with host.keys() as read_key:

        def ask() -> str:
            sys.stderr.write(HELP)
            sys.stderr.flush()
            while (key := read_key()) not in KEYS:
                pass
            return KEYS[key]

        yield ask


@dataclass
class _Writer:
    """Writes batches as picture files with captions beside them, and what they are to index.json."""

    path: Path
    seed: int
    folder: RunFolder
    events: Events
    count: int = 0
    _batches: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    def write(self, batch: LoadedBatch, number: int, *, of: int, room: int) -> None:
        """One batch, `room` pictures of it at most."""
        assert batch.pixels_BCHW is not None
        sys.stderr.write(f"epoch {batch.epoch + 1}, batch {number} of {of}, {batch.bucket[0]}x{batch.bucket[1]}\n")
        pictures = []
        for place, (view, pixels_CHW) in enumerate(zip(batch.views, batch.pixels_BCHW, strict=True), start=1):
            if place > room:
                break
            name = f"epoch{batch.epoch + 1:03}_batch{number:05}_{place:02}"
            _as_image(pixels_CHW).save(self.path / f"{name}.png")
            (self.path / f"{name}.txt").write_text(view.caption + "\n", encoding="utf-8")
            sys.stderr.write(f"  {view.sample.picture.path}: {view.caption}\n")
            mask = f"{name}_mask.png" if batch.masks_BHW is not None and view.sample.has_mask else None
            if mask and batch.masks_BHW is not None:
                levels_HW = (batch.masks_BHW[place - 1] * 255).round()
                Image.fromarray(levels_HW.numpy().astype(np.uint8)).save(self.path / mask)
            pictures.append({"file": f"{name}.png", "mask": mask, **_facts(view)})
            self._show(f"{name}.png", view)
        self.count += len(pictures)
        entry = {"epoch": batch.epoch + 1, "batch": number, "bucket": batch.bucket, "pictures": pictures}
        self._batches.append(entry)

    def write_index(self) -> None:
        """index.json: everything written, in order."""
        index = {"version": 1, "seed": self.seed, "batches": self._batches}
        write_atomically(self.path / INDEX, json.dumps(index, ensure_ascii=False, indent=1) + "\n")

    def _show(self, name: str, view: View) -> None:
        """Say the first pictures as samples, so that the page shows them where they lie in the run folder."""
        shown = sum(len(batch["pictures"]) for batch in self._batches)
        if shown < ON_THE_PAGE and self.path.is_relative_to(self.folder.path):
            relative = (self.path / name).relative_to(self.folder.path).as_posix()
            self.events.emit(Sample(0, shown, relative, view.caption, self.seed))


def _facts(view: View) -> dict[str, Any]:
    return {
        "path": str(view.sample.picture.path),
        "caption": view.caption,
        "resized": view.geometry.resized,
        "crop": view.geometry.crop,
        "flipped": view.flipped,
        "colour_changed": view.colour is not None,
        "step": view.step + 1,
        "is_reg": view.sample.is_reg,
        "loss_weight": view.sample.loss_weight,
    }


def _as_image(pixels_CHW: Tensor) -> Image.Image:
    """What the model gets, in [-1, 1], as 8 bits again."""
    levels_HWC = ((pixels_CHW.permute(1, 2, 0) + 1.0) * 127.5).round().clamp(0, 255)
    return Image.fromarray(levels_HWC.numpy().astype(np.uint8))


def check(config: DebugDatasetConfig) -> list[Problem]:
    """Settings that cannot be right, before any picture is read."""
    problems = dir_problems(config.shown)
    try:
        read_dataset(config.data, sources=config.sources)
    except TrainerError as error:
        problems += error.problems
    return [replace(p, source=p.source or config.sources.get(p.option, "")) for p in problems]


TASK = Task(
    name=DebugDatasetConfig.task,
    about="Write pictures and captions as a model would get them to a folder, and train nothing.",
    config=DebugDatasetConfig,
    run=run,
    check=check,
    name_of=lambda config: "debug_dataset",
    output_dir_of=lambda config: None,
)
COMMAND = TASK.command()
