"""What a path holds as training pictures, and a first description of it as a dataset file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kohya_gui import dataset_toml
from trainer.data import scan
from trainer.errors import TrainerError

Kind = Literal["class", "captions", "metadata"]
What = Literal["nothing", "pictures", "named", "concepts", "project", "toml", "unusable"]
NAMED = re.compile(r"(\d+)_(.+)")
MOST_FOLDERS = 200
USES = 100
"""Pictures an epoch that repeats are suggested for, where nothing else decides."""
USUAL = 512


@dataclass(frozen=True)
class Concept:
    """A folder of pictures. captions: of the ending most of them have. words: from a <repeats>_<words> name."""

    folder: Path
    pictures: int
    captions: int = 0
    extension: str = ""
    repeats: int | None = None
    words: str = ""


@dataclass(frozen=True)
class Slip:
    """A usual mistake: what it is in a sentence, and the path that mends it with the words on its button."""

    sentence: str
    label: str
    path: Path


@dataclass(frozen=True)
class Found:
    """What a typed path holds."""

    what: What
    path: Path
    sentence: str
    concepts: tuple[Concept, ...] = ()
    reg: tuple[Concept, ...] = ()
    metadata: tuple[Path, ...] = ()
    slips: tuple[Slip, ...] = ()

    @property
    def kind(self) -> Kind:
        """The way of describing pictures that fits what lies there."""
        if self.metadata:
            return "metadata"
        captions = sum(concept.captions for concept in self.concepts)
        return "captions" if captions * 2 > sum(concept.pictures for concept in self.concepts) else "class"


def recognise(path: Path) -> Found:
    """Say what a path is: a folder of pictures, a parent of such folders, or a dataset file."""
    if path.suffix.lower() == ".toml" and path.is_file():
        return _recognise_file(path)
    if not path.exists():
        return Found("unusable", path, "There is nothing at this path.")
    if not path.is_dir():
        slip = Slip("This is a single file.", "Use the folder it lies in", path.parent)
        slips = (slip,) if path.suffix.lower() in scan.PICTURE_SUFFIXES else ()
        said = "This is a file, where a folder or a .toml file is expected."
        if path.suffix.lower() == ".zip":
            said = "This is a zip. Drop it into the field beside this one: a copy is unpacked into a folder of ours."
        return Found("unusable", path, said, slips=slips)
    try:
        return _recognise_folder(path)
    except OSError as error:
        return Found("unusable", path, f"This folder cannot be read ({error.strerror}).")


def _recognise_file(path: Path) -> Found:
    try:
        tables = dataset_toml.read(dataset_toml.load(path))
    except TrainerError as error:
        return Found("unusable", path, f"{error}.")
    folders = sum(len(dataset.subsets) for dataset in tables)
    if not folders:
        return Found(
            "unusable", path, "This file names no folders of pictures: no [[datasets.subsets]] table is in it."
        )
    sentence = f"A dataset file with {count(len(tables), 'data set')} and {count(folders, 'folder')}."
    return Found("toml", path, sentence)


def _recognise_folder(path: Path) -> Found:
    own = look(path)
    inner = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")][:MOST_FOLDERS]
    concepts = tuple(concept for concept in map(look, inner) if concept.pictures)
    named = tuple(concept for concept in concepts if concept.repeats is not None)
    if named:
        return _parent(path, own, named, left_out=len(concepts) - len(named))
    if own.pictures:
        return _leaf(path, own, concepts)
    if concepts:
        names = _names([concept.folder.name for concept in concepts])
        slips = (_further_down(concepts[0].folder),) if len(concepts) == 1 else ()
        sentence = f"{count(len(concepts), 'folder')} of pictures without repeats in their names: {names}."
        return Found("concepts", path, sentence, concepts, slips=slips)
    return _project(path, inner)


def _further_down(folder: Path) -> Slip:
    return Slip("The pictures lie one folder further down.", f"Use {folder.name}", folder)


def _parent(path: Path, own: Concept, named: tuple[Concept, ...], *, left_out: int) -> Found:
    total = sum(concept.pictures for concept in named)
    names = _names([concept.folder.name for concept in named])
    sentence = f"{count(len(named), 'training folder')} with {count(total, 'picture')} in all: {names}."
    if own.pictures:
        sentence += f" {count(own.pictures, 'picture')} beside these folders are not used."
    if left_out:
        sentence += f" {count(left_out, 'folder')} without repeats in the name are not used."
    return Found("named", path, sentence, named)


def _leaf(path: Path, own: Concept, inside: Sequence[Concept]) -> Found:
    sentence = f"A folder with {count(own.pictures, 'picture')}, {caption_words(own)}."
    metadata = tuple(_metadata_files(path))
    if metadata:
        sentence += f" {metadata[0].name} describes pictures."
    slips: list[Slip] = []
    if own.repeats is not None:
        sentence += f' Its name asks for {count(own.repeats, "repeat")} and the words "{own.words}".'
        others = [p for p in path.parent.iterdir() if p.is_dir() and p != path and NAMED.fullmatch(p.name)]
        if others:
            more = f"{count(len(others), 'more training folder')} beside it"
            slips.append(Slip(f"This is one training folder; {more}.", "Use all of them", path.parent))
    if inside:
        more = f"{sum(c.pictures for c in inside)} more pictures lie in {count(len(inside), 'folder')} inside"
        sentence += f" {more}; they are not used."
    return Found("pictures", path, sentence, (own,), metadata=metadata, slips=tuple(slips))


def _project(path: Path, inner: Sequence[Path]) -> Found:
    """A folder whose folders hold folders of pictures: kohya's img, reg, log, model, or one level too many."""
    parents = {p: _parent_of_named(p) for p in inner}
    training = next((p for p in parents if p.name.lower() in ("img", "train") and parents[p]), None)
    training = training or next((p for p, concepts in parents.items() if concepts and p.name.lower() != "reg"), None)
    if training is None:
        return Found("unusable", path, "No pictures lie in this folder, nor in the folders in it.")
    reg = tuple(c for p, concepts in parents.items() if p.name.lower() == "reg" for c in concepts)
    slip = Slip("The training folders lie one folder further down.", f"Use {training.name}", training)
    if training.name.lower() not in ("img", "train"):
        return Found("unusable", path, "No pictures lie in this folder.", slips=(slip,))
    concepts = parents[training]
    sentence = f"A training project: {count(sum(c.pictures for c in concepts), 'picture')} in {training.name}"
    sentence += f", {count(sum(c.pictures for c in reg), 'regularisation picture')} in reg." if reg else "."
    return Found("project", path, sentence, concepts, reg)


