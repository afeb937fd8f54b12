"""Validation loss and moving average through the task's entry: no training number is changed, resume is exact."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from tests.tasks.conftest import Place, Train
from tests.tasks.test_train_network import losses, of
from trainer.data.split import SplitOptions, choose
from trainer.events import Event, Validation
from trainer.maths.diffusion import TimestepOptions
from trainer.tasks.validation import fixed_timesteps


def validations(events: Sequence[Event]) -> dict[int, str]:
    """step -> loss, to the bit."""
    return {event.step: event.loss.hex() for event in of(Validation, events)}


def tensors(place: Place, run: str) -> dict[str, torch.Tensor]:
    """What a run's resume point holds of what trains."""
    return dict(load_file(place.path / "outputs" / f"{run}-state" / "trained.safetensors"))


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """To the bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_validation_changes_no_training_number_and_is_the_same_with_caches(place: Place, train: Train) -> None:
    dataset = place.path / "d.toml"
    flags = ("--dataset_config", "d.toml", "--network_dropout", "0.3", "--save_state_on_train_end")
    plain = dataset.read_text()
    dataset.write_text(plain.replace("batch_size = 2", "batch_size = 2\nvalidation_split = 0.4"))
    every_step = train("train_network", *flags, "--validate_every_n_steps", "1", name="every")
    found = validations(every_step)
    assert list(found) == [0, 1, 2, 3] and len(set(found.values())) == 4
    assert {event.num_pictures for event in of(Validation, every_step)} == {2}

    frozen = (*flags, "--network_train_unet_only", "--max_validation_steps", "1")
    bare = train("train_network", *frozen, "--validate_every_n_epochs", "1", name="bare")
    cached = train("train_network", *frozen, "--cache_latents", "--cache_text_encoder_outputs", name="cached")
    assert validations(bare) == validations(cached) and {0, 3} <= validations(bare).keys()
    assert {event.num_pictures for event in of(Validation, cached)} == {1}

    # without the pictures there is nothing to validate with
    for index in choose([f"p{i}.png" for i in range(5)], SplitOptions(validation_split=0.4)):
        shutil.move(place.path / "pics" / f"p{index}.png", place.path)
    dataset.write_text(plain)
    without = train("train_network", *flags, name="without")
    assert not of(Validation, without)
    assert [loss.hex() for loss in losses(without)] == [loss.hex() for loss in losses(every_step)]
    assert equal(tensors(place, "without"), tensors(place, "every"))


def test_the_average_is_saved_and_resumes_to_the_bit(place: Place, train: Train) -> None:
    flags = ("--dataset_config", "d.toml", "--gradient_accumulation_steps", "2", "--save_every_n_steps", "1")
    ema = (*flags, "--save_state", "--use_ema", "--ema_decay", "0.5")
    straight = train("train_network", *ema, steps=4)
    rest = train("train_network", *ema, "--resume", "outputs/a-step00000001-state", steps=4, name="rest")
    assert [loss.hex() for loss in losses(rest)] == [loss.hex() for loss in losses(straight)[1:]]
    assert equal(tensors(place, "rest"), tensors(place, "a"))
    outputs = place.path / "outputs"
    states = [torch.load(outputs / f"{run}-state" / "optimizer.pt", weights_only=True) for run in ("a", "rest")]
    one, two = (state["averaging"] for state in states)
    assert one["updates"] == two["updates"] == 4
    assert all(torch.equal(x, y) for x, y in zip(one["averages"], two["averages"], strict=True))
    saved = dict(load_file(outputs / "a.safetensors"))
    assert equal(saved, dict(load_file(outputs / "rest.safetensors")))

    # the saved files are the average of what a run without one trains
    newest = train("train_network", *flags, steps=4, name="newest")
    assert [loss.hex() for loss in losses(newest)] == [loss.hex() for loss in losses(straight)]
    ups = [name for name in saved if name.endswith("lora_up.weight")]
    trained = [load_file(outputs / f"newest-step{step:08}.safetensors") for step in (1, 2, 3)]
    trained.append(load_file(outputs / "newest.safetensors"))
    for name in ups:
        average = torch.zeros_like(saved[name])
        for step, weights in enumerate(trained, start=1):
            decay = min(0.5, step / (step + 9))
            average = decay * average + (1 - decay) * weights[name]
        torch.testing.assert_close(saved[name], average, rtol=1e-4, atol=1e-8)
    assert any(not torch.equal(saved[name], trained[-1][name]) for name in ups)


def test_validation_without_pictures_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.config import build
    from trainer.store import Sourced
    from trainer.tasks import tasks
    from trainer.tasks.training_config import check

    monkeypatch.chdir(place.path)
    values = {
        "pretrained_model_name_or_path": str(place.model),
        "dataset_config": "d.toml",
        "max_validation_steps": 3,
    }
    config = build(tasks()["train_network"].config, {name: Sourced(v, "flag") for name, v in values.items()})
    assert [problem.option for problem in check(config)] == ["max_validation_steps"]


def test_timesteps_are_inside_those_that_train() -> None:
    assert fixed_timesteps(TimestepOptions()) == (200, 400, 600, 800)
    narrow = fixed_timesteps(TimestepOptions(min_timestep=500, max_timestep=510))
    assert narrow == (502, 504, 506, 508) and all(a < b for a, b in pairwise(narrow))
    assert set(fixed_timesteps(TimestepOptions(min_timestep=999, max_timestep=1000))) == {999}
