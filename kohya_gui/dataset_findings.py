"""What is wrong with a data set's description, from names alone, and the changes that mend it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kohya_gui import dataset_toml
from kohya_gui.dataset_toml import Place, Subset
from kohya_gui.datasets import Kind, caption_counts, count, metadata_texts
from trainer.data import scan

UNEVEN = 1.5
"""Concepts are called uneven when one is used so many times as often as another."""


@dataclass(frozen=True)
class Fix:
    """Changes of tables behind a button."""

    label: str
    changes: tuple[tuple[Place, Mapping[str, Any]], ...]


@dataclass(frozen=True)
class Finding:
    """One thing to know about a description. key: tells findings apart. level: "bad" stops a run."""

    key: str
    text: str
    level: Literal["bad", "warn"] = "bad"
    fix: Fix | None = None


@dataclass(frozen=True)
class Counted:
    """A folder's table with what lies in the folder."""

    subset: Subset
    folder: Path
    counts: Mapping[str, int] = field(default_factory=dict)
    metadata: Path | None = None

    @property
    def pictures(self) -> int:
        return self.counts.get("", 0)

    @property
    def captions(self) -> int:
        return self.counts.get(self.subset.extension, 0)

    @property
    def uses(self) -> int:
        """Pictures an epoch."""
        return self.pictures * self.subset.repeats


def counted(text: str, base: Path, home: Path) -> list[Counted]:
    """Every folder of a description with its counts."""
    found = []
    for subset in dataset_toml.subsets(text):
        folder = dataset_toml.resolve(subset.image_dir, base, home)
        counts = caption_counts(folder, subset.extension) if subset.image_dir else {}
        metadata = dataset_toml.resolve(subset.metadata_file, base, home) if subset.metadata_file else None
        found.append(Counted(subset, folder, counts, metadata))
    return found


def findings(text: str, base: Path, home: Path) -> list[Finding]:
    """Everything a look at names can tell, most pressing first."""
    entries = counted(text, base, home)
    found = [finding for entry in entries for finding in _folder_findings(entry)]
    for dataset in dataset_toml.read(text):
        own = [entry for entry in entries if entry.subset.place[:1] == dataset.place]
        found += [*_repeat_findings(own, dataset.place), *_balance_findings(own, dataset.place)]
    return sorted(found, key=lambda finding: finding.level != "bad")


def _folder_findings(entry: Counted) -> Iterator[Finding]:
    subset, place = entry.subset, entry.subset.place
    key = ".".join(map(str, place))
    if not subset.image_dir and subset.metadata_file:
        return
    problem = scan.folder_problem(entry.folder) if subset.image_dir else "no folder is chosen"
    if problem:
        yield Finding(f"folder {key}", f"{subset.image_dir or 'A folder of this data set'}: {problem}")
        return
    if subset.metadata_file:
        return
    others = {suffix: n for suffix, n in entry.counts.items() if suffix not in ("", subset.extension)}
    other = max(others, key=lambda suffix: others[suffix], default="")
    name = entry.folder.name
    if other and not entry.captions:
        said = f"{name}: {others[other]} {other}, 0 {subset.extension}. The captions end in {other}"
        fix = Fix(f"Use {other}", ((place, {"caption_extension": other}),))
        yield Finding(f"extension {key}", said, fix=fix)
    elif others.get(other, 0) > entry.captions:
        said = f"{name}: {others[other]} captions end in {other}, only {entry.captions} in {subset.extension}"
        fix = Fix(f"Use {other}", ((place, {"caption_extension": other}),))
        yield Finding(f"extension {key}", said, "warn", fix)
    elif entry.captions < entry.pictures and not subset.words:
        missing = entry.pictures - entry.captions
        said = f"{name}: {count(missing, 'picture')} without a caption, and no words stand in for it"
        yield Finding(f"words {key}", said, "warn")


def _repeat_findings(entries: Sequence[Counted], place: Place) -> Iterator[Finding]:
    """The guide's rule: repeats x pictures of training at least as many as of regularisation."""
    training, reg = [e for e in entries if not e.subset.is_reg], [e for e in entries if e.subset.is_reg]
    uses, wanted = sum(e.uses for e in training), sum(e.uses for e in reg)
    if not uses or wanted <= uses:
        return
    factor = math.ceil(wanted / uses)
    changes = tuple((e.subset.place, {"num_repeats": e.subset.repeats * factor}) for e in training if e.uses)
    said = (
        f"{uses} training uses an epoch (pictures × repeats) against {wanted} regularisation pictures: "
        f"only {uses} of these are seen in an epoch, taking turns"
    )
    label = f"Repeat {factor}× as often" if len(changes) > 1 else f"Use {changes[0][1]['num_repeats']} repeats"
    yield Finding(f"repeats {place[0]}", said, "warn", Fix(label, changes))


def _balance_findings(entries: Sequence[Counted], place: Place) -> Iterator[Finding]:
    training = [e for e in entries if not e.subset.is_reg and e.uses]
    if len(training) < 2 or max(e.uses for e in training) <= UNEVEN * min(e.uses for e in training):
        return
    changes = balance(training)
    if not changes:
        return
    uses = ", ".join(f"{e.folder.name} {e.uses}" for e in training[:5]) + (", …" if len(training) > 5 else "")
    said = f"The concepts are used unevenly in an epoch: {uses}"
    yield Finding(f"balance {place[0]}", said, "warn", Fix("Balance repeats", changes))


def balance(entries: Sequence[Counted]) -> tuple[tuple[Place, Mapping[str, Any]], ...]:
    """Repeats that use every concept about as often as the most used one is now."""
    goal = max(entry.uses for entry in entries)
    wanted = {entry.subset.place: max(1, round(goal / entry.pictures)) for entry in entries}
    return tuple(
        (entry.subset.place, {"num_repeats": wanted[entry.subset.place]})
        for entry in entries
        if wanted[entry.subset.place] != entry.subset.repeats
    )


def apply(text: str, fix: Fix) -> str:
    """The description with a fix's changes made."""
    for place, values in fix.changes:
        text = dataset_toml.change(text, place, values)
    return text


def set_words(text: str, words: str) -> str:
    """Identifier and class into the one training folder; several have words of their own."""
    training = [subset for subset in dataset_toml.subsets(text) if not subset.is_reg]
    if len(training) != 1:
        return text
    return dataset_toml.change(text, training[0].place, {"class_tokens": " ".join(words.split())})


def set_kind(text: str, entries: Sequence[Counted], kind: Kind, metadata: str) -> str:
    """Describe the training folders by words, caption files or a metadata file; regularisation stays as it is."""
    for entry in (e for e in entries if not e.subset.is_reg):
        values: dict[str, Any] = {"metadata_file": metadata.strip() if kind == "metadata" else None}
        if kind == "captions" and not entry.captions:
            others = {suffix: number for suffix, number in entry.counts.items() if suffix}
            if others:
                values["caption_extension"] = max(others, key=lambda suffix: others[suffix])
        text = dataset_toml.change(text, entry.subset.place, values)
    return text


# words


def captions_of(entries: Sequence[Counted]) -> Iterator[str]:
    """Every training caption and tag list, for looking words up."""
    for entry in entries:
        if entry.subset.is_reg:
            continue
        if entry.metadata is not None:
            yield from metadata_texts(entry.metadata)
        if entry.captions:
            for picture in scan.list_pictures(entry.folder):
                path = scan.caption_path(picture, entry.subset.extension)
                if path.is_file():
                    yield path.read_text(encoding="utf-8-sig", errors="replace")
