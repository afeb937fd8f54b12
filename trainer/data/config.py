"""Which pictures are trained and how: the data flags, the dataset TOML, and what both together mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from trainer.data.buckets import BucketOptions, Size
from trainer.data.cache_options import CacheOptions
from trainer.data.captions import CaptionOptions
from trainer.data.dataset_file import DatasetFile, read_dataset_file
from trainer.data.images import PixelOptions
from trainer.data.scan import folder_problem, list_pictures, normal_extension
from trainer.errors import ConfigError, Problem
from trainer.schema import Options, nearest, opt, validate


class PictureOptions(PixelOptions, CaptionOptions):
    """What can be said of every folder of pictures: by flag, for all datasets, for one, or for one folder."""

    caption_extension: str = opt(".caption", min_length=1, level="basic", aliases=["caption_extention"])
    """Ending of the caption files that lie beside the pictures; .txt and .caption are usual."""


class FolderOptions(Options):
    """Where the pictures are."""

    train_data_dir: Path | None = opt(None, level="basic", widget="folder")
    """Folder with the training folders, each named <repeats>_<name> <class>, as in "10_mychar girl": its pictures are
    used 10 times an epoch, and the text after the first _ is the caption of pictures without one."""

    reg_data_dir: Path | None = opt(None, widget="folder")
    """Folder with regularisation folders, named like training folders: pictures of the class in general, so that the
    model does not forget it. As many of them are used as of the training pictures, in turn."""

    dataset_config: Path | None = opt(None, widget="path")
    """TOML file that describes the datasets; train_data_dir and reg_data_dir are then not used, and what it sets wins
    over the flags."""

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


class DataOptions(LoadingOptions, PictureOptions, BucketOptions, FolderOptions):
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

    num_repeats: int = opt(1, ge=0, step=1)
    """How many times an epoch each picture is used; 0 leaves the folder out."""

    class_tokens: str = opt("")
    """Caption of pictures without a caption file."""


class SubsetOptions(SubsetDefaults):
    """A [[datasets.subsets]] table."""

    image_dir: Path = opt(..., widget="folder")
    """Folder with the pictures; relative to the current folder, else to the folder of the dataset file."""

    is_reg: bool = opt(False)
    """These are regularisation pictures."""


class DatasetTableOptions(SubsetDefaults, BucketOptions):
    """A [[datasets]] table, and [general] for all of them."""

    batch_size: int = opt(1, ge=1, step=1, unit="pictures")
    """Pictures per micro-batch and process; train_batch_size by flag."""

    resolution: int | list[int] = opt(512)
    """Size to train at in pixels: a number, or [width, height]."""


@dataclass(frozen=True)
class Subset:
    """One folder, with every option settled. source: the line that names it, "" when a flag does."""

    image_dir: Path
    num_repeats: int
    is_reg: bool
    class_tokens: str
    pictures: PictureOptions
    source: str = ""


@dataclass(frozen=True)
class Dataset:
    """Folders that are trained at one resolution and batch size."""

    resolution: Size
    batch_size: int
    buckets: BucketOptions
    subsets: tuple[Subset, ...]


@dataclass(frozen=True)
class DatasetConfig:
    """Everything TrainingSet.build needs. notes: what the user should be told (overrides, folders left out)."""

    datasets: tuple[Dataset, ...]
    prior_loss_weight: float = 1.0
    cache_latents: bool = False
    notes: tuple[str, ...] = ()


def read_dataset(options: DataOptions, *, sources: Mapping[str, str] | None = None) -> DatasetConfig:
    """Settle flags and dataset TOML into one description; raises ConfigError with every problem.

    sources: option name -> where it was set, for the options that someone set.
    """
    problems = list(options.resolution_problems())
    if problems:
        raise ConfigError(_with_sources(problems, sources or {}))
    reader = _Reader(options, sources or {})
    datasets = reader.from_file() if options.dataset_config else reader.from_folders()
    reader.check(datasets)
    if reader.problems:
        raise ConfigError(_with_sources(reader.problems, sources or {}))
    notes = tuple(dict.fromkeys(reader.notes))
    return DatasetConfig(datasets, options.prior_loss_weight, options.caches_latents, notes)


def _with_sources(problems: list[Problem], sources: Mapping[str, str]) -> list[Problem]:
    named = (p if p.source else replace(p, source=sources.get(p.option, "")) for p in problems)
    return list(dict.fromkeys(named))


_FLAG_OF_KEY = {"batch_size": "train_batch_size"}


class _Reader:
    """Collects problems and notes on the way from flags and tables to datasets."""

    def __init__(self, options: DataOptions, sources: Mapping[str, str]) -> None:
        self.options = options
        self.sources = sources
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    # --- folders named <repeats>_<name> <class> ---

    def from_folders(self) -> tuple[Dataset, ...]:
        options = self.options
        if options.train_data_dir is None:
            remedy = "Set train_data_dir, or dataset_config"
            self.problems.append(Problem("train_data_dir", "no pictures to train are named", remedy=remedy))
            return ()
        subsets = self._named_folders(options.train_data_dir, "train_data_dir", is_reg=False)
        if options.reg_data_dir is not None:
            subsets += self._named_folders(options.reg_data_dir, "reg_data_dir", is_reg=True)
        if self.problems:
            return ()
        buckets: BucketOptions = _part(BucketOptions, options.model_dump())
        self.problems += buckets.problems_for(options.resolution_wh())
        return (Dataset(options.resolution_wh(), options.train_batch_size, buckets, tuple(subsets)),)

    def _named_folders(self, parent: Path, option: str, *, is_reg: bool) -> list[Subset]:
        if not parent.is_dir():
            message = "is a file, not a folder" if parent.exists() else "this folder does not exist"
            self.problems.append(Problem(option, message, str(parent)))
            return []
        subsets: list[Subset] = []
        for folder in sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")):
            repeats, underscore, tokens = folder.name.partition("_")
            if not underscore or not repeats.isdecimal():
                self.notes.append(f"{folder} is left out: its name does not begin with <repeats>_")
            elif int(repeats) < 1:
                self.notes.append(f"{folder} is left out: its name asks for {repeats} repeats")
            else:
                pictures = _part(PictureOptions, self.options.model_dump())
                subsets.append(Subset(folder, int(repeats), is_reg, tokens.strip(), pictures))
        if not subsets:
            inside = f"{len(list_pictures(parent))} pictures lie in it directly. " if list_pictures(parent) else ""
            remedy = f"{inside}Put the pictures into a folder inside it, named for example 10_mychar girl"
            message = "holds no folder named <repeats>_<name>"
            self.problems.append(Problem(option, message, str(parent), remedy=remedy))
        return subsets

    # --- dataset TOML ---

    def from_file(self) -> tuple[Dataset, ...]:
        path = self.options.dataset_config
        assert path is not None
        file = read_dataset_file(path)
        for name in ("train_data_dir", "reg_data_dir"):
            if self.options.model_dump()[name] is not None:
                self.notes.append(f"{name} is not used: {path} describes the datasets")
        self._check_names(file, file.tables, (), ("general", "datasets"))
        general = self._table(file, file.table("general"), ("general",), DatasetTableOptions)
        datasets = tuple(
            self._dataset(file, raw, ("datasets", index), general) for index, raw in enumerate(file.array("datasets"))
        )
        self.problems += file.problems
        if not datasets and not self.problems:
            remedy = "Add a [[datasets]] table with a [[datasets.subsets]] table in it"
            self.problems.append(Problem("dataset_config", f"{path} names no datasets", remedy=remedy))
        return datasets

    def _dataset(
        self, file: DatasetFile, raw: Mapping[str, Any], where: tuple[str | int, ...], general: Mapping[str, Any]
    ) -> Dataset:
        own = {key: value for key, value in raw.items() if key != "subsets"}
        table = self._table(file, own, where, DatasetTableOptions)
        subsets = [
            self._subset(file, inner, (*where, "subsets", index), table, general)
            for index, inner in enumerate(file.array("subsets", raw, where))
        ]
        if not subsets:
            source = file.place(where)
            self.problems.append(Problem("subsets", "this dataset has no [[datasets.subsets]] table", source=source))
        values = {**self.options.model_dump(), **general, **table}
        resolution = values["resolution"]
        if isinstance(resolution, list) and len(resolution) == 2:
            size = (resolution[0], resolution[1])
        else:
            size = self.options.resolution_wh() if not isinstance(resolution, int) else (resolution, resolution)
        batch_size = values.get("batch_size", self.options.train_batch_size)
        buckets: BucketOptions = _part(BucketOptions, values)
        places = {key: file.place(("general",), key) for key in general} | {
            key: file.place(where, key) for key in table
        }
        self.problems += [replace(p, source=places.get(p.option, "")) for p in buckets.problems_for(size)]
        return Dataset(size, batch_size, buckets, self._without_twins([s for s in subsets if s is not None]))

    def _subset(
        self,
        file: DatasetFile,
        raw: Mapping[str, Any],
        where: tuple[str | int, ...],
        dataset: Mapping[str, Any],
        general: Mapping[str, Any],
    ) -> Subset | None:
        table = self._table(file, raw, where, SubsetOptions)
        if "image_dir" not in table:
            return None
        values: dict[str, Any] = {"num_repeats": 1, "is_reg": False, "class_tokens": ""}
        values |= {**self.options.model_dump(), **general, **dataset, **table}
        folder = _find_folder(Path(table["image_dir"]), file.path)
        if values["num_repeats"] < 1:
            self.notes.append(f"{folder} is left out: num_repeats is 0 ({file.place(where, 'num_repeats')})")
            return None
        problem = folder_problem(folder)
        if problem:
            self.problems.append(Problem("image_dir", problem, str(folder), file.place(where, "image_dir")))
        pictures = _part(PictureOptions, values)
        source = file.place(where)
        return Subset(folder, values["num_repeats"], values["is_reg"], values["class_tokens"], pictures, source)

    def _table(
        self, file: DatasetFile, raw: Mapping[str, Any], where: tuple[str | int, ...], owner: type[Options]
    ) -> dict[str, Any]:
        """The keys a table sets, checked; those with a problem are left out. Notes the flags it overrides."""
        self._check_names(file, raw, where, tuple(owner.model_fields))
        known = {key: value for key, value in raw.items() if key in owner.model_fields}
        _, found = validate(owner, known)
        if owner is DatasetTableOptions:
            found = [_resolution_problem(known) if p.option == "resolution" else p for p in found]
            if not any(p.option == "resolution" for p in found) and not _is_resolution(known.get("resolution", 512)):
                found.append(_resolution_problem(known))
        self.problems += [replace(p, source=file.place(where, p.option)) for p in found]
        good = {key: value for key, value in known.items() if key not in {p.option for p in found}}
        flags = {**self.options.model_dump(), "resolution": self.options.resolution_wh()}
        for key, value in good.items():
            flag = _FLAG_OF_KEY.get(key, key)
            if self._was_meant(flag) and flag in flags and not _same(value, flags[flag]):
                said = f"{self.sources[flag]} says {_show(flags[flag])}"
                self.notes.append(f"{key} = {_show(value)} of {file.place(where, key)} is used; {said}")
        return good

    def _was_meant(self, name: str) -> bool:
        """Whether somebody chose the value; a run's own config.toml states every option, defaults too."""
        source = self.sources.get(name, "")
        return source.startswith("--") or (bool(source) and not _is_default(self.options, name))

    def _check_names(
        self, file: DatasetFile, raw: Mapping[str, Any], where: tuple[str | int, ...], known: tuple[str, ...]
    ) -> None:
        for key in raw:
            if key in known:
                continue
            near = nearest(key, known)
            remedy = f"Did you mean {near}?" if near else ""
            title = f"[{'.'.join(str(part) for part in where if isinstance(part, str))}]" if where else "a dataset file"
            self.problems.append(Problem(key, f"is not a key of {title}", None, file.place(where, key), remedy))

    def _without_twins(self, subsets: list[Subset]) -> tuple[Subset, ...]:
        """A folder named a second time in one dataset is left out."""
        first: dict[Path, Subset] = {}
        for subset in subsets:
            kept = first.setdefault(subset.image_dir.resolve(), subset)
            if kept is not subset:
                self.notes.append(f"{subset.image_dir} of {subset.source} is left out: {kept.source} names it too")
        return tuple(first.values())

    # --- both ---

    def check(self, datasets: tuple[Dataset, ...]) -> None:
        """What is wrong with the settled datasets, and what of them should be said."""
        for dataset in datasets:
            self._note_rounded_sides(dataset.buckets)
            if dataset.subsets and all(subset.is_reg for subset in dataset.subsets):
                message = "a dataset has regularisation pictures and no training pictures"
                self.problems.append(Problem("is_reg", message, source=dataset.subsets[0].source))
            for subset in dataset.subsets:
                found = subset.pictures.pixel_problems(
                    cached=self.options.caches_latents, bucketed=dataset.buckets.enable_bucket
                )
                self.problems += [replace(problem, source=subset.source) for problem in found]
        if datasets and not any(dataset.subsets for dataset in datasets) and not self.problems:
            self.problems.append(Problem("num_repeats", "every folder is left out", remedy=" ".join(self.notes)))

    def _note_rounded_sides(self, buckets: BucketOptions) -> None:
        if not buckets.enable_bucket or buckets.bucket_no_upscale:
            return
        low, high = buckets.sides()
        for name, given, used in (
            ("min_bucket_reso", buckets.min_bucket_reso, low),
            ("max_bucket_reso", buckets.max_bucket_reso, high),
        ):
            if given != used:
                self.notes.append(f"{name} {given} is used as {used}, a multiple of bucket_reso_steps")


def _part(owner: type[Any], values: Mapping[str, Any]) -> Any:
    """Those of checked values that belong to one group, as that group."""
    own = {name: values[name] for name in owner.model_fields if name in values}
    if "caption_extension" in own:
        own["caption_extension"] = normal_extension(own["caption_extension"])
    return owner.model_validate(own)


def _find_folder(folder: Path, file: Path) -> Path:
    beside = file.parent / folder
    return beside if not folder.exists() and beside.exists() else folder


def _is_resolution(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value, value]
    return len(numbers) == 2 and all(type(n) is int and n >= 8 for n in numbers)


def _resolution_problem(values: Mapping[str, Any]) -> Problem:
    message = "should be a whole number of at least 8, or [width, height]"
    return Problem("resolution", message, repr(values["resolution"]))


def _is_default(options: Options, name: str) -> bool:
    field = type(options).model_fields.get(name)
    return field is not None and bool(getattr(options, name) == field.default)


def _same(value: Any, flag: Any) -> bool:
    if isinstance(flag, tuple):
        return tuple(value if isinstance(value, list) else [value, value]) == flag
    return bool(value == flag)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"{value[0]}x{value[1]}"
    return repr(value) if isinstance(value, str) else str(value)