def _parent_of_named(folder: Path) -> tuple[Concept, ...]:
    try:
        inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and NAMED.fullmatch(p.name)]
    except OSError:
        return ()
    return tuple(concept for concept in map(look, inner[:MOST_FOLDERS]) if concept.pictures)


def look(folder: Path) -> Concept:
    """One folder's pictures and captions, from names only."""
    name = NAMED.fullmatch(folder.name)
    repeats, words = (int(name[1]), name[2].strip()) if name else (None, "")
    counts = caption_counts(folder)
    pictures = counts.pop("", 0)
    extension, captions = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return Concept(folder, pictures, captions, extension, repeats, words)


def caption_counts(folder: Path, *extensions: str) -> dict[str, int]:
    """Caption ending -> pictures that have such a file; "" -> all pictures. From names only, nothing is opened."""
    try:
        pictures = scan.list_pictures(folder)
        names = {p.name for p in folder.iterdir()}
    except OSError:
        return {}
    found = {"": len(pictures)}
    for suffix in dict.fromkeys((*extensions, *scan.CAPTION_SUFFIXES)):
        if number := sum(picture.stem + suffix in names for picture in pictures):
            found[suffix] = number
    return found


def _metadata_files(folder: Path) -> Iterator[Path]:
    """Files in which pictures of this folder are described, by a look at their first entry."""
    for path in [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".json", ".jsonl")][:20]:
        try:
            with path.open(encoding="utf-8-sig") as file:
                head = file.read(4096)
        except (OSError, UnicodeDecodeError):
            continue
        if re.search(r'"(caption|tags|file_name)"\s*:', head):
            yield path


def metadata_texts(path: Path) -> list[str]:
    """Captions and tags of a metadata file; nothing when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = text.splitlines() if path.suffix.lower() == ".jsonl" else [text]
        parsed = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError):
        return []
    entries = [entry for table in parsed if isinstance(table, dict) for entry in (table, *table.values())]
    return [str(e[key]) for e in entries if isinstance(e, dict) for key in ("caption", "tags") if e.get(key)]


# a first description


def describe(found: Found, *, kind: Kind, words: str = "") -> str:
    """The dataset file for what was found; a dataset file is taken as it is."""
    if found.what == "toml":
        return dataset_toml.load(found.path)
    tables = [_table(concept, found, kind=kind, words=words) for concept in found.concepts]
    tables += [{**_table(concept, found, kind="class", words=""), "is_reg": True} for concept in found.reg]
    return dataset_toml.new(tables, **suggested_sizes([concept.folder for concept in found.concepts]))


def suggested_sizes(folders: Sequence[Path]) -> dict[str, Any]:
    """Resolution and buckets: 512 as Stable Diffusion 1 has it, less where every picture is smaller than that."""
    largest = [size for folder in folders[:20] if (size := scan.count_folder(folder).largest)]
    side = math.isqrt(max((width * height for width, height in largest), default=USUAL * USUAL))
    values: dict[str, Any] = {"resolution": USUAL, "batch_size": 1, "enable_bucket": True}
    if side >= USUAL:
        return values
    resolution = max(64, side // 64 * 64)
    buckets = {"min_bucket_reso": max(64, resolution // 2), "max_bucket_reso": resolution * 2}
    return {**values, "resolution": resolution, **buckets, "bucket_reso_steps": 64 if resolution >= 256 else 32}


def _table(concept: Concept, found: Found, *, kind: Kind, words: str) -> dict[str, Any]:
    named = concept.words or (concept.folder.name if found.what == "concepts" else "")
    repeats = concept.repeats or suggested_repeats(concept.pictures)
    values: dict[str, Any] = {"image_dir": str(concept.folder), "num_repeats": repeats}
    if kind == "metadata" and found.metadata:
        return {**values, "metadata_file": str(found.metadata[0])}
    return {**values, "class_tokens": words.strip() or named, "caption_extension": concept.extension}


def suggested_repeats(pictures: int) -> int:
    """Repeats that make about a hundred uses an epoch of a small folder."""
    return max(1, min(20, round(USES / max(pictures, 1))))


def count(number: int, what: str) -> str:
    """ "1 picture", "5,000 pictures"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def caption_words(concept: Concept) -> str:
    """How many captions, and how they end."""
    if not concept.captions:
        return "without captions"
    if concept.captions == concept.pictures:
        return f"all with captions ({concept.extension})"
    return f"{concept.captions} with captions ({concept.extension})"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
