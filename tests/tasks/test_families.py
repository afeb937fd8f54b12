"""Stable Diffusion 2 and XL through the tasks, in this process: three pinned steps, files, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from tests.tasks.conftest import Place, Train
from tests.tasks.test_train_network import losses, of, same_files
from trainer.events import Finished, Sample, Start, Warning

PINNED = {
    ("sd2", "train_network"): [0.608253, 0.649317, 0.944242],
    ("sd2", "train_db"): [0.608253, 0.555969, 0.803761],
    ("sdxl", "train_network"): [1.178212, 1.116433, 1.101380],
    ("sdxl", "train_db"): [1.178212, 1.093878, 0.981518],
}
COMPONENTS = {"sd2": {"unet", "textencoder"}, "sdxl": {"unet", "textencoder", "textencoder_2"}}


@pytest.mark.parametrize(("kind", "task"), PINNED)
def test_three_steps(
    kind: str,
    task: str,
    place: Place,
    train: Train,
    tiny_sd2_folder: Path,
    tiny_sdxl_folder: Path,
) -> None:
    """Trained from the middle again: the same losses and the same file."""
    model = {"sd2": tiny_sd2_folder, "sdxl": tiny_sdxl_folder}[kind]
    flags = ("--dataset_config", "d.toml", "--pretrained_model_name_or_path", str(model), "--save_state")
    flags += ("--save_every_n_steps", "2", "--sample_prompts", "p.txt", "--sample_every_n_steps", "100")
    events = train(task, *flags)
    assert losses(events) == pytest.approx(PINNED[kind, task], rel=1e-4)
    assert set(of(Start, events)[0].trainable_parameters) == COMPONENTS[kind]
    assert of(Sample, events) and isinstance(events[-1], Finished) and not of(Warning, events)
    rest = train(task, *flags, "--resume", "outputs/a-step00000002-state", name="b")
    assert [x.hex() for x in losses(rest)] == [x.hex() for x in losses(events)[2:]]
    outputs = place.path / "outputs"
    assert same_files(outputs / "a.safetensors", outputs / "b.safetensors")


def test_what_a_lora_says_of_its_base_model(place: Place, train: Train, tiny_sdxl_folder: Path) -> None:
    flags = ("--dataset_config", "d.toml", "--pretrained_model_name_or_path", str(tiny_sdxl_folder))
    train("train_network", *flags, "--cache_latents", "--cache_text_encoder_outputs", "--network_train_unet_only")
    with safe_open(place.path / "outputs" / "a.safetensors", "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0" and metadata["ss_v2"] == "False"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert all(key.startswith("lora_unet_") for key in keys) and any("input_blocks" in key for key in keys)
