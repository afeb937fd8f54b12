"""The example, end to end and scored: did training teach the concept, and is the shipped model what its card says?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.make import evaluate, score, world
from trainer.events import Finished, Sample, Step, read_events

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples" / "model"
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


half_trained = pytest.mark.xfail(
    strict=True,
    reason="the committed weights are not trained to the end (scores in examples/model/README.md); the bars stay, and "
    "strict makes this mark fail as soon as better weights pass them",
)

Prompts = Sequence[tuple[str, world.Spec]]


def which_right(pipe: Any, prompts: Prompts) -> list[bool]:
    images = evaluate.pictures(pipe, [caption for caption, _ in prompts])
    return [score.right(image, spec) for image, (_, spec) in zip(images, prompts, strict=True)]


def share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    return StableDiffusionPipeline.from_pretrained(
        MODEL, safety_checker=None, local_files_only=True, torch_dtype=torch.float32
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example was trained by the shipped configuration, from the command line."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "examples", folder / "examples")
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "trainer"]
    argv += ["train_network", "--config_file", str(ROOT / "config_files" / "example_lora.toml"), "--run_dir", "run"]
    began = time.monotonic()
    done = subprocess.run(argv, cwd=folder, env=ENV, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "seconds").write_text(str(time.monotonic() - began))
    return folder


@pytest.fixture(scope="module")
def taught(run: Path) -> Any:
    """diffusers with the trained file, loaded as a user does."""
    pipe = pipeline()
    pipe.load_lora_weights(run / "outputs" / "sks_house.safetensors")
    return pipe


def test_the_scorer_tells_right_from_wrong() -> None:
    import random

    rng = random.Random(0)
    specs = [spec for _, spec in evaluate.old_prompts(100, 5)]
    drawn = [world.draw(spec, rng) for spec in specs]
    assert sum(score.right(picture, spec) for picture, spec in zip(drawn, specs, strict=True)) >= 99
    others = specs[1:] + specs[:1]
    assert sum(score.right(picture, spec) for picture, spec in zip(drawn, others, strict=True)) <= 2


@pytest.fixture(scope="module")
def old_before() -> float:
    """The untaught model's share of right pictures on old prompts."""
    return share(which_right(pipeline(), evaluate.old_prompts(64, 1001)))


@pytest.fixture(scope="module")
def unseen_before() -> float:
    """The same on compositions it was never trained on."""
    return share(which_right(pipeline(), evaluate.unseen_prompts(64, 1002)))


def test_the_model_is_what_its_card_says(old_before: float, unseen_before: float) -> None:
    """Ten points below the card's scores, which are over more prompts."""
    assert old_before >= 0.49 and unseen_before >= 0.41


@half_trained
def test_the_model_draws_what_old_prompts_say(old_before: float) -> None:
    assert old_before >= 0.65


@half_trained
def test_the_model_draws_compositions_it_never_saw(unseen_before: float) -> None:
    assert unseen_before >= 0.65


def test_before_training_there_is_no_house() -> None:
    prompts = [(c, s) for c, s, _ in evaluate.concept_prompts(24, 1003)]
    assert share(which_right(pipeline(), prompts)) <= 0.05


@half_trained
def test_training_teaches_the_house_also_where_it_was_never_seen(taught: Any) -> None:
    prompts = evaluate.concept_prompts(32, 1003)
    right = which_right(taught, [(c, s) for c, s, _ in prompts])
    assert share(right) >= 0.40
    assert share([hit for hit, (_, _, seen) in zip(right, prompts, strict=True) if not seen]) >= 0.25


@half_trained
def test_training_does_not_forget_the_rest(taught: Any, old_before: float) -> None:
    assert old_before >= 0.65, "a model that knows nothing has nothing to forget"
    assert old_before - share(which_right(taught, evaluate.old_prompts(64, 1001))) <= 0.25


def test_the_run_said_what_it_did(run: Path) -> None:
    events = [line.event for line in read_events(run / "run" / "events.jsonl")[0]]
    steps = [e for e in events if isinstance(e, Step)]
    assert isinstance(events[-1], Finished)
    third = len(steps) // 3
    first, last = steps[:third], steps[-third:]
    assert sum(s.loss for s in last) / len(last) < sum(s.loss for s in first) / len(first)
    drawn = {e.step for e in events if isinstance(e, Sample)}
    assert 0 in drawn and steps[-1].step in drawn
