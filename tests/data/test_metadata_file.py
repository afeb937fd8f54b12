"""Metadata files: texts, names with and without endings, and everything that can be wrong in one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.conftest import MakePicture
from trainer.data.metadata_file import Metadata, read_metadata


@pytest.fixture
def folder(picture: MakePicture, tmp_path: Path) -> Path:
    for name in ("a.png", "b.JPG.png", "sub/c.webp"):
        picture(f"pics/{name}")
    return tmp_path / "pics"


def read(folder: Path, records: Any, **how: Any) -> Metadata:
    lines = isinstance(records, list)
    file = folder.parent / ("md.jsonl" if lines else "md.json")
    text = "\n".join(json.dumps(record) for record in records) if lines else json.dumps(records)
    file.write_text("\ufeff" + text, encoding="utf-8")
    return read_metadata(file, image_dir=folder, **how)


CAPTION, TAGS = {"caption": " a cat \nsecond"}, {"tags": "cat, mat"}


@pytest.mark.parametrize(
    ("record", "all_lines", "text"),
    [
        (CAPTION, False, "a cat \nsecond"),
        (TAGS, False, "cat, mat"),
        (TAGS, True, "cat, mat"),
        (CAPTION | TAGS, False, "a cat;cat, mat"),
        (CAPTION | TAGS, True, "a cat;cat, mat\nsecond;cat, mat"),
        ({"caption": None, "tags": " "}, False, None),
        ({}, True, None),
    ],
)
def test_caption_and_tags(folder: Path, record: dict[str, Any], all_lines: bool, text: str | None) -> None:
    found = read(folder, {"a.png": record}, separator=";", all_lines=all_lines)
    assert found.captions == {folder / "a.png": text} and not found.bad


def test_names_with_and_without_their_ending(folder: Path) -> None:
    names = ["a", "b.JPG", "sub/c"]
    expected = {folder / "a.png", folder / "b.JPG.png", folder / "sub" / "c.webp"}
    for prefix in ("", f"{folder}/"):
        record = {"caption": "x", "image_size": [1, 1]}
        assert set(read(folder, {prefix + name: record for name in names}).captions) == expected
        lines = [{"image_path": prefix + name, **record} for name in names]
        found = read(folder, lines)
        assert set(found.captions) == expected and not found.bad and not found.notes


def test_pictures_that_are_not_named_are_said(folder: Path) -> None:
    (note,) = read(folder, {"a.png": {}}).notes
    assert "1 pictures are not in" in note and "b.JPG.png" in note


def test_keys_that_are_not_used_are_said(folder: Path) -> None:
    found = read(folder, {"a": {"weight": 2}, "b.JPG": {"weight": 3}})
    assert any("2 records have weight, which is not used" in note for note in found.notes)


def test_every_wrong_record_is_named(folder: Path, picture: MakePicture) -> None:
    picture("pics/a.jpg")
    file = folder.parent / "md.json"
    file.write_text(
        '{"a": {}, "gone.png": {}, "a.png": {"tags": ["x"]}, "a.jpg": {"caption": "x"}, "a.jpg": {}, "sub/c": "text"}'
    )
    found = read_metadata(file, image_dir=folder)
    said = [bad.reason for bad in found.bad]
    assert len(said) == 5 and {bad.path for bad in found.bad} == {file}
    assert "a.jpg" in said[0] and "a.png" in said[0] and "ending" in said[0]
    assert "gone.png" in said[1] and "tags should be text (got ['x'])" in said[2]
    assert "a second time" in said[3] and "should be an object" in said[4]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("md.json", b"{", "is not valid JSON"),
        ("md.json", b"[]", "should look like"),
        ("md.json", b"{}", "names no pictures"),
        ("md.json", b'{"caf\xe9": {}}', "is not UTF-8 text (byte offset 5)"),
        ("md.jsonl", b'{"image_path": "a.png"}\n{', "line 2 is not valid JSON"),
        ("md.jsonl", b'{"caption": "x"}', 'line 1 should look like {"image_path"'),
        ("md.jsonl", b"", "names no pictures"),
        ("gone.json", None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(folder: Path, name: str, data: bytes | None, said: str) -> None:
    if data is not None:
        (folder.parent / name).write_bytes(data)
    found = read_metadata(folder.parent / name, image_dir=folder)
    assert not found.captions or name == "md.jsonl"
    assert said in found.bad[0].reason
