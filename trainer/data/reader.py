"""Settle flags, dataset file and legacy folders into datasets, collecting every problem on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.buckets import BucketOptions, Size
from trainer.data.config import (
    DataOptions,
    Dataset,
    DatasetTableOptions,
    PictureOptions,
    Subset,
    SubsetOptions,
)
from trainer.data.dataset_file import DatasetFile, Where, read_dataset_file
from trainer.data.scan import folder_problem, list_pictures, normal_extension
from trainer.data.split import SplitOptions
from trainer.errors import Problem
from trainer.schema import Options, nearest, validate

_FLAG_OF_KEY = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
_NOT_YET: Mapping[str, Any] = {"network_multiplier": 1.0, "custom_attributes": {}}
"""kohya's keys whose consumer is not built yet, with the value that changes nothing."""
_NOT_YET_OF_SUBSETS = ("custom_attributes",)
_CACHE_INFO = "cache_info has no effect: what was found about pictures is always remembered, captions are read anew"


class Reader:
    """Collects problems and notes on the way from flags and tables to datasets."""

    def __init__(self, options: DataOptions, sources: Mapping[str, str], *, without_reg: bool = False) -> None:
        self.options = options
        self.sources = sources
        self.without_reg = without_reg
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    # --- flags: folders named <repeats>_<name> <class>, or a metadata file ---

    def from_flags(self) -> tuple[Dataset, ...]:
        """The one dataset that flags describe."""
        options = self.options
        if options.train_data_dir is None and options.in_json is None:
            remedy = "Set train_data_dir, or dataset_config"
            self.problems.append(Problem("train_data_dir", "no pictures to train are named", remedy=remedy))
            return ()
        subsets = self._from_metadata(options.in_json) if options.in_json else self._from_folders()
        if self.problems:
            return ()
        buckets: BucketOptions = _part(BucketOptions, options.model_dump())
        self.problems += buckets.problems_for(options.resolution_wh())
        split: SplitOptions = _part(SplitOptions, options.model_dump())
        return (Dataset(options.resolution_wh(), options.train_batch_size, buckets, tuple(subsets), split),)

    def _from_metadata(self, file: Path) -> list[Subset]:
        options = self.options
        if options.reg_data_dir is not None:
            remedy = "Describe both in a dataset file: a [[datasets]] table for each"
            self.problems.append(
                Problem("reg_data_dir", "cannot go with in_json", str(options.reg_data_dir), "", remedy)
            )
        self._check_path("in_json", _look_for(file, None), "", is_file=True)
        folder = file.parent
        if options.train_data_dir is not None:
            folder = options.train_data_dir
            self._check_path("train_data_dir", _look_for(folder, None), "")
        pictures = _part(PictureOptions, options.model_dump())
        return [Subset(folder, options.dataset_repeats, False, "", pictures, metadata_file=file)]

    def _from_folders(self) -> list[Subset]:
        options = self.options
        assert options.train_data_dir is not None
        if self._was_meant("dataset_repeats"):
            self.notes.append("dataset_repeats is not used: the names of the training folders say how often")
        subsets = self._named_folders(options.train_data_dir, "train_data_dir", is_reg=False)
        if options.reg_data_dir is not None and not self.without_reg:
            subsets += self._named_folders(options.reg_data_dir, "reg_data_dir", is_reg=True)
        return subsets

    def _named_folders(self, parent: Path, option: str, *, is_reg: bool) -> list[Subset]:
        if not self._check_path(option, _look_for(parent, None), ""):
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
        """The datasets of dataset_config."""
        path = self.options.dataset_config
        assert path is not None
        file = read_dataset_file(path)
        for name in ("train_data_dir", "reg_data_dir", "in_json"):
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

    def _dataset(self, file: DatasetFile, raw: Mapping[str, Any], where: Where, general: Mapping[str, Any]) -> Dataset:
        own = {key: value for key, value in raw.items() if key != "subsets"}
        table = self._table(file, own, where, DatasetTableOptions)
        above = {**self.options.model_dump(), "num_repeats": self.options.dataset_repeats, **general, **table}
        subsets = [
            self._subset(file, inner, (*where, "subsets", index), above)
            for index, inner in enumerate(file.array("subsets", raw, where))
        ]
        if not subsets:
            source = file.place(where)
            self.problems.append(Problem("subsets", "this dataset has no [[datasets.subsets]] table", source=source))
        size = self._size(above["resolution"])
        buckets: BucketOptions = _part(BucketOptions, above)
        places = {key: file.place(("general",), key) for key in general} | {
            key: file.place(where, key) for key in table
        }
        self.problems += [replace(p, source=places.get(p.option, "")) for p in buckets.problems_for(size)]
        kept = self._without_twins([subset for subset in subsets if subset is not None])
        self._check_kinds(kept)
        batch_size = above.get("batch_size", self.options.train_batch_size)
        return Dataset(size, batch_size, buckets, kept, _part(SplitOptions, above))

    def _size(self, resolution: Any) -> Size:
        """A table's resolution, else the flag's."""
        if isinstance(resolution, list) and len(resolution) == 2:
            return resolution[0], resolution[1]
        return (resolution, resolution) if isinstance(resolution, int) else self.options.resolution_wh()

    def _subset(
        self, file: DatasetFile, raw: Mapping[str, Any], where: Where, above: Mapping[str, Any]
    ) -> Subset | None:
        table = self._table(file, raw, where, SubsetOptions)
        values: dict[str, Any] = {"is_reg": False, "class_tokens": "", **above, **table}
        if self.without_reg and values["is_reg"]:
            return None
        paths = self._paths(file, raw, table, where)
        if paths is None:
            return None
        if values["num_repeats"] < 1:
            left_out = paths.metadata_file or paths.image_dir
            self.notes.append(f"{left_out} is left out: num_repeats is 0 ({file.place(where, 'num_repeats')})")
            return None
        if values.get("cache_info"):
            self.notes.append(_CACHE_INFO)
        return Subset(
            image_dir=paths.image_dir,
            num_repeats=values["num_repeats"],
            is_reg=values["is_reg"],
            class_tokens=values["class_tokens"],
            pictures=_part(PictureOptions, values),
            source=file.place(where),
            metadata_file=paths.metadata_file,
            conditioning_data_dir=paths.conditioning_data_dir,
        )

    def _paths(
        self, file: DatasetFile, raw: Mapping[str, Any], table: Mapping[str, Any], where: Where
    ) -> _Paths | None:
        """The folders and files a subset names, checked; None when it does not say where its pictures are."""
        found = {
            key: _look_for(Path(table[key]), file.path)
            for key in ("image_dir", "metadata_file", "conditioning_data_dir")
            if table.get(key)
        }
        metadata = found.get("metadata_file")
        for key, looked in found.items():
            source = file.place(where, key)
            self._check_path(key, looked, source, is_file=key == "metadata_file")
            if looked.path.is_dir() and (key == "conditioning_data_dir" or (key == "image_dir" and metadata is None)):
                problem = folder_problem(looked.path)
                self.problems += [Problem(key, problem, str(looked.path), source)] if problem else []
        if metadata and "caption_extension" in table:
            message = "has no meaning with metadata_file, which holds the captions"
            source = file.place(where, "caption_extension")
            self.problems.append(Problem("caption_extension", message, repr(table["caption_extension"]), source))
        masks = found.get("conditioning_data_dir")
        folder = found["image_dir"].path if "image_dir" in found else metadata.path.parent if metadata else None
        if folder is None:
            if not raw.get("image_dir"):  # a wrong one has been reported
                source, remedy = file.place(where, "image_dir"), "Name the folder with the pictures"
                self.problems.append(Problem("image_dir", "is needed and not set", None, source, remedy))
            return None
        return _Paths(folder, metadata and metadata.path, masks and masks.path)

    def _check_path(self, option: str, looked: _Looked, source: str, *, is_file: bool = False) -> bool:
        """Whether a folder (or file) is there, and what the user is told when it is not."""
        path, kind = looked.path, "file" if is_file else "folder"
        if path.is_file() if is_file else path.is_dir():
            return True
        if path.exists():
            message = "is a folder, not a file" if is_file else "is a file, where a folder with pictures is expected"
        else:
            message = f"this {kind} does not exist; looked for {' and '.join(looked.places)}"
        self.problems.append(Problem(option, message, str(path), source))
        return False

    def _table(self, file: DatasetFile, raw: Mapping[str, Any], where: Where, owner: type[Options]) -> dict[str, Any]:
        """The keys a table sets, checked; those with a problem are left out. Notes the flags it overrides."""
        raw = self._without_not_yet(file, raw, where, owner)
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

    def _without_not_yet(
        self, file: DatasetFile, raw: Mapping[str, Any], where: Where, owner: type[Options]
    ) -> dict[str, Any]:
        """A table without kohya's keys that nothing here would follow; an error where they ask for something."""
        keys = _NOT_YET_OF_SUBSETS if owner is SubsetOptions else tuple(_NOT_YET)
        for key in (key for key in keys if key in raw and raw[key] != _NOT_YET[key]):
            remedy = f"Remove it, or set it to {_NOT_YET[key]}"
            self.problems.append(Problem(key, "is not supported yet", repr(raw[key]), file.place(where, key), remedy))
        return {key: value for key, value in raw.items() if key not in keys}

    def _was_meant(self, name: str) -> bool:
        """Whether somebody chose the value; a run's own config.toml states every option, defaults too."""
        source = self.sources.get(name, "")
        return source.startswith("--") or (bool(source) and not _is_default(self.options, name))

    def _check_names(self, file: DatasetFile, raw: Mapping[str, Any], where: Where, known: tuple[str, ...]) -> None:
        for key in raw:
            if key in known:
                continue
            near = nearest(key, known)
            remedy = f"Did you mean {near}?" if near else ""
            title = f"[{'.'.join(str(part) for part in where if isinstance(part, str))}]" if where else "a dataset file"
            self.problems.append(Problem(key, f"is not a key of {title}", None, file.place(where, key), remedy))

    def _without_twins(self, subsets: list[Subset]) -> tuple[Subset, ...]:
        """A folder or metadata file named a second time in one dataset is left out."""
        first: dict[Path, Subset] = {}
        for subset in subsets:
            kept = first.setdefault(subset.place.resolve(), subset)
            if kept is not subset:
                self.notes.append(f"{subset.place} of {subset.source} is left out: {kept.source} names it too")
        return tuple(first.values())

    def _check_kinds(self, subsets: tuple[Subset, ...]) -> None:
        """One dataset holds one kind: folders, metadata files, or either with masks."""
        for option in ("metadata_file", "conditioning_data_dir"):
            given = [s.metadata_file if option == "metadata_file" else s.conditioning_data_dir for s in subsets]
            without = [subset for subset, path in zip(subsets, given, strict=True) if path is None]
            if without and len(without) < len(subsets):
                message = f"is set for some folders of this dataset and not for {without[0].image_dir}"
                remedy = "Kinds cannot be mixed in one [[datasets]]: give each kind its own"
                self.problems.append(Problem(option, message, None, without[0].source, remedy))

    # --- both ---

    def check(self, datasets: tuple[Dataset, ...]) -> None:
        """What is wrong with the settled datasets, and what of them should be said."""
        for dataset in datasets:
            self._note_rounded_sides(dataset.buckets)
            if dataset.subsets and all(subset.is_reg for subset in dataset.subsets):
                message = "a dataset has regularisation pictures and no training pictures"
                self.problems.append(Problem("is_reg", message, source=dataset.subsets[0].source))
            for subset in dataset.subsets:
                cached, bucketed = self.options.caches_latents, dataset.buckets.enable_bucket
                found = subset.pictures.pixel_problems(cached=cached, bucketed=bucketed)
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


class _Paths(NamedTuple):
    """Where a subset's files are."""

    image_dir: Path
    metadata_file: Path | None
    conditioning_data_dir: Path | None


class _Looked(NamedTuple):
    """A path that was looked for, and all places it was looked for in."""

    path: Path
    places: tuple[str, ...]


def _look_for(path: Path, file: Path | None) -> _Looked:
    """A path as it is, relative to the current folder, else to the folder of the file that names it."""
    tried = [path] if file is None else [path, file.parent / path]
    found = next((p for p in tried if p.exists()), path)
    return _Looked(found, tuple(dict.fromkeys(str(p.absolute()) for p in tried)))


def _part(owner: type[Any], values: Mapping[str, Any]) -> Any:
    """Those of checked values that belong to one group, as that group."""
    own = {name: values[name] for name in owner.model_fields if name in values}
    if "caption_extension" in own:
        own["caption_extension"] = normal_extension(own["caption_extension"])
    return owner.model_validate(own)


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
