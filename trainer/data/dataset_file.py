"""Read a dataset TOML (or JSON) and know on which line each of its keys stands."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, Problem

Where = tuple[str | int, ...]
"""A way into the file: ("datasets", 0, "subsets", 1)."""

_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\-\s]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""\s*["']?([\w\-]+)["']?\s*=""")


@dataclass
class DatasetFile:
    """The tables of one file. problems: tables that are not what their name promises."""

    path: Path
    tables: Mapping[str, Any]
    lines: Mapping[Where, int]
    problems: list[Problem] = field(default_factory=list)

    def table(self, name: str) -> Mapping[str, Any]:
        value = self.tables.get(name, {})
        if isinstance(value, dict):
            return value
        self._complain((), name, f"should be a [{name}] table")
        return {}

    def array(
        self, name: str, inside: Mapping[str, Any] | None = None, where: Where = ()
    ) -> Sequence[Mapping[str, Any]]:
        """The tables of [[name]], or of [[datasets.name]] with `inside` such a dataset."""
        value = (self.tables if inside is None else inside).get(name, [])
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return value
        title = ".".join([str(part) for part in where if isinstance(part, str)] + [name])
        self._complain(where, name, f"should be [[{title}]] tables")
        return []

    def place(self, where: Where, key: str = "") -> str:
        """ "data.toml line 7" of a key, or of the table it would stand in; the file alone when nothing is known."""
        full = (*where, key) if key else where
        while full:
            if full in self.lines:
                return f"{self.path} line {self.lines[full]}"
            full = full[:-1]
        return str(self.path)

    def _complain(self, where: Where, key: str, message: str) -> None:
        self.problems.append(Problem(key, message, source=self.place(where, key)))


def read_dataset_file(path: Path) -> DatasetFile:
    """Read a file; raises ConfigError when there is none or when it is not TOML or JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([Problem("dataset_config", "this file does not exist", str(path))]) from None
    except IsADirectoryError:
        raise ConfigError([Problem("dataset_config", "is a folder, not a file", str(path))]) from None
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text (byte offset {error.start})"
        raise ConfigError([Problem("dataset_config", message, str(path), remedy="Save it as UTF-8")]) from None
    except OSError as error:
        raise ConfigError([Problem("dataset_config", f"cannot be read ({error.strerror})", str(path))]) from None
    is_json = path.suffix.lower() == ".json"
    try:
        tables = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if is_json else "TOML"
        raise ConfigError([Problem("dataset_config", f"is not valid {kind}: {error}", source=str(path))]) from None
    if not isinstance(tables, dict):
        raise ConfigError([Problem("dataset_config", "should hold general and datasets", source=str(path))])
    return DatasetFile(path, tables, {} if is_json else _line_numbers(text))


def _line_numbers(text: str) -> dict[Where, int]:
    """Where each table and key begins. Read line by line, so a key-like line inside a multi-line text can fool it;
    only the line number in a message depends on it."""
    lines: dict[Where, int] = {}
    counts: dict[Where, int] = {}
    table: Where = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        if header:
            table = _enter(counts, [part.strip() for part in header[2].split(".")], is_array=header[1] == "[[")
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, key[1]), number)
    return lines


def _enter(counts: dict[Where, int], parts: Sequence[str], *, is_array: bool) -> Where:
    """The way to the table a header opens; counts holds how many tables each array has so far."""
    where: Where = ()
    for depth, part in enumerate(parts):
        where = (*where, part)
        is_last = depth == len(parts) - 1
        if is_last and is_array:
            counts[where] = counts.get(where, 0) + 1
        if where in counts:
            where = (*where, counts[where] - 1)
    return where
