"""Which pictures are trained and how: the data flags, the dataset TOML, and what both together mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from trainer.data.buckets import BucketOptions, Size
from trainer.data.cache_options import CacheOptions
from trainer.data.captions import CaptionOptions
from trainer.data.images import PixelOptions
from trainer.data.split import SplitOptions
from trainer.errors import ConfigError, Problem
from trainer.schema import Options, opt


class PictureOptions(PixelOptions, CaptionOptions):
    """What can be said of every folder of pictures: by flag, for all datasets, for one, or for one folder."""

    caption_extension: str = opt(".caption", min_length=1, level="basic", aliases=["caption_extention"])
    """Ending of the caption files that lie beside the pictures; .txt and .caption are usual."""

    missing_caption: Literal["empty", "class_tokens", "error"] = opt("empty")
    """What to do about pictures without a caption of their own. empty: they get the class_tokens, or are trained with
    an empty caption, and the plan says how many. class_tokens: an error where there are none. error: every picture
    needs its own caption."""


class FolderOptions(Options):
    """Where the pictures are."""

    train_data_dir: Path | None = opt(None, level="basic", widget="folder")
    """Folder with the training folders, each named <repeats>_<name> <class>, as in "10_mychar girl": its pictures are
    used 10 times an epoch, and the text after the first _ is the caption of pictures without one."""

    reg_data_dir: Path | None = opt(None, widget="folder")
    """Folder with regularisation folders, named like training folders: pictures of the class in general, so that the
    model does not forget it. As many of them are used as of the training pictures, in turn."""

    dataset_config: Path | None = opt(None, widget="path")
    """TOML file that describes the datasets; train_data_dir, reg_data_dir and in_json are then not used, and what it
    sets wins over the flags."""

    in_json: Path | None = opt(None, widget="path")
    """Metadata file of fine-tuning (JSON, or JSONL) that names pictures with their captions and tags; train_data_dir is
    then the folder its names are relative to. dataset_config does the same with metadata_file."""

    dataset_repeats: int = opt(1, ge=1, step=1)
    """How many times an epoch each picture of in_json is used, and of a dataset TOML where it sets no num_repeats."""

    resolution: str | int = opt("512", level="basic")
    """Size to train at in pixels, one number or width,height: 512 for SD 1, 768 for SD 2, 1024 for SDXL."""

    train_batch_size: int = opt(1, ge=1, step=1, level="basic", unit="pictures")
    """Pictures per micro-batch and process. More is faster for each picture and needs more memory; 1 to 8 is usual."""


class LoadingOptions(CacheOptions):
    """How pictures reach the model, whatever they are."""

    prior_loss_weight: float = opt(1.0, ge=0, step=0.1)
    """Weight of the loss of regularisation pictures; that of training pictures is 1. 1.0 is usual."""

    max_data_loader_n_workers: int = opt(0, ge=0, step=1, unit="processes")
    """Processes that decode pictures while the model trains; 0 decodes in the trainer itself. The result does not
    depend on it. kohya's default is 8; 2 to 4 help when pictures are large and latents are not cached."""

    persistent_data_loader_workers: bool = opt(False)
    """Keep the decoding processes from one epoch to the next. They stay for the whole run either way; kohya's flag is
    accepted."""


class DataOptions(LoadingOptions, SplitOptions, PictureOptions, BucketOptions, FolderOptions):
    """The flags; a dataset TOML says the same of its tables and wins."""

    title: ClassVar[str] = "Data"

    def resolution_wh(self) -> Size:
        """resolution as (width, height)."""
        numbers = [int(part) for part in str(self.resolution).split(",")]
        return (numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])

    def problems(self) -> Iterator[Problem]:
        unreadable = list(self.resolution_problems())
        yield from unreadable
        if self.dataset_config is not None or unreadable:
            return  # its tables may say otherwise: read_dataset knows
        yield from self.problems_for(self.resolution_wh())
        yield from self.pixel_problems(cached=self.caches_latents, bucketed=self.enable_bucket)

    def resolution_problems(self) -> Iterator[Problem]:
        """Whether resolution is one or two numbers."""
        parts = str(self.resolution).split(",")
        if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) >= 8 for part in parts):
            remedy = "Write 512 or 512,768 (width,height)"
            message = "should be one or two whole numbers of at least 8"
            yield Problem("resolution", message, str(self.resolution), remedy=remedy)


