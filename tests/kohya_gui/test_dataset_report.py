"""The page looks at a data set by the trainer's own command, in a process of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from kohya_gui import dataset_findings, dataset_preview, dataset_report, dataset_toml, datasets
from kohya_gui.dataset_report import Cancelled, Look, Looks
from kohya_gui.settings import Settings
from trainer.errors import DataError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.of(tmp_path / "home é")


def make(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.effect_noise((96, 64), 90 + number % 9).convert("RGB").save(folder / f"p{number:04d}.png")
    return folder


def finish(looks: Looks, text: str, base: Path) -> str:
    (*_, last) = looks.run(text, base, "tab")
    assert isinstance(last, str)
    return last


def described(folder: Path, **more: object) -> str:
    table = {"image_dir": str(folder), "class_tokens": "sks dog", "num_repeats": 2, **more}
    return dataset_toml.new([table], resolution=64, batch_size=2, enable_bucket=True, min_bucket_reso=32)


def test_a_look_gives_a_report(tmp_path: Path, settings: Settings) -> None:
    folder = make(tmp_path / "p", 3)
    (folder / "p0001.caption").write_text("a dog")
    (folder / "broken.png").write_bytes(b"nothing")
    looks = Looks(settings)
    report = looks.report(finish(looks, described(folder), tmp_path))
    assert report is not None and len(report.pictures) == 3
    assert [p.caption_source for p in report.pictures] == ["class_tokens", "file", "class_tokens"]
    first = report.pictures[0]
    assert first.path == folder / "p0000.png" and first.size == (96, 64) and first.repeats == 2
    assert report.subset_of(first)["num_repeats"] == 2
    assert [w.path for w in report.warnings if w.kind == "bad_file"] == [str(folder / "broken.png")]
    assert report.datasets[0]["steps_per_epoch"] == 3 and "images" not in report.datasets[0]


def test_settings_that_cannot_be_right_name_the_line(tmp_path: Path, settings: Settings) -> None:
    looks = Looks(settings)
    report = looks.report(finish(looks, described(make(tmp_path / "p", 1), flip_augg=True), tmp_path))
    assert report is not None and not report.pictures
    assert len(report.problems) == 1 and "flip_augg" in report.problems[0] and "line 13" in report.problems[0]


def test_cancelling_ends_the_process(tmp_path: Path, settings: Settings) -> None:
    folder = make(tmp_path / "p", 40)
    looks = Looks(settings)
    steps = looks.run(described(folder), tmp_path, "tab")
    look = next(steps)
    assert isinstance(look, Look)
    began = time.monotonic()
    looks.cancel("another tab")
    assert look.process.poll() is None
    looks.cancel("tab")
    with pytest.raises(Cancelled):
        list(steps)
    assert look.process.poll() is not None and time.monotonic() - began < 10
    assert not look.folder.exists()


def test_a_command_that_dies_says_its_last_words(tmp_path: Path, settings: Settings) -> None:
    steps = Looks(settings).run(described(make(tmp_path / "p", 1)), tmp_path, "tab")
    look = next(steps)
    assert isinstance(look, Look)
    look.process.kill()
    with pytest.raises(DataError, match="could not be looked at"):
        list(steps)


@pytest.mark.parametrize("key", ["", "../../etc", "0" * 24, "x"])
def test_keys_that_name_no_report(settings: Settings, key: str) -> None:
    assert Looks(settings).report(key) is None


def test_an_unreadable_report_is_said(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"datasets": [{}]}')
    with pytest.raises(DataError, match="cannot be read"):
        dataset_report.read_report(tmp_path / "report.json")


def test_all_three_kinds_are_looked_at(tmp_path: Path, settings: Settings) -> None:
    """What the page writes for words, captions and metadata is what the trainer reads."""
    folder = make(tmp_path / "p", 2)
    entries = {f"p000{n}": {"caption": "a dog", "tags": "grass, sun"} for n in range(2)}
    (folder / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    found = datasets.recognise(folder)
    assert found.kind == "metadata"
    text = datasets.describe(found, kind="metadata")
    looks = Looks(settings)
    key = finish(looks, text, tmp_path)
    report = looks.report(key)
    assert report is not None and not report.problems
    assert {p.caption_source for p in report.pictures} == {"metadata"}
    drawn = dataset_preview.draws(looks.draft(key), report, report.pictures[0])
    assert len(drawn) == 10 and "dog" in drawn[0][0]
    counts = dataset_findings.counted(text, tmp_path, tmp_path)
    text = dataset_toml.change(
        dataset_findings.set_kind(text, counts, "class", ""), (0, 0), {"class_tokens": "shs dog"}
    )
    report = looks.report(finish(looks, text, tmp_path))
    assert report is not None and {p.caption for p in report.pictures} == {"shs dog"}
    for picture in folder.glob("*.png"):
        picture.with_suffix(".txt").write_text("a caption")
    counts = dataset_findings.counted(text, tmp_path, tmp_path)
    text = dataset_findings.set_kind(text, counts, "captions", "")
    report = looks.report(finish(looks, text, tmp_path))
    assert report is not None and {p.caption_source for p in report.pictures} == {"file"}
