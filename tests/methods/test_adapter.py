"""Training an adapter: what trains at which rate, that it learns, resumes exactly and exports."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from trainer.adapters.base import AdapterOptions
from trainer.errors import ConfigError
from trainer.families.base import Family, ModelOptions, load_family
from trainer.formats.model_facts import read_header
from trainer.methods.adapter import AdapterMethod, AdapterOptimizerOptions, trained_components
from trainer.optim.optimizers import build


def load(folder: Path, **options: Any) -> Family:
    built = ModelOptions(pretrained_model_name_or_path=str(folder), **options)
    return load_family(built, dtype=torch.float32, device="cpu")


def method(
    folder: Path, rates: AdapterOptimizerOptions | None = None, *, clip_skip: int | None = None, **options: Any
) -> tuple[Family, AdapterMethod]:
    family = load(folder, clip_skip=clip_skip)
    rates = rates or AdapterOptimizerOptions(learning_rate=1e-2)
    return family, AdapterMethod(family, AdapterOptions(**options), rates, seed=1)


def step(family: Family, trained: AdapterMethod, optimizer: torch.optim.Optimizer, number: int) -> float:
    generator = torch.Generator().manual_seed(number)
    noisy, target = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    torch.manual_seed(number)  # the dropouts' draws, as the loop seeds them
    conditioning = family.encode_prompts(trained.text_encoders, ["a cat", "a dog"])
    predicted = family.predict(trained.denoiser, noisy, torch.tensor([100, 900]), conditioning)
    loss = (predicted - target).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize(
    ("options", "rates", "expected"),
    [
        ({}, {}, ("denoiser", "text_encoder")),
        ({"network_train_unet_only": True}, {}, ("denoiser",)),
        ({"network_train_text_encoder_only": True}, {}, ("text_encoder",)),
        ({}, {"unet_lr": 0.0}, ("text_encoder",)),
        ({}, {"text_encoder_lr": 0.0}, ("denoiser",)),
        ({}, {"learning_rate": 0.0, "unet_lr": 1e-4}, ("denoiser",)),
        ({}, {"learning_rate": 0.0}, ()),
    ],
)
def test_what_trains(options: dict[str, bool], rates: dict[str, float], expected: tuple[str, ...]) -> None:
    names = ("denoiser", "text_encoder")
    assert trained_components(AdapterOptions(**options), AdapterOptimizerOptions(**rates), names) == expected


def test_nothing_trains(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="nothing would train"):
        method(tiny_folder, AdapterOptimizerOptions(learning_rate=0.0))


def test_groups_and_modes(tiny_folder: Path) -> None:
    rates = AdapterOptimizerOptions(learning_rate=1e-3, text_encoder_lr=1e-4)
    family, trained = method(tiny_folder, rates)
    groups = trained.groups()
    assert [(g.name, g.component, g.learning_rate) for g in groups] == [
        ("unet", "denoiser", 1e-3),
        ("textencoder", "text_encoder", 1e-4),
    ]
    assert [len(g.parameters) for g in groups] == [384, 36]
    assert set(trained.modules()) == {"denoiser", "text_encoder"}
    assert trained.denoiser.training and trained.text_encoders[0].training
    _, one = method(tiny_folder, network_train_unet_only=True)
    assert set(one.modules()) == {"denoiser"}
    assert not any(part.training for part in one.text_encoders[0].modules())
    assert not any(p.requires_grad for p in one.text_encoders[0].parameters())
    assert not any("lora_te" in key for key in one.state_dict())


def test_lora_plus(tiny_folder: Path) -> None:
    rates = AdapterOptimizerOptions(learning_rate=1e-3, text_encoder_lr=1e-4)
    arguments = ["loraplus_lr_ratio=16", "loraplus_text_encoder_lr_ratio=4"]
    family, trained = method(tiny_folder, rates, network_args=arguments)
    groups = trained.groups()
    assert [(g.name, pytest.approx(g.learning_rate)) for g in groups] == [
        ("unet", 1e-3),
        ("unet plus", 1.6e-2),
        ("textencoder", 1e-4),
        ("textencoder plus", 4e-4),
    ]
    assert [len(g.parameters) for g in groups] == [192, 192, 18, 18]
    names = {id(p): name for module in family.components().values() for name, p in module.named_parameters()}
    assert all("lora_B" in names[id(p)] for g in groups if "plus" in g.name for p in g.parameters)
    assert all("lora_A" in names[id(p)] for g in groups if "plus" not in g.name for p in g.parameters)


def test_weight_norms_are_limited_after_each_step(tiny_folder: Path) -> None:
    family, trained = method(tiny_folder, scale_weight_norms=0.05)
    optimizer = build(AdapterOptimizerOptions(learning_rate=1e-1), trained.groups())
    step(family, trained, optimizer, 0)
    figures = trained.after_update()
    assert figures["max_norm/keys_scaled"] > 0 and figures["max_norm/max_key_norm"] == pytest.approx(0.05)
    assert figures["max_norm/average_key_norm"] <= 0.05
    assert trained.after_update()["max_norm/max_key_norm"] == pytest.approx(0.05)
    assert not method(tiny_folder)[1].after_update()


@pytest.mark.parametrize("kind", ["both", "unet", "text_encoder"])
def test_it_learns_and_the_base_stays(tiny_folder: Path, kind: str) -> None:
    options = {f"network_train_{kind}_only": True} if kind != "both" else {}
    family, trained = method(tiny_folder, **options)
    before = {
        f"{name}.{key}": tensor.clone()
        for name, module in family.components().items()
        for key, tensor in module.state_dict().items()
        if "lora_" not in key
    }
    optimizer = build(AdapterOptimizerOptions(learning_rate=1e-2), trained.groups())
    losses = [step(family, trained, optimizer, 0) for _ in range(8)]
    assert losses[-1] < losses[0]
    for name, module in family.components().items():
        for key, tensor in module.state_dict().items():
            assert "lora_" in key or torch.equal(tensor, before[f"{name}.{key}"])


def test_prepared_by_accelerate(tiny_folder: Path) -> None:
    losses = []
    for prepare in (False, True):
        family, trained = method(tiny_folder)
        if prepare:
            accelerator = Accelerator(cpu=True)
            modules = trained.modules()
            trained.use_prepared(dict(zip(modules, accelerator.prepare(*modules.values()), strict=True)))
        optimizer = build(AdapterOptimizerOptions(learning_rate=1e-2), trained.groups())
        losses.append([step(family, trained, optimizer, number) for number in range(2)])
    assert losses[0] == losses[1]


def test_resumed_equals_uninterrupted(tiny_folder: Path) -> None:
    dropouts = {"network_dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2}
    rates = AdapterOptimizerOptions(learning_rate=1e-2)

    def start() -> tuple[Family, AdapterMethod, torch.optim.Optimizer]:
        family, trained = method(tiny_folder, rates, **dropouts)
        return family, trained, build(rates, trained.groups())

    family, trained, optimizer = start()
    for number in range(2):
        step(family, trained, optimizer, number)
    kept, kept_optimizer = trained.state_dict(), copy.deepcopy(optimizer.state_dict())
    for number in range(2, 4):
        step(family, trained, optimizer, number)
    again, resumed, other = start()
    resumed.load_state_dict(kept)
    other.load_state_dict(kept_optimizer)
    for number in range(2, 4):
        step(again, resumed, other, number)
    ours, theirs = trained.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_clip_skip_gives_every_parameter_a_gradient(tiny_folder: Path) -> None:
    family, trained = method(tiny_folder, clip_skip=2)
    conditioning = family.encode_prompts(trained.text_encoders, ["a"])
    family.predict(trained.denoiser, torch.ones(1, 4, 8, 8), torch.tensor([5]), conditioning).sum().backward()
    assert all(p.grad is not None for g in trained.groups() for p in g.parameters)


def test_gradient_checkpointing_changes_nothing(tiny_folder: Path) -> None:
    states = []
    for checkpointing in (False, True):
        family, trained = method(tiny_folder, network_dropout=0.3, module_dropout=0.3)
        if checkpointing:
            family.enable_gradient_checkpointing(text_encoders=True)
        optimizer = build(AdapterOptimizerOptions(learning_rate=1e-2), trained.groups())
        for number in range(2):
            step(family, trained, optimizer, number)
        states.append(trained.state_dict())
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-5) for key in states[0])


def test_export(tiny_folder: Path, tmp_path: Path) -> None:
    _, trained = method(tiny_folder, network_dim=2, network_alpha=None)
    path = trained.export(tmp_path / "new" / "l.safetensors", precision="fp16", metadata={"ss_steps": "3"})
    header = read_header(path)
    assert header.metadata["ss_steps"] == "3"
    assert len(header.metadata["sshs_model_hash"]) == 64
    assert {info.dtype for info in header.tensors.values()} == {"F16"}
    assert {float(t) for key, t in load_file(path).items() if key.endswith("alpha")} == {2.0}
    assert [p.name for p in path.parent.iterdir()] == ["l.safetensors"]


def test_network_weights(tiny_folder: Path, tmp_path: Path) -> None:
    family, trained = method(tiny_folder)
    optimizer = build(AdapterOptimizerOptions(learning_rate=1e-2), trained.groups())
    step(family, trained, optimizer, 0)
    path = trained.export(tmp_path / "l.safetensors", precision="float", metadata={})
    _, again = method(tiny_folder, network_weights=path)
    ours, theirs = trained.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