class SubsetDefaults(PictureOptions):
    """What a folder's table can say, and the tables above it for all their folders."""

    title: ClassVar[str] = "Keys of every table"

    num_repeats: int = opt(1, ge=0, step=1)
    """How many times an epoch each picture is used; 0 leaves the folder out."""

    class_tokens: str = opt("")
    """Caption of pictures without a caption file."""

    cache_info: bool = opt(False)
    """kohya's switch to remember sizes and captions in a file. Not needed: what was found about a picture is always
    remembered, by its file's signature, and captions are always read anew. The run says so."""


class SubsetOptions(SubsetDefaults):
    """A [[datasets.subsets]] table."""

    title: ClassVar[str] = "More keys of [[datasets.subsets]]"

    image_dir: Path | None = opt(None, widget="folder")
    """Folder with the pictures; relative to the current folder, else to the folder of the dataset file. With a
    metadata_file: what its names are relative to; unset, the metadata file's own folder."""

    is_reg: bool = opt(False)
    """These are regularisation pictures."""

    metadata_file: Path | None = opt(None, widget="path")
    """Metadata file of fine-tuning (JSON, or JSONL): it names the pictures, with captions and tags. Relative like
    image_dir. All folders of a dataset have one, or none has."""

    conditioning_data_dir: Path | None = opt(None, widget="folder")
    """Folder with one mask or conditioning picture for each picture, of the same name without its ending. Relative
    like image_dir. All folders of a dataset have one, or none has."""


class DatasetTableOptions(SubsetDefaults, SplitOptions, BucketOptions):
    """A [[datasets]] table, and [general] for all of them."""

    title: ClassVar[str] = "More keys of [general] and [[datasets]]"

    batch_size: int = opt(1, ge=1, step=1, unit="pictures")
    """Pictures per micro-batch and process; train_batch_size by flag."""

    resolution: int | list[int] = opt(512)
    """Size to train at in pixels: a number, or [width, height]."""


Kind = Literal["folder", "metadata"]


@dataclass(frozen=True)
class Subset:
    """One folder or metadata file, with every option settled. source: the line that names it, "" when a flag does.

    metadata_file: where pictures and captions are named, relative to image_dir; None when they lie in image_dir.
    conditioning_data_dir: where the masks or conditioning pictures are, None without.
    """

    image_dir: Path
    num_repeats: int
    is_reg: bool
    class_tokens: str
    pictures: PictureOptions
    source: str = ""
    metadata_file: Path | None = None
    conditioning_data_dir: Path | None = None

    @property
    def kind(self) -> Kind:
        return "folder" if self.metadata_file is None else "metadata"

    @property
    def place(self) -> Path:
        """What people know it by: its metadata file, or its folder."""
        return self.metadata_file or self.image_dir


@dataclass(frozen=True)
class Dataset:
    """Folders that are trained at one resolution and batch size."""

    resolution: Size
    batch_size: int
    buckets: BucketOptions
    subsets: tuple[Subset, ...]
    split: SplitOptions = SplitOptions()


@dataclass(frozen=True)
class DatasetConfig:
    """Everything TrainingSet.build needs. notes: what the user should be told (overrides, folders left out)."""

    datasets: tuple[Dataset, ...]
    prior_loss_weight: float = 1.0
    cache_latents: bool = False
    notes: tuple[str, ...] = ()

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The subsets of all datasets, in order."""
        return tuple(subset for dataset in self.datasets for subset in dataset.subsets)


def read_dataset(
    options: DataOptions, *, sources: Mapping[str, str] | None = None, without_reg: bool = False
) -> DatasetConfig:
    """Settle flags and dataset TOML into one description; raises ConfigError with every problem.

    sources: option name -> where it was set, for the options that someone set. without_reg: leave regularisation
    pictures out, for who is about to make them.
    """
    from trainer.data.reader import Reader  # which settles the classes declared here

    problems = list(options.resolution_problems())
    if problems:
        raise ConfigError(_with_sources(problems, sources or {}))
    reader = Reader(options, sources or {}, without_reg=without_reg)
    datasets = reader.from_file() if options.dataset_config else reader.from_flags()
    reader.check(datasets)
    if reader.problems:
        raise ConfigError(_with_sources(reader.problems, sources or {}))
    notes = tuple(dict.fromkeys(reader.notes))
    return DatasetConfig(datasets, options.prior_loss_weight, options.caches_latents, notes)


def _with_sources(problems: list[Problem], sources: Mapping[str, str]) -> list[Problem]:
    named = (p if p.source else replace(p, source=sources.get(p.option, "")) for p in problems)
    return list(dict.fromkeys(named))
