"""Caches of latents and captions, and masks, end to end with a tiny real model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from tests.tasks.conftest import Place
from tests.tasks.test_train_network import losses, of, same_files
from trainer.events import Error, Warning

pytestmark = pytest.mark.slow

DRAWN = """
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
  caption_dropout_rate = 0.2
  caption_tag_dropout_rate = 0.3
"""


def said(place: Place, run: str) -> list[str]:
    return [warning.message for warning in of(Warning, place.events(run))]


def test_caches_change_nothing_and_are_there_the_next_time(place: Place, tmp_path: Path) -> None:
    (place.path / "d.toml").write_text(DRAWN)
    for index, path in enumerate(sorted((place.path / "pics").glob("*.png"))):
        path.with_suffix(".txt").write_text(f"{{red|green|blue}} thing, part {index}, more, {{one|two}}\nother, words")
    frozen = ("--network_train_unet_only", "--max_train_epochs", "3")
    latents = ("--cache_latents_to_disk", "--latents_cache_dir", str(tmp_path / "latents"))
    text = "--cache_text_encoder_outputs"
    runs = {
        "plain": frozen,
        "memory": (*frozen, "--cache_latents", text),
        "disk": (*frozen, *latents, f"{text}_to_disk"),
        "again": (*frozen, *latents, f"{text}_to_disk"),
    }
    found = {name: losses(place.train(*flags, run=name)) for name, flags in runs.items()}
    assert len(found["plain"]) > 4 and len({tuple(values) for values in found.values()}) == 1
    outputs = place.path / "outputs"
    assert all(same_files(outputs / "plain.safetensors", outputs / f"{name}.safetensors") for name in runs)
    assert list((tmp_path / "latents").rglob("*.safetensors"))
    assert not list((place.path / "pics").glob("*.safetensors"))

    for path in list((tmp_path / "latents").rglob("*.safetensors"))[:2]:
        path.write_bytes(b"damaged")
    assert losses(place.train(*runs["disk"], run="mended")) == found["plain"]
    assert any(message.startswith("2 cached latents were damaged") for message in said(place, "mended"))


def test_what_does_not_go_together_is_said_before_anything_loads(place: Place) -> None:
    events = place.train("--cache_text_encoder_outputs", run="text", code=2)
    assert "network_train_unet_only" in of(Error, events)[0].message
    (place.path / "d.toml").write_text(DRAWN + "  color_aug = true\n  random_crop = true\n")
    message = of(Error, place.train("--cache_latents", run="drawn", code=2))[0].message
    assert "color_aug: cannot go with cache_latents" in message and "random_crop: cannot go with" in message
    assert "d.toml" in message and "line" in message


def test_masks_change_what_is_trained(place: Place) -> None:
    draw = random.Random(0)
    (place.path / "masks").mkdir()
    for path in (place.path / "pics").glob("*.png"):
        with Image.open(path) as image:
            mask = Image.new("L", image.size, 0)
        mask.paste(255, (0, 0, mask.width // 2, mask.height // 2 + draw.randrange(2)))
        mask.save(place.path / "masks" / path.name)
    plain = losses(place.train(run="plain"))
    text = (place.path / "d.toml").read_text()
    text = text.partition("  [[datasets.subsets]]\n  is_reg")[0]
    (place.path / "d.toml").write_text(f"{text}  conditioning_data_dir = 'masks'\n")
    refused = of(Error, place.train(run="refused", code=2))[0].message
    assert "Set masked_loss" in refused
    masked = losses(place.train("--masked_loss", run="masked"))
    cached = losses(place.train("--masked_loss", "--cache_latents", run="cached"))
    assert masked == cached and masked != plain
    (place.path / "d.toml").write_text(text)
    assert "no picture has a mask" in of(Error, place.train("--masked_loss", run="none", code=2))[0].message
