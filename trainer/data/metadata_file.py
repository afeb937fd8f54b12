"""Read sd-scripts' metadata files of fine-tuning: pictures by name, with their captions and tags.

JSON: {name: {"caption": ..., "tags": ..., "image_size": [w, h]}}; JSONL: one such object a line, with "image_path". A
name is a path, absolute or relative to a folder, with or without its ending. Sizes are read from the pictures
themselves, so image_size and train_resolution are not looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.scan import PICTURE_SUFFIXES, BadFile

_TEXTS = ("caption", "tags")
_SIZES = ("image_size", "train_resolution")
_SHOWN = 5


@dataclass(frozen=True)
class Metadata:
    """What a metadata file says. captions: picture -> its text, None without one. bad: what is wrong with it."""

    file: Path
    captions: Mapping[Path, str | None]
    bad: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()


class _Record(NamedTuple):
    name: str
    values: Mapping[str, Any]
    place: str


@dataclass
class _Read:
    """What has been gathered so far."""

    captions: dict[Path, str | None] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    unused_keys: dict[str, int] = field(default_factory=dict)


def read_metadata(file: Path, *, image_dir: Path, separator: str = ",", all_lines: bool = False) -> Metadata:
    """The pictures of a metadata file, names relative to image_dir.

    A picture's text is caption, separator and tags, or one of them. all_lines: captions may have several lines of which
    one is drawn; tags follow each.
    """
    try:
        records = list(_records(file))
    except _Unreadable as error:
        return Metadata(file, {}, (BadFile(file, str(error)),))
    find = _Find(image_dir)
    read = _Read()
    for record in records:
        if problem := _add(record, read, find, separator=separator, all_lines=all_lines):
            read.bad.append(problem)
    if not records:
        read.bad.append("names no pictures")
    notes = [f"{file}: {count} records have {key}, which is not used" for key, count in read.unused_keys.items()]
    if extra := _unnamed(image_dir, read.captions):
        names = ", ".join(path.name for path in extra[:_SHOWN]) + (", ..." if len(extra) > _SHOWN else "")
        notes.append(f"{image_dir}: {len(extra)} pictures are not in {file} and are not trained: {names}")
    return Metadata(file, read.captions, tuple(BadFile(file, reason) for reason in read.bad), tuple(notes))


class _Unreadable(Exception):
    """Why a metadata file as a whole cannot be used."""


def _records(file: Path) -> Iterator[_Record]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unreadable(f"is not UTF-8 text (byte offset {error.start}). Save it as UTF-8") from None
    except OSError as error:
        raise _Unreadable(f"cannot be read ({error.strerror})") from None
    if file.suffix.lower() == ".jsonl":
        yield from _lines(text)
        return
    try:
        data = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError as error:
        raise _Unreadable(f"is not valid JSON: {error}") from None
    if not isinstance(data, _Pairs):
        raise _Unreadable('should look like {"picture": {"caption": "...", "tags": "..."}}')
    for name, values in data:
        record = dict(values) if isinstance(values, _Pairs) else {"": values}
        yield _Record(name, record, repr(name))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with names that come twice kept."""


def _lines(text: str) -> Iterator[_Record]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise _Unreadable(f"line {number} is not valid JSON: {error}") from None
        if not isinstance(values, dict) or not isinstance(values.get("image_path"), str):
            raise _Unreadable(f'line {number} should look like {{"image_path": "...", "caption": "..."}}')
        yield _Record(values.pop("image_path"), values, f"line {number}")


def _add(record: _Record, read: _Read, find: _Find, *, separator: str, all_lines: bool) -> str:
    """Add one record; returns what is wrong with it, "" when it is good."""
    if "" in record.values:
        return f"{record.place} should be an object with caption and tags"
    if wrong := [key for key in _TEXTS if not isinstance(record.values.get(key), str | None)]:
        return f"{record.place}: {wrong[0]} should be text (got {record.values[wrong[0]]!r})"
    for key in record.values.keys() - {*_TEXTS, *_SIZES}:
        read.unused_keys[key] = read.unused_keys.get(key, 0) + 1
    found = find(record.name)
    if not found:
        return f"{record.place} names a picture that is not there: {record.name}"
    if len(found) > 1:
        return f"{record.place} could be each of {', '.join(map(str, found))}. Write the name with its ending"
    if found[0] in read.captions:
        return f"{record.place} names {found[0]} a second time"
    texts = [(record.values.get(key) or "").strip() for key in _TEXTS]
    read.captions[found[0]] = _text(*texts, separator=separator, all_lines=all_lines) or None
    return ""


def _text(caption: str, tags: str, *, separator: str, all_lines: bool) -> str:
    if not caption or not tags:
        return caption or tags
    lines = [line.strip() for line in caption.splitlines() if line.strip()]
    return "\n".join(line + separator + tags for line in (lines if all_lines else lines[:1]))


class _Find:
    """Finds pictures by name: with its ending, else without. Folders are listed once: files can be very many."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed = cache(_Listed)

    def __call__(self, name: str) -> Sequence[Path]:
        folder, file = os.path.split(os.path.join(self._folder, name))  # an absolute name stays as it is
        listed = self._listed(folder)
        if file in listed.names:
            return [Path(folder, file)]
        found = [Path(folder, known) for known in listed.stems.get(file, [])]
        exact = Path(folder, file)  # where Cat.PNG is also cat.png
        return found or ([exact] if exact.is_file() else [])


class _Listed:
    """The files of a folder, and its pictures by their names without endings."""

    def __init__(self, folder: str) -> None:
        self.names: set[str] = set()
        self.stems: dict[str, list[str]] = {}
        if not os.path.isdir(folder):
            return
        with os.scandir(folder) as entries:
            self.names = {entry.name for entry in entries if entry.is_file()}
        for name in sorted(self.names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in PICTURE_SUFFIXES:
                self.stems.setdefault(stem, []).append(name)


def _unnamed(folder: Path, named: Mapping[Path, object]) -> list[Path]:
    """The folder's own pictures that no record names."""
    if not folder.is_dir():
        return []
    here = folder.resolve()
    resolved = cache(Path.resolve)  # folders, not files: there are few
    known = {path.name for path in named if resolved(path.parent) == here}
    pictures = (name for names in _Listed(str(folder)).stems.values() for name in names)
    return [folder / name for name in pictures if name not in known]
