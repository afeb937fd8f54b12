"""A small data set beside the tiny model, and a runner that starts the trainer as users do."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from trainer.events import Event, read_events
from trainer.tasks import tasks

ROOT = Path(__file__).parents[2]

DATASET = """
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
  num_repeats = 2
  flip_aug = true
  shuffle_caption = true
  enable_wildcard = true
  caption_dropout_rate = 0.1
  caption_tag_dropout_rate = 0.2
  token_warmup_step = 0.7
  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'
  class_tokens = 'thing'
"""


@dataclass(frozen=True)
class Place:
    """A folder to train in."""

    path: Path
    model: Path

    def argv(self, *flags: str, run: str = "a") -> list[str]:
        """The command line of a short run."""
        return [
            "-m", "trainer", "train_network", "--pretrained_model_name_or_path", str(self.model),
            "--dataset_config", "d.toml", "--sample_prompts", "p.txt", "--seed", "3", "--learning_rate", "1e-3",
            "--max_train_epochs", "1", "--output_name", run, "--run_dir", f"runs/{run}",
            "--save_state_on_train_end", *flags,
        ]  # fmt: skip

    def train(self, *flags: str, run: str = "a", code: int = 0) -> list[Event]:
        """Run to the end and return the events."""
        argv = [sys.executable, *self.argv(*flags, run=run)]
        done = subprocess.run(argv, cwd=self.path, env=ENV, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return self.events(run)

    def events(self, run: str) -> list[Event]:
        """What a run has said so far."""
        return [line.event for line in read_events(self.path / "runs" / run / "events.jsonl")[0]]


ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def make_pictures(folder: Path, count: int, *, caption: str = "", seed: int = 0) -> None:
    """Pictures of one colour with a stripe, of several shapes."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        size = rng.choice([(64, 64), (96, 64), (64, 80)])
        picture = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
        picture.paste((255, 255, 255), (0, 0, size[0] // 3, size[1]))
        picture.save(folder / f"p{index}.png")
        if caption:
            (folder / f"p{index}.txt").write_text(f"{caption}, number {index}, nice")


@pytest.fixture
def new_place(tmp_path: Path, tiny_folder: Path) -> Callable[[str], Place]:
    """Make a folder with pictures, captions, dataset TOML and prompts."""

    def make(name: str = "place") -> Place:
        path = tmp_path / name
        make_pictures(path / "pics", 5, caption="a sks thing")
        make_pictures(path / "reg", 3, seed=1)
        (path / "d.toml").write_text(DATASET)
        (path / "p.txt").write_text("a sks thing --w 64 --h 64 --d 1 --s 3\n# a remark\na thing --w 64 --h 64 --s 3\n")
        return Place(path, tiny_folder)

    return make


@pytest.fixture
def place(new_place: Callable[[str], Place]) -> Place:
    """One such folder."""
    return new_place("place ü 1")


Train = Callable[..., list[Event]]


@pytest.fixture
def train(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """Run a task to its end and return its events; it is to end well."""
    monkeypatch.chdir(place.path)
    handlers = list(logging.getLogger().handlers)

    def run(task: str, *flags: str, steps: int = 3, name: str = "a") -> list[Event]:
        argv = ["--pretrained_model_name_or_path", str(place.model), "--seed", "3", "--learning_rate", "1e-3"]
        argv += ["--max_train_steps", str(steps), "--output_name", name, "--run_dir", f"runs/{name}", *flags]
        code = tasks()[task].command().main(argv)
        events = place.events(name)
        assert code == 0, events[-1]
        return events

    yield run
    for handler in set(logging.getLogger().handlers) - set(handlers):
        logging.getLogger().removeHandler(handler)
        handler.close()
