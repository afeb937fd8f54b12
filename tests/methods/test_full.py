"""Training the model itself: what trains at which rate, where the text encoder stops, resuming, wrapped modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from tests.methods.test_adapter import load
from trainer.errors import RunError
from trainer.families.base import Family
from trainer.methods.full import (
    DreamBoothOptions,
    FineTuneOptions,
    FullMethod,
    FullOptimizerOptions,
    TextEncoderOptions,
    problems,
    trained_parts,
)
from trainer.optim.optimizers import build

BOTH, UNET, TEXT = ("denoiser", "text_encoder"), ("denoiser",), ("text_encoder",)


@pytest.mark.parametrize(
    ("text_encoder", "rates", "expected"),
    [
        (DreamBoothOptions(), {}, BOTH),
        (DreamBoothOptions(stop_text_encoder_training=5), {}, BOTH),
        (DreamBoothOptions(stop_text_encoder_training=0), {}, UNET),
        (DreamBoothOptions(stop_text_encoder_training=-1), {}, UNET),
        (DreamBoothOptions(), {"learning_rate_te": 0.0}, UNET),
        (DreamBoothOptions(), {"learning_rate": 0.0, "learning_rate_te": 1e-6}, TEXT),
        (FineTuneOptions(), {}, UNET),
        (FineTuneOptions(train_text_encoder=True), {}, BOTH),
        (FineTuneOptions(), {"learning_rate": 0.0}, ()),
    ],
)
def test_what_trains(text_encoder: TextEncoderOptions, rates: dict[str, float], expected: tuple[str, ...]) -> None:
    options = FullOptimizerOptions(**rates)
    assert trained_parts(text_encoder, options, BOTH) == expected
    assert [p.option for p in problems(text_encoder, options)] == ([] if expected else ["learning_rate"])


def test_a_rate_for_what_does_not_train_is_said() -> None:
    (problem,) = problems(FineTuneOptions(), FullOptimizerOptions(learning_rate_te=1e-6))
    assert (problem.option, problem.severity) == ("learning_rate_te", "warning")


def method(folder: Path, *, stop: int | None = None, **model: Any) -> tuple[Family, FullMethod]:
    family = load(folder, **model)
    rates = FullOptimizerOptions(learning_rate=1e-3, learning_rate_te=1e-4)
    options = DreamBoothOptions(stop_text_encoder_training=stop)
    return family, FullMethod(family, options, rates, saved_as="safetensors")


def optimizer_of(trained: FullMethod) -> torch.optim.Optimizer:
    return build(FullOptimizerOptions(optimizer_args=["weight_decay=0.1"]), trained.groups())


def step(family: Family, trained: FullMethod, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    noisy, target = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    conditioning = family.encode_prompts(trained.text_encoders, ["a cat"])
    predicted = family.predict(trained.denoiser, noisy, torch.tensor([500]), conditioning)
    (predicted - target).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    trained.after_update()


def text_weights(trained: FullMethod) -> dict[str, torch.Tensor]:
    return {k: t.clone() for k, t in trained.state_dict().items() if k.startswith("text_encoder.")}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_rates_groups_and_modes(tiny_folder: Path) -> None:
    family, trained = method(tiny_folder)
    assert [(g.name, g.learning_rate) for g in trained.groups()] == [("unet", 1e-3), ("textencoder", 1e-4)]
    counts = [sum(p.numel() for p in g.parameters) for g in trained.groups()]
    assert counts == [sum(p.numel() for p in module.parameters()) for module in family.components().values()]
    assert trained.denoiser.training and trained.text_encoders[0].training
    assert not any(p.requires_grad for p in family.vae.parameters())
    _, unet = method(tiny_folder, stop=-1)
    assert not unet.text_encoders[0].training and not any(p.requires_grad for p in unet.text_encoders[0].parameters())
    assert set(unet.modules()) == {"denoiser"} and not text_weights(unet)


def test_the_text_encoder_stops_for_good_and_a_resumed_run_knows_it(tiny_folder: Path) -> None:
    family, trained = method(tiny_folder, stop=2)
    optimizer = optimizer_of(trained)
    seen = [text_weights(trained)]
    for number in range(4):
        step(family, trained, optimizer, number)
        trained.train()
        seen.append(text_weights(trained))
        if number == 0:
            middle = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    assert [equal(one, two) for one, two in zip(seen, seen[1:], strict=False)] == [False, False, True, True]
    assert trained.denoiser.training and not trained.text_encoders[0].training

    late_family, late = method(tiny_folder, stop=2)
    late.load_state_dict(trained.state_dict())
    step(late_family, late, optimizer_of(late), 9)
    assert equal(text_weights(late), seen[-1])
    early_family, early = method(tiny_folder, stop=2)
    early.load_state_dict(middle)
    early_optimizer = optimizer_of(early)
    moved = []
    for number in range(2):
        before = text_weights(early)
        step(early_family, early, early_optimizer, number)
        moved.append(not equal(before, text_weights(early)))
    assert moved == [True, False]
    del middle["denoiser.conv_in.weight"]
    with pytest.raises(RunError, match="1 tensors differ, such as denoiser.conv_in.weight"):
        early.load_state_dict(middle)


def test_layers_that_clip_skip_leaves_out_stay_as_they_are(tiny_folder: Path) -> None:
    family, trained = method(tiny_folder, clip_skip=2)
    before = text_weights(trained)
    step(family, trained, optimizer_of(trained), 0)
    same = {key for key, tensor in text_weights(trained).items() if torch.equal(tensor, before[key])}
    assert {".".join(key.split(".")[:4]) for key in same} == {"text_encoder.encoder.layers.2"}
    assert len(same) == len([key for key in before if ".layers.2." in key])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A group of one, with which DDP checks all it checks."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", world_size=1, rank=0)
    yield
    torch.distributed.destroy_process_group()


def test_wrapped_modules_do_not_wait_for_what_has_stopped(tiny_folder: Path, one_process: None) -> None:
    family, trained = method(tiny_folder, stop=1, clip_skip=2)
    trained.use_prepared({name: DistributedDataParallel(module) for name, module in trained.modules().items()})
    optimizer = optimizer_of(trained)
    plain_family, plain = method(tiny_folder, stop=1, clip_skip=2)
    plain_optimizer = optimizer_of(plain)
    for number in range(3):
        step(family, trained, optimizer, number)
        step(plain_family, plain, plain_optimizer, number)
    assert equal(trained.state_dict(), plain.state_dict())
