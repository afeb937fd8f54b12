"""Regularisation pictures from a tiny real model: sizes, seeds, going on, and leaving other files alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.tasks.conftest import ENV, Place
from trainer.data.scan import scan_folder
from trainer.events import Error, Event, Finished, Phase, Sample, Start, Stopped, read_events
from trainer.tasks.make_regularisation import share_out

pytestmark = pytest.mark.slow


def argv_of(place: Place, *flags: str, run: str) -> list[str]:
    return [
        sys.executable, "-m", "trainer", "make_regularisation", "--pretrained_model_name_or_path", str(place.model),
        "--class_prompt", "a thing, ü", "--output_dir", "classes", "--sample_steps", "2", "--run_dir", f"runs/{run}",
        *flags,
    ]  # fmt: skip


def make(place: Place, *flags: str, run: str = "a", code: int = 0) -> list[Event]:
    argv = argv_of(place, *flags, run=run)
    done = subprocess.run(argv, cwd=place.path, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return events_of(place, run)


def events_of(place: Place, run: str) -> list[Event]:
    return [line.event for line in read_events(place.path / "runs" / run / "events.jsonl")[0]]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".in-use")}


def test_a_series_in_the_sizes_of_the_training_pictures(place: Place) -> None:
    events = make(place, "--dataset_config", "d.toml", "--reg_count", "5", "--negative_prompt", "bad", "--scale", "3")
    classes = place.path / "classes"
    (start,) = [e for e in events if isinstance(e, Start)]
    assert (start.task, start.total_steps, start.first_step) == ("make_regularisation", 5, 0)
    assert isinstance(events[-1], Finished) and events[-1].path == str(classes)
    assert Phase("drawing", 5, 5) in events
    assert sorted(contents(classes)) == [f"reg_{i:05}{end}" for i in range(5) for end in (".png", ".txt")]
    scan = scan_folder(classes, caption_extension=".txt")
    assert not scan.bad and {p.caption for p in scan.pictures} == {"a thing, ü\n"}
    # five pictures of the data set, five of the class: one each in the same bucket
    train = scan_folder(place.path / "pics", caption_extension=".txt")
    buckets = {(96, 64): (80, 48), (64, 80): (56, 72), (64, 64): (64, 64)}
    assert Counter(p.size for p in scan.pictures) == Counter(buckets[p.size] for p in train.pictures)
    assert len({p.size for p in scan.pictures}) > 1
    with Image.open(classes / "reg_00003.png") as picture:
        record = json.loads(picture.info["make_regularisation"])
        assert picture.info["parameters"].startswith("a thing, ü\nNegative prompt: bad\nSteps: 2, Sampler: ddim")
    assert (record["index"], record["scale"], record["model"]) == (3, 3.0, "sd1")
    shown = [e for e in events if isinstance(e, Sample)]
    assert len(shown) == 5 and (place.path / "runs" / "a" / shown[4].path).is_file()
    assert json.loads((place.path / "runs" / "a" / "status.json").read_text())["state"] == "finished"


def test_the_data_set_may_name_the_folder_before_it_is_there(place: Place) -> None:
    text = (place.path / "d.toml").read_text()
    (place.path / "d.toml").write_text(text.replace("'reg'", "'classes'"))
    events = make(place, "--dataset_config", "d.toml", "--reg_count", "1", "--sample_steps", "1")
    assert isinstance(events[-1], Finished) and (place.path / "classes" / "reg_00000.png").is_file()


def test_a_series_goes_on_as_it_would_have(place: Place) -> None:
    flags = ("--resolution", "64,48")
    make(place, *flags, "--reg_count", "4", run="whole")
    whole = contents(place.path / "classes")
    (place.path / "classes").rename(place.path / "before")
    make(place, *flags, "--reg_count", "2", run="half")
    classes = place.path / "classes"
    kept = (classes / "reg_00001.png").stat().st_mtime_ns
    (classes / "reg_00000.png").unlink()
    (classes / "reg_00001.txt").write_text("edited by hand")
    (classes / "photo.jpg").write_bytes(b"mine")
    events = make(place, *flags, "--reg_count", "4", run="rest")
    assert next(e for e in events if isinstance(e, Start)).first_step == 1
    assert (classes / "reg_00001.png").stat().st_mtime_ns == kept
    assert contents(classes) == {**whole, "reg_00001.txt": b"edited by hand", "photo.jpg": b"mine"}
    assert len({v for k, v in whole.items() if k.endswith(".png")}) == 4
    with Image.open(classes / "reg_00002.png") as picture:
        assert picture.size == (64, 48)
    # all there: nothing is loaded and nothing drawn
    events = make(place, *flags, "--reg_count", "4", run="again")
    assert isinstance(events[-1], Finished) and not [e for e in events if isinstance(e, Sample)]


def test_nothing_in_the_way_is_ever_replaced(place: Place) -> None:
    flags = ("--resolution", "64", "--reg_count", "3")
    make(place, *flags, run="first")
    classes = place.path / "classes"
    (classes / "reg_00001.png").write_bytes(b"mine")
    (classes / "reg_00002.png").unlink()
    (classes / "reg_00002.txt").write_text("mine, too")
    before = contents(classes)
    events = make(place, *flags, "--class_prompt", "a dog", "--seed", "5", run="second", code=2)
    assert isinstance(events[-1], Error) and contents(classes) == before
    said = events[-1].message
    assert "reg_00001.png (and 1 more) would be in the way, and was not made by this command" in said
    assert "reg_00000.png was made with prompt 'a thing, ü', not 'a dog'" in said
    assert "was made with seed" in said and "Choose another folder" in said


def test_all_that_is_wrong_is_said_before_anything_loads(place: Place) -> None:
    (place.path / "file").touch()
    flags = ("--output_dir", "file", "--pretrained_model_name_or_path", "no such model", "--dataset_config", "no.toml")
    events = make(place, *flags, code=2)
    assert isinstance(events[-1], Error)
    assert {p["option"] for p in events[-1].problems} == {
        "output_dir", "pretrained_model_name_or_path", "dataset_config",
    }  # fmt: skip
    done = subprocess.run(
        argv_of(place, "--sample_sampler", "eulr", "--reg_count", "0", run="b"),
        cwd=place.path, env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "reg_count: should be 1 to 100000 (got 0)" in done.stderr


def test_a_stop_request_ends_it_between_two_pictures(place: Place) -> None:
    flags = ("--resolution", "64", "--reg_count", "500")
    run = place.path / "runs" / "a"
    with subprocess.Popen(argv_of(place, *flags, run="a"), cwd=place.path, env=ENV) as process:
        try:
            end = time.monotonic() + 120
            while not (place.path / "classes" / "reg_00001.png").exists():
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
            (run / "stop").touch()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    last = events_of(place, "a")[-1]
    assert isinstance(last, Stopped)
    pictures = list((place.path / "classes").glob("*.png"))
    assert len(pictures) == last.step < 500
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


def test_sizes_are_shared_out_in_proportion_and_longer_lists_begin_alike() -> None:
    wanted = {(64, 64): 6, (80, 48): 3, (48, 80): 1}
    sizes = share_out(wanted, 20)
    assert Counter(sizes) == {(64, 64): 12, (80, 48): 6, (48, 80): 2}
    assert Counter(sizes[:10]) == wanted and share_out(wanted, 7) == sizes[:7]
    assert sizes[:3] == [(64, 64), (80, 48), (64, 64)]
