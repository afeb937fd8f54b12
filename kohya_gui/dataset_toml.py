"""The dataset TOML as the page edits it: one table is changed; all else, comments included, stays as it is."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT

from kohya_gui.folders import within
from trainer.errors import DataError
from trainer.run_folder import write_atomically

Place = tuple[int, ...]
"""(): [general]; (dataset,): a [[datasets]] table; (dataset, subset): a [[datasets.subsets]] table."""
PATHS = ("image_dir", "metadata_file", "conditioning_data_dir", "mask_dir")
DEFAULT_EXTENSION = ".caption"
HEADING = "written by the Dataset tab; change it here or by hand, comments are kept"


@dataclass(frozen=True)
class Subset:
    """A folder's table. own: its keys; all: with what it inherits from its dataset and from [general]."""

    place: Place
    own: Mapping[str, Any]
    all: Mapping[str, Any]

    @property
    def image_dir(self) -> str:
        return str(self.own.get("image_dir", ""))

    @property
    def is_reg(self) -> bool:
        return bool(self.own.get("is_reg", False))

    @property
    def repeats(self) -> int:
        repeats = self.all.get("num_repeats", 1)
        return repeats if isinstance(repeats, int) else 1

    @property
    def words(self) -> str:
        return str(self.all.get("class_tokens", ""))

    @property
    def metadata_file(self) -> str:
        return str(self.own.get("metadata_file", ""))

    @property
    def extension(self) -> str:
        """Ending of its caption files, with its dot."""
        text = str(self.all.get("caption_extension", DEFAULT_EXTENSION))
        return text if text.startswith(".") else f".{text}"


@dataclass(frozen=True)
class Dataset:
    """A [[datasets]] table with what it inherits from [general]."""

    place: Place
    all: Mapping[str, Any]
    subsets: tuple[Subset, ...]


def read(text: str) -> tuple[Dataset, ...]:
    """The tables of a dataset file as plain values; DataError says where it cannot be read."""
    raw = _plain(text)
    general = _table(raw.get("general", {}), "general")
    return tuple(
        _dataset(_table(table, "datasets"), (number,), general)
        for number, table in enumerate(_tables(raw.get("datasets", []), "datasets"))
    )


def subsets(text: str) -> list[Subset]:
    """All folders' tables in order."""
    return [subset for dataset in read(text) for subset in dataset.subsets]


def parse(text: str) -> tomlkit.TOMLDocument:
    """The document with its comments."""
    _plain(text)
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise DataError(f"this TOML cannot be edited here: {error}") from None


def load(path: Path) -> str:
    """The text of a dataset file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    read(text)
    return text


def new(tables: Sequence[Mapping[str, Any]], **dataset: Any) -> str:
    """A fresh file with one dataset. tables: its subsets' keys; values of "" or None are left out."""
    document = tomlkit.document()
    document.add(tomlkit.comment(HEADING))
    inner, outer = tomlkit.aot(), tomlkit.aot()
    for values in tables:
        inner.append(_fresh(values))
    table = _fresh(dataset)
    table["subsets"] = inner
    outer.append(table)
    document["datasets"] = outer
    return tomlkit.dumps(document)


def change(text: str, place: Place, values: Mapping[str, Any]) -> str:
    """Set keys of one table; None takes a key out."""
    document = parse(text)
    _put(_at(document, place), values)
    return tomlkit.dumps(document)


def add_subset(text: str, values: Mapping[str, Any], *, dataset: int = 0) -> str:
    """One more folder at the end of a dataset, and the dataset itself where there is none yet."""
    if not read(text):
        start = new([values])
        return start if not text.strip() else f"{text.rstrip()}\n\n{_without_heading(start)}"
    document = parse(text)
    table = _at(document, (dataset,))
    if "subsets" not in table:
        table["subsets"] = tomlkit.aot()
    inner = table["subsets"]
    inner.append(_fresh(values) if isinstance(inner, AoT) else _inline(values))
    return _parted(tomlkit.dumps(document))


def remove_subset(text: str, place: Place) -> str:
    """Take a folder's table out; its pictures are not touched."""
    document = parse(text)
    _at(document, place)
    del _at(document, place[:1])["subsets"][place[1]]
    return tomlkit.dumps(document)


def whole_paths(text: str, base: Path, home: Path) -> str:
    """The same file with every path whole. As the trainer reads them: from home on, else from the file's folder on."""
    document = parse(text)
    for subset in subsets(text):
        table = _at(document, subset.place)
        for key in PATHS:
            if isinstance(typed := table.get(key), str) and typed:
                table[key] = str(resolve(typed, base, home))
    return tomlkit.dumps(document)


def resolve(typed: str, base: Path, home: Path) -> Path:
    """A path of a dataset file that lies in base."""
    path = Path(typed).expanduser()
    first, second = home / path, base / path
    return second if not first.exists() and second.exists() else first


def save(text: str, path: Path, roots: Sequence[Path], *, replace: bool = False) -> Path:
    """Write the file as a whole or not at all; an existing one only with `replace`."""
    read(text)
    if path.suffix.lower() != ".toml":
        raise DataError(f"{path.name or path} should end in .toml", remedy="Add .toml to the name")
    if not within(path, roots):
        places = ", ".join(str(root) for root in roots)
        raise DataError(f"{path} lies outside the folders this page writes to", remedy=f"Choose one in {places}")
    if path.is_dir() or (path.exists() and not replace):
        raise DataError(f"{path} exists already and is not overwritten", remedy="Choose another name or replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None
    return path


def _plain(text: str) -> dict[str, Any]:
    """As the trainer reads it: tomlkit alone lets some broken lines pass."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"this is no TOML: {error}") from None


def _dataset(table: Mapping[str, Any], place: Place, general: Mapping[str, Any]) -> Dataset:
    own = {key: value for key, value in table.items() if key != "subsets"}
    merged = {**general, **own}
    inner = _tables(table.get("subsets", []), "subsets")
    found = (_table(subset, "subsets") for subset in inner)
    return Dataset(
        place, merged, tuple(Subset((*place, n), subset, {**merged, **subset}) for n, subset in enumerate(found))
    )


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{name} should be a table, not {value!r}", remedy=f"Write [{name}] on a line of its own")
    return value


def _tables(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        path = f"datasets.{name}" if name == "subsets" else name
        raise DataError(f"{name} should be a list of tables", remedy=f"Write [[{path}]] with two brackets")
    return value


def _at(document: tomlkit.TOMLDocument, place: Place) -> Any:
    tables: Any = document
    try:
        if not place:
            return tables["general"]
        table = tables["datasets"][place[0]]
        return table if len(place) == 1 else table["subsets"][place[1]]
    except (KeyError, IndexError):
        if not place:
            return document.setdefault("general", tomlkit.table())
        raise DataError("this folder is no longer in the data set") from None


def _put(table: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value is None or value == "":
            table.pop(key, None)
        elif table.get(key) != value:
            table[key] = value


def _fresh(values: Mapping[str, Any]) -> Any:
    table = tomlkit.table()
    _put(table, values)
    return table


def _inline(values: Mapping[str, Any]) -> Any:
    table = tomlkit.inline_table()
    _put(table, values)
    return table


def _parted(text: str) -> str:
    """A blank line before the last table, when the file did not end in one."""
    head, found, tail = text.rpartition("[[datasets.subsets]]")
    stem = head.rstrip(" \t")
    return text if not found or stem.endswith("\n\n") else f"{stem}\n{head[len(stem) :]}{found}{tail}"


def _without_heading(text: str) -> str:
    return text.partition("\n")[2].lstrip("\n")
