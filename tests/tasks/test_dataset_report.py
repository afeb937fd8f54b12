"""The report of a data set, as people and as programs read it; every case is a real command in its own folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.conftest import noise_picture
from tests.tasks.conftest import ENV
from trainer.families.components import VOCABULARY
from trainer.tasks.dataset_report import count_tokens

TOML = """
[general]
enable_bucket = true
bucket_reso_steps = 8
min_bucket_reso = 32
max_bucket_reso = 128
[[datasets]]
resolution = 64
batch_size = 2
  [[datasets.subsets]]
  image_dir = 'pics'
  caption_extension = '.txt'
  num_repeats = 3
  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'
  class_tokens = 'thing'
"""


def picture(path: Path, size: tuple[int, int] = (64, 64), caption: str = "") -> None:
    noise_picture(path, size)
    if caption:
        path.with_suffix(".txt").write_text(caption)


def command(folder: Path, *flags: str, code: int = 0) -> tuple[dict[str, Any], str, str]:
    argv = [sys.executable, "-m", "trainer", "dataset_report", *flags, "--json", "out/report.json"]
    done = subprocess.run(argv, cwd=folder, env=ENV, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return json.loads((folder / "out" / "report.json").read_text()), done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "pics" / "a.png", (96, 64), "a sks thing\n")
    picture(tmp_path / "pics" / "b.png", (64, 64), "a sks thing, nice")
    picture(tmp_path / "reg" / "r.png", (64, 64))
    (tmp_path / "d.toml").write_text(TOML)
    return tmp_path


def kinds(report: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for note in report["warnings"]:
        found.setdefault(note["kind"], []).append(Path(note["path"]).name)
    return found


def test_the_plan_of_every_picture(folder: Path) -> None:
    report, text, errors = command(folder, "--dataset_config", "d.toml")
    assert report["version"] == 1 and report["bad_files"] == report["warnings"] == report["problems"] == []
    (dataset,) = report["datasets"]
    assert dataset["resolution"] == [64, 64] and dataset["batch_size"] == 2
    assert (dataset["uses"], dataset["reg_uses"]) == (6, 6)
    # 3 uses of the wide picture are 2 batches; 3 of the square one and 6 regularisation uses are 5
    assert dataset["steps_per_epoch"] == 7
    assert dataset["buckets"] == [
        {"size": [64, 64], "count": 9, "pictures": 2},
        {"size": [80, 48], "count": 3, "pictures": 1},
    ]
    assert dataset["images"][0] == {
        "path": "pics/a.png", "size": [96, 64], "bucket": [80, 48], "resized": [80, 53], "crop": [0, 2, 80, 50],
        "repeats": 3, "is_reg": False, "caption": "a sks thing", "caption_source": "file", "subset": 0,
        "validation": False,
    }  # fmt: skip
    reg = dataset["images"][2]
    assert (reg["is_reg"], reg["caption"], reg["caption_source"], reg["subset"]) == (True, "thing", "class_tokens", 1)
    assert [s["captions"] for s in dataset["subsets"]] == [{"file": 2}, {"class_tokens": 1}]
    assert dataset["subsets"][1]["source"] == "d.toml line 14"
    assert "resolution 64x64, batch size 2, 7 steps per epoch" in text
    assert "   64 x 64         9 " + "#" * 40 + "\n" in text and " 80 x 48         3 " + "#" * 13 + "\n" in text
    assert errors == ""


def test_flags_and_folders_work_like_a_file(folder: Path) -> None:
    picture(folder / "train" / "5_sks thing" / "x.png", (80, 48))
    report, _, _ = command(folder, "--train_data_dir", "train", "--resolution", "64", "--train_batch_size", "4")
    (dataset,) = report["datasets"]
    assert dataset["steps_per_epoch"] == 2 and dataset["buckets"] == [{"size": [64, 64], "count": 5, "pictures": 1}]
    image = dataset["images"][0]
    assert image["resized"] == [107, 64] and image["crop"] == [21, 0, 85, 64]
    assert (image["caption"], image["caption_source"]) == ("sks thing", "class_tokens")


def test_metadata_files_and_pictures_kept_out_for_validation(folder: Path) -> None:
    records = {f"{name}.png": {"caption": f"a {name}", "tags": "nice"} for name in "abcd"}
    (folder / "pics" / "meta.json").write_text(json.dumps({**records, "e.png": {}}))
    for name in "abcde":
        picture(folder / "pics" / f"{name}.png")
    lines = "[[datasets]]\nresolution = 64\nvalidation_split = 0.4\n[[datasets.subsets]]\n"
    (folder / "m.toml").write_text(f"{lines}metadata_file = 'pics/meta.json'\nnum_repeats = 2\n")
    report, text, _ = command(folder, "--dataset_config", "m.toml")
    (dataset,) = report["datasets"]
    assert [image["validation"] for image in dataset["images"]] == [False] * 3 + [True] * 2
    assert [image["repeats"] for image in dataset["images"]] == [2] * 3 + [1] * 2
    assert dataset["buckets"] == [{"size": [64, 64], "count": 6, "pictures": 3}] and dataset["steps_per_epoch"] == 6
    by_name = {Path(image["path"]).name: image for image in dataset["images"]}
    assert (by_name["a.png"]["caption"], by_name["a.png"]["caption_source"]) == ("a a,nice", "metadata")
    assert (by_name["e.png"]["caption"], by_name["e.png"]["caption_source"]) == ("", "empty")
    assert (dataset["subsets"][0]["pictures"], dataset["subsets"][0]["validation"]) == (3, 2)
    assert "3 pictures x 2 (2 more kept out for validation); captions: " in text


def test_bad_files_are_all_named_and_the_good_ones_still_planned(folder: Path) -> None:
    whole = (folder / "pics" / "a.png").read_bytes()
    (folder / "pics" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "pics" / "empty.jpg").touch()
    (folder / "pics" / "b.txt").write_bytes(b"caf\xe9")
    report, text, _ = command(folder, "--dataset_config", "d.toml", code=2)
    assert sorted(Path(bad["path"]).name for bad in report["bad_files"]) == ["b.txt", "cut.png", "empty.jpg"]
    assert "empty (0 bytes)" in text and "3 files or folders cannot be used" in text
    assert [Path(image["path"]).name for image in report["datasets"][0]["images"]] == ["a.png", "r.png"]


def test_warnings_say_what_and_where(folder: Path) -> None:
    picture(folder / "pics" / "c.png", (40, 40), "a sks " + "very " * 80 + "thing")
    picture(folder / "pics" / "d.png", (20, 20))
    picture(folder / "pics" / "e.png", (64, 64), "a sks " + "very " * 72 + "thing")
    for index in range(20):
        picture(folder / "reg" / f"{index}.png")
    report, text, _ = command(folder, "--dataset_config", "d.toml")
    assert kinds(report) == {
        "reg_surplus": ["reg"],
        "missing_caption": ["d.png"],
        "upscaled": ["c.png", "d.png"],
        "tiny": ["d.png"],
        "too_many_tokens": ["c.png"],
    }
    said = {note["kind"]: note["message"] for note in report["warnings"]}
    assert said["too_many_tokens"].startswith("its caption has 83 tokens; the model reads 75")
    assert said["upscaled"] == "is enlarged 3.20 times, from 20x20 to 64x64"
    assert "warning: captions that are too long (1)\n  pics/c.png: its caption has 83 tokens" in text
    report, _, _ = command(folder, "--dataset_config", "d.toml", "--max_token_length", "150")
    assert "too_many_tokens" not in kinds(report)


def test_pictures_that_look_alike_are_named_with_the_first(folder: Path) -> None:
    with Image.open(folder / "pics" / "a.png") as image:
        image.resize((192, 128)).convert("RGB").save(folder / "pics" / "twin.jpg", quality=95)
    (folder / "pics" / "twin.txt").write_text("again")
    shutil.copy(folder / "pics" / "b.png", folder / "pics" / "copy.png")
    (folder / "pics" / "copy.txt").write_text("again")
    report, text, _ = command(folder, "--dataset_config", "d.toml")
    assert [(note["kind"], note["path"], note["message"]) for note in report["warnings"]] == [
        ("near_duplicate", "pics/copy.png", "is the same file as pics/b.png"),
        ("near_duplicate", "pics/twin.jpg", "looks almost like pics/a.png"),
    ]
    assert "warning: pictures that look alike (2)\n" in text


def test_the_longest_of_several_captions_counts(folder: Path) -> None:
    (folder / "pics" / "a.txt").write_text("a sks thing\n" + "very " * 90)
    report, _, _ = command(folder, "--dataset_config", "d.toml")
    assert kinds(report) == {}  # the first line is the caption
    (folder / "d.toml").write_text(TOML.replace("num_repeats = 3", "num_repeats = 3\n  enable_wildcard = true"))
    report, _, _ = command(folder, "--dataset_config", "d.toml")
    assert kinds(report) == {"too_many_tokens": ["a.png"]}


def test_a_picture_that_a_mask_leaves_nothing_of_is_bad(folder: Path) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(folder / "pics" / "clear.png")
    (folder / "d.toml").write_text(TOML.replace("num_repeats = 3", "num_repeats = 3\n  alpha_mask = true"))
    report, _, _ = command(folder, "--dataset_config", "d.toml", code=2)
    assert [(bad["path"], bad["reason"][:25]) for bad in report["bad_files"]] == [
        ("pics/clear.png", "is transparent everywhere"),
    ]
    assert [Path(i["path"]).name for i in report["datasets"][0]["images"]] == ["a.png", "b.png", "r.png"]


def test_a_picture_without_its_caption_among_others_that_have_one(folder: Path) -> None:
    picture(folder / "pics" / "d.png")
    (folder / "d.toml").write_text(TOML.replace("num_repeats = 3", "num_repeats = 3\n  class_tokens = 'sks'"))
    report, _, _ = command(folder, "--dataset_config", "d.toml")
    assert kinds(report) == {"missing_caption": ["d.png"]}  # and none for reg, which has no caption files at all
    assert '"sks" is used' in report["warnings"][0]["message"]


def test_captions_under_another_extension_come_with_the_fix(folder: Path) -> None:
    (folder / "d.toml").write_text(TOML.replace("'.txt'", "'.caption'"))
    report, _, _ = command(folder, "--dataset_config", "d.toml", code=2)
    (note,) = [n for n in report["warnings"] if n["kind"] == "caption_extension"]
    assert (note["path"], note["fix"]) == ("pics", {"caption_extension": ".txt"})
    assert [bad["path"] for bad in report["bad_files"]] == ["pics"]


def test_settings_that_cannot_be_right_are_all_in_the_report(folder: Path) -> None:
    (folder / "d.toml").write_text(TOML.replace("batch_size = 2", "batch_size = 0\nresolutoin = 5"))
    report, text, errors = command(folder, "--dataset_config", "d.toml", code=2)
    assert report["datasets"] == [] and text == ""
    assert [(p["option"], p["source"]) for p in report["problems"]] == [
        ("resolutoin", "d.toml line 10"),
        ("batch_size", "d.toml line 9"),
    ]
    assert "Did you mean resolution?" in errors


def test_progress_goes_to_the_error_stream_alone(folder: Path) -> None:
    _, text, errors = command(folder, "--dataset_config", "d.toml", "--progress_json")
    counts = [json.loads(line) for line in errors.splitlines()]
    assert counts[-1] == {"done": 3, "total": 3} and '"done"' not in text


def test_planning_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys; from trainer.tasks.dataset_report import main; "
        "main(['--dataset_config', 'd.toml']); assert 'trainer.data.dataset' in sys.modules; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_five_thousand_pictures(folder: Path) -> None:
    whole = (folder / "pics" / "a.png").read_bytes()
    for index in range(5000):
        (folder / "pics" / f"{index:04}.png").write_bytes(whole)
    report, text, _ = command(folder, "--dataset_config", "d.toml")
    assert len(report["datasets"][0]["images"]) == 5003
    assert len(kinds(report)["missing_caption"]) == len(kinds(report)["near_duplicate"]) == 5000
    assert "  and 4995 more\n" in text and len(text) < 5000


def test_tokens_are_those_of_the_encoder() -> None:
    assert count_tokens(VOCABULARY, ["", "a cat", "shs 1girl, solo"]) == [0, 2, 5]
