"""Looking at what the model would get: as a flag of a training and as a command, with keys at a real terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tasks.conftest import ENV, Place
from trainer.data.config import DataOptions, read_dataset
from trainer.data.dataset import TrainingSet
from trainer.data.loader import Loader
from trainer.data.sampler import plan_epoch
from trainer.events import Error, Finished, Sample, Start, Step, Stopped, read_events

pytestmark = pytest.mark.slow


def command(place: Place, *flags: str, code: int = 0, run: str = "a") -> Path:
    argv = [sys.executable, "-m", "trainer", "debug_dataset", "--dataset_config", "d.toml", "--seed", "3"]
    argv += ["--run_dir", f"runs/{run}", *flags]
    done = subprocess.run(
        argv, cwd=place.path, env=ENV, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return place.path / "runs" / run


def index_of(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return index


def test_the_pictures_and_captions_are_those_of_the_training(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (place.path / "d.toml").read_text().replace("caption_dropout_rate = 0.1", "color_aug = true")
    text = text.replace("caption_tag_dropout_rate = 0.2", "keep_tokens = 1").replace("step = 0.7", "step = 0.005")
    (place.path / "d.toml").write_text(text)
    run = command(place, "--debug_epochs", "2")
    folder = run / "debug_dataset"
    index = index_of(folder)
    assert index["version"] == 1 and index["seed"] == 3
    monkeypatch.chdir(place.path)
    training_set = TrainingSet.build(read_dataset(DataOptions(dataset_config=place.path / "d.toml")))
    # captions grow for a share of all steps: 0.005 of 1600
    loader = Loader(replace(training_set, total_steps=1600), seed=3)
    batches = iter(index["batches"])
    seen_flips, lengths = set(), set()
    first = 0
    for epoch in range(2):
        plan = plan_epoch(training_set, seed=3, epoch=epoch, accumulation=1, processes=1, first_step=first)
        first += len(plan)
        for number, batch in enumerate(loader.batches([s.micro_batches[0][0] for s in plan]), start=1):
            entry = next(batches)
            assert (entry["epoch"], entry["batch"], tuple(entry["bucket"])) == (epoch + 1, number, batch.bucket)
            assert batch.pixels_BCHW is not None
            for view, pixels_CHW, said in zip(batch.views, batch.pixels_BCHW, entry["pictures"], strict=True):
                with Image.open(folder / said["file"]) as picture:
                    levels = np.asarray(picture, dtype=np.float32)
                assert np.array_equal(levels.transpose(2, 0, 1) / np.float32(127.5) - 1, pixels_CHW.numpy())
                text = (folder / said["file"]).with_suffix(".txt").read_text()
                assert text == f"{view.caption}\n" and said["caption"] == view.caption
                assert Path(said["path"]).name == view.sample.picture.path.name
                seen_flips.add(said["flipped"])
                lengths.add((said["step"] > 8, view.caption.count(",")))
    assert next(batches, None) is None and seen_flips == {True, False}
    assert (True, 2) in lengths and (False, 2) not in lengths  # the captions have warmed up after eight steps
    events = [line.event for line in read_events(run / "events.jsonl")[0]]
    assert isinstance(events[-1], Finished) and events[-1].path == str(folder)
    shown = [e for e in events if isinstance(e, Sample)]
    assert len(shown) == 12 and (run / shown[0].path).is_file()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_training_asked_for_it_trains_nothing_and_loads_no_model(place: Place) -> None:
    events = place.train("--debug_dataset", "--debug_max_pictures", "5", "--debug_dir", "seen")
    assert isinstance(events[-1], Finished) and not [e for e in events if isinstance(e, Start | Step)]
    index = index_of(place.path / "seen")
    files = {picture["file"] for batch in index["batches"] for picture in batch["pictures"]}
    assert len(files) == 5 == len(list((place.path / "seen").glob("*.png")))
    assert not (place.path / "outputs" / "a.safetensors").exists()


def test_masks_are_written_beside_their_pictures(place: Place) -> None:
    half = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 32, 64))
    half.save(place.path / "pics" / "p0.png")
    text = (place.path / "d.toml").read_text()
    (place.path / "d.toml").write_text(text.replace("flip_aug = true", "alpha_mask = true"))
    folder = command(place) / "debug_dataset"
    pictures = [picture for batch in index_of(folder)["batches"] for picture in batch["pictures"]]
    (masked, *_) = [p for p in pictures if p["path"].endswith("pics/p0.png")]
    with Image.open(folder / masked["mask"]) as mask:
        assert mask.size == (64, 64) and [mask.getpixel((x, 20)) for x in (10, 50)] == [0, 255]
    assert {bool(p["mask"]) for p in pictures if p["is_reg"]} == {False}


def test_a_folder_with_files_is_never_written_to(place: Place) -> None:
    (place.path / "seen").mkdir()
    (place.path / "seen" / "epoch001_batch00001_01.png").write_text("mine")
    run = command(place, "--debug_dir", "seen", code=2)
    (error,) = [line.event for line in read_events(run / "events.jsonl")[0] if isinstance(line.event, Error)]
    assert "debug_dir: is not empty (got seen), set in --debug_dir" in error.message
    assert [p.read_text() for p in (place.path / "seen").iterdir()] == ["mine"]


def test_a_stop_request_ends_it(place: Place) -> None:
    run = place.path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "stop").touch()
    command(place)
    assert isinstance(read_events(run / "events.jsonl")[0][-1].event, Stopped)
    assert len(index_of(run / "debug_dataset")["batches"]) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["s", "\x1b[Axs", "\x1b"], [(1, 1), (1, 2), (1, 3)]),  # an arrow and a letter without meaning change nothing
        (["S", "e", "s", "E", "\x1b"], [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]),
    ],
)
def test_keys_at_a_terminal(place: Place, keys: list[str], expected: list[tuple[int, int]]) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    argv = [sys.executable, *place.argv("--debug_dataset")]
    with subprocess.Popen(argv, cwd=place.path, env=ENV, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            heard = ""
            for asked, key in enumerate(keys, start=1):
                heard = _listen(ours, heard, asked)
                # keys of one write are read as one sequence when they begin like an arrow
                for part in (key[:3], key[3:]):
                    os.write(ours, part.encode())
                    time.sleep(0.3)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    assert termios.tcgetattr(theirs) == before
    index = index_of(place.path / "runs" / "a" / "debug_dataset")
    assert [(batch["epoch"], batch["batch"]) for batch in index["batches"]] == expected


def _listen(terminal: int, heard: str, times: int) -> str:
    """Read until the question for a key has been asked so many times."""
    import select

    end = time.monotonic() + 60
    while heard.count("Esc: end") < times:
        assert time.monotonic() < end, heard
        if select.select([terminal], [], [], 1.0)[0]:
            heard += os.read(terminal, 4096).decode(errors="replace")
    return heard
