"""train_db and fine_tune through their task entry, in this process: numbers, files, resume, stopped text encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.formats.test_single_file import load, weights
from tests.tasks.conftest import Place, Train
from tests.tasks.test_train_network import losses, of
from trainer import config as run_config
from trainer.errors import ConfigError
from trainer.events import Finished, Sample, Start
from trainer.formats.model_facts import read_header
from trainer.store import Sourced
from trainer.tasks import tasks

DREAMBOOTH = [0.5634356, 1.0090549, 0.4993637]
FINE_TUNED = [1.1175450, 0.9949830, 1.1544108]
"""The losses of three steps on the CPU in float32."""


def whole(path: Path) -> dict[str, torch.Tensor]:
    """A saved model as our own loader reads it."""
    return dict(weights(load(path)))


def differing(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> set[str]:
    """The components in which two models differ."""
    assert one.keys() == two.keys()
    return {name.partition(".")[0] for name in one if not torch.equal(one[name], two[name])}


def test_dreambooth_trains_saves_and_the_folder_draws_the_trainers_own_picture(place: Place, train: Train) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    flags = ("--dataset_config", "d.toml", "--save_model_as", "diffusers", "--sample_prompts", "p.txt")
    events = train("train_db", *flags, "--sample_every_n_steps", "100", "--prior_loss_weight", "0.5")
    assert losses(events) == pytest.approx(DREAMBOOTH, rel=1e-4)
    assert set(of(Start, events)[0].trainable_parameters) == {"unet", "textencoder"}
    outputs = place.path / "outputs"
    assert {p.name for p in outputs.iterdir() if p.name[0] != "."} == {"a"}
    assert isinstance(events[-1], Finished) and Path(events[-1].path) == outputs / "a"
    assert differing(whole(outputs / "a"), whole(place.model)) == {"denoiser", "text_encoder"}

    pipe = StableDiffusionPipeline.from_pretrained(outputs / "a", safety_checker=None, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        "a sks thing", width=64, height=64, num_inference_steps=3, guidance_scale=7.5, output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images[0]  # fmt: skip
    with Image.open(place.path / "runs" / "a" / of(Sample, events)[0].path) as picture:
        ours = np.asarray(picture, dtype=np.float64) / 255
    assert float(np.abs(drawn - ours).max()) <= 1e-3 + 0.5 / 255


def test_the_stopped_text_encoder_and_resume_to_the_bit(place: Place, train: Train) -> None:
    flags = ("--dataset_config", "d.toml", "--stop_text_encoder_training", "2", "--save_every_n_steps", "1")
    flags += ("--save_state", "--gradient_accumulation_steps", "2", "--gradient_checkpointing")
    straight = train("train_db", *flags, steps=4)
    outputs = place.path / "outputs"
    for cut in (1, 3):
        name = f"from{cut}"
        rest = train("train_db", *flags, "--resume", f"outputs/a-step{cut:08}-state", steps=4, name=name)
        assert [x.hex() for x in losses(rest)] == [x.hex() for x in losses(straight)[cut:]]
        ends = [load_file(outputs / f"{run}-state" / "trained.safetensors") for run in ("a", name)]
        assert not differing(*ends)
    saved = [whole(outputs / f"a-step{step:08}.safetensors") for step in (1, 2, 3)]
    end = whole(outputs / "a.safetensors")
    assert differing(saved[0], saved[1]) == {"denoiser", "text_encoder"}
    assert differing(saved[1], saved[2]) == {"denoiser"} == differing(saved[1], end)
    trained = {name: t for name, t in load_file(outputs / "a-state" / "trained.safetensors").items() if "." in name}
    assert all(torch.equal(tensor, end[name]) for name, tensor in trained.items())

    metadata = read_header(outputs / "a.safetensors").metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1" and metadata["modelspec.title"] == "a"
    assert {k: v for k, v in metadata.items() if k.startswith("ss_")} == {
        "ss_epoch": "1", "ss_steps": "4", "ss_training_comment": "",
    }  # fmt: skip


def test_fine_tuning_from_metadata_leaves_the_text_encoder_and_saves_a_ckpt(place: Place, train: Train) -> None:
    names = sorted((place.path / "pics").glob("*.png"))
    texts = {path.stem: {"caption": "a sks thing", "tags": f"red, {path.stem}"} for path in names}
    (place.path / "meta.json").write_text(json.dumps(texts))
    flags = ("--in_json", "meta.json", "--train_data_dir", "pics", "--resolution", "64")
    events = train("fine_tune", *flags, "--save_model_as", "ckpt", "--cache_text_encoder_outputs", "--cache_latents")
    assert losses(events) == pytest.approx(FINE_TUNED, rel=1e-4)
    assert set(of(Start, events)[0].trainable_parameters) == {"unet"}
    read = torch.load(place.path / "outputs" / "a.ckpt", weights_only=True)
    assert set(read) == {"epoch", "global_step", "state_dict"} and read["global_step"] == 3
    assert {path.name for path in (place.path / "outputs").iterdir() if path.name[0] != "."} == {"a.ckpt"}

    same = train("fine_tune", *flags, name="b")
    assert losses(same) == losses(events)
    file = load_file(place.path / "outputs" / "b.safetensors")
    assert file.keys() == read["state_dict"].keys()
    assert all(torch.equal(tensor, read["state_dict"][name]) for name, tensor in file.items())
    assert differing(whole(place.path / "outputs" / "b.safetensors"), whole(place.model)) == {"denoiser"}


@pytest.mark.parametrize(
    ("task", "values", "option"),
    [
        ("train_db", {"learning_rate": 0.0}, "learning_rate"),
        ("train_db", {"cache_text_encoder_outputs": True}, "cache_text_encoder_outputs"),
        ("fine_tune", {"cache_text_encoder_outputs": True, "train_text_encoder": True}, "cache_text_encoder_outputs"),
        ("train_db", {"train_text_encoder": True}, "train_text_encoder"),
        ("fine_tune", {"stop_text_encoder_training": 5}, "stop_text_encoder_training"),
        ("fine_tune", {"network_dim": 4}, "network_dim"),
        ("train_network", {"save_model_as": "ckpt"}, "save_model_as"),
        ("train_db", {"unet_lr": 1e-5}, "unet_lr"),
    ],
)
def test_what_a_task_refuses(task: str, values: dict[str, object], option: str) -> None:
    given = {"pretrained_model_name_or_path": "model", "dataset_config": "d.toml", **values}
    with pytest.raises(ConfigError) as caught:
        run_config.build(tasks()[task].config, {name: Sourced(value, "test") for name, value in given.items()})
    assert [p.option for p in caught.value.problems] == [option]
