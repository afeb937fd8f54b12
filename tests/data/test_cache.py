"""The latent cache gives what encoding on the spot gives, to the bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data.conftest import MakePicture
from trainer.data.cache import LatentCache, OnDisk, draw_latents, encode_each
from trainer.data.dataset import TrainingSet
from trainer.data.images import load_pixels
from trainer.data.loader import Loader
from trainer.data.sampler import plan_epoch
from trainer.errors import DataError, RunError
from trainer.maths.rng import randn_slots

Build = Callable[..., TrainingSet]


class Encoder(torch.nn.Module):
    """A small real convolutional encoder with mean and std."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 4, stride=4), torch.nn.SiLU(), torch.nn.Conv2d(16, 8, 2, stride=2)
        )

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean_BCHW, logvar_BCHW = self.body(pixels_BCHW).chunk(2, dim=1)
        return mean_BCHW, (0.5 * logvar_BCHW).exp()


@pytest.fixture
def pictures(picture: MakePicture) -> None:
    for index in range(6):
        picture(f"train/2_a/{index}.png", (64, 64 if index < 4 else 128))


def flags() -> dict[str, object]:
    return {"train_batch_size": 3, "enable_bucket": True, "min_bucket_reso": 32, "bucket_reso_steps": 16}


def test_cached_equals_uncached(pictures: None, build: Build) -> None:
    training_set = build(flip_aug=True, **flags())
    encoder = Encoder()
    ticks: list[tuple[int, int]] = []
    cache = LatentCache.build(training_set, encoder, progress=lambda done, total: ticks.append((done, total)))
    assert len(cache) == 12 and ticks[-1] == (12, 12)
    for step in plan_epoch(training_set, seed=1, epoch=0, accumulation=1, processes=1):
        (uncached,) = Loader(training_set, seed=1).batches(step.micro_batches[0])
        (cached,) = Loader(training_set, seed=1, load_pixels=False).batches(step.micro_batches[0])
        assert uncached.pixels_BCHW is not None
        mean_BCHW, std_BCHW = encode_each(encoder, uncached.pixels_BCHW)
        noise_BCHW = randn_slots(1, "latent", 0, uncached.slots, mean_BCHW.shape[1:])
        assert torch.equal(cache.draw(cached.keys, noise_BCHW), draw_latents(mean_BCHW, std_BCHW, noise_BCHW))


def test_batches_of_one_bucket(pictures: None, build: Build) -> None:
    shapes: list[tuple[int, ...]] = []
    encoder = Encoder()

    def encode(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(pixels_BCHW.shape))
        assert not torch.is_grad_enabled()
        return encoder(pixels_BCHW)  # type: ignore[no-any-return]

    cache = LatentCache.build(build(**flags()), encode, batch_size=3)
    assert sorted(shape[0] for shape in shapes) == [1, 2, 3] and len(cache) == 6


@pytest.mark.parametrize("drawn", [{"random_crop": True}, {"color_aug": True}, {"face_crop_aug_range": "1,2"}])
def test_what_is_drawn_anew_is_refused(pictures: None, build: Build, drawn: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(drawn))}: cannot go with cache_latents"):
        LatentCache.build(build(**drawn), Encoder())


def test_latents_that_are_not_finite_name_the_picture(pictures: None, build: Build) -> None:
    def encode(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return pixels_BCHW * torch.nan, pixels_BCHW

    with pytest.raises(DataError, match=r"\d\.png: .* not finite"):
        LatentCache.build(build(), encode)


class Counting:
    """An encoder that says how many pictures went through it."""

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder or Encoder()
        self.count = 0

    def __call__(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        self.count += len(pixels_BCHW)
        return self.encoder(pixels_BCHW)  # type: ignore[no-any-return]


def on_disk(training_set: TrainingSet, folder: Path, *, encoder: str = "vae") -> tuple[LatentCache, int]:
    """The cache of a run, and how many pictures it had to encode."""
    encode = Counting()
    shelf = OnDisk(folder, encoder=encoder)
    return LatentCache.build(training_set, encode, shelf=shelf), encode.count


def test_on_disk_equals_in_memory_and_outlives_the_run(pictures: None, build: Build, tmp_path: Path) -> None:
    training_set = build(flip_aug=True, **flags())
    memory = LatentCache.build(training_set, Encoder())
    before = {path: path.read_bytes() for path in (tmp_path / "train").rglob("*") if path.is_file()}
    first, encoded = on_disk(training_set, tmp_path / "latents")
    again, encoded_again = on_disk(training_set, tmp_path / "latents")
    assert (encoded, encoded_again) == (12, 0) and len(again) == 12 and not again.notes
    for view in training_set.fixed_views():
        for cache in (first, again):
            assert all(
                torch.equal(a, b) for a, b in zip(cache.moments([view.key]), memory.moments([view.key]), strict=True)
            )
    assert {path: path.read_bytes() for path in (tmp_path / "train").rglob("*") if path.is_file()} == before
    assert not list((tmp_path / "latents").rglob("*.tmp"))


def test_what_an_entry_depends_on(pictures: None, build: Build, tmp_path: Path) -> None:
    """Other weights, resolutions, filters and uses of transparency are entries of their own, side by side."""
    folder = tmp_path / "latents"
    variants: list[dict[str, object]] = [{}, {"resolution": "32"}, {"resize_interpolation": "bicubic"}]
    variants += [{"alpha_mask": True}, {"flip_aug": True}]
    assert [on_disk(build(**options), folder)[1] for options in variants] == [6, 6, 6, 6, 6]
    assert [on_disk(build(**options), folder)[1] for options in variants] == [0, 0, 0, 0, 0]
    assert on_disk(build(), folder, encoder="other vae")[1] == 6


def test_a_picture_edited_to_the_same_size_and_time_is_encoded_again(build: Build, tmp_path: Path) -> None:
    (tmp_path / "train" / "1_a").mkdir(parents=True)
    path = tmp_path / "train" / "1_a" / "a.bmp"
    Image.new("RGB", (64, 64), (10, 20, 30)).save(path)
    old = build()
    assert on_disk(old, tmp_path / "latents")[1] == 1
    stat = path.stat()
    Image.new("RGB", (64, 64), (30, 20, 10)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    with pytest.raises(DataError, match="a.bmp: was changed since"):
        on_disk(old, tmp_path / "others")
    new = build()
    cache, encoded = on_disk(new, tmp_path / "latents")
    (view,) = new.fixed_views()
    mean_BCHW, _ = encode_each(Encoder(), load_pixels(view.pixel_work)[None])
    assert encoded == 1 and torch.equal(cache.moments([view.key])[0], mean_BCHW)


def test_damaged_entries_are_made_anew_and_counted(pictures: None, build: Build, tmp_path: Path) -> None:
    training_set = build()
    folder = tmp_path / "latents"
    good, _ = on_disk(training_set, folder)
    expected = good.moments([view.key for view in training_set.fixed_views()])
    files = sorted(folder.rglob("*.safetensors"))
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-7])
    whole = bytearray(files[2].read_bytes())
    whole[-5] ^= 1
    files[2].write_bytes(whole)
    files[3].write_bytes(files[4].read_bytes())
    cache, encoded = on_disk(training_set, folder)
    assert encoded == 4 and len(cache.notes) == 1 and cache.notes[0].startswith("4 cached latents were damaged")
    found = cache.moments([view.key for view in training_set.fixed_views()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert on_disk(training_set, folder)[1] == 0


def test_entries_lost_while_in_use(pictures: None, build: Build, tmp_path: Path) -> None:
    training_set = build()
    cache, _ = on_disk(training_set, tmp_path / "latents")
    shutil.rmtree(tmp_path / "latents")
    with pytest.raises(DataError, match="deleted while in use. Start the run again"):
        cache.moments([training_set.fixed_views()[0].key])


def test_a_cache_folder_that_cannot_be_written(pictures: None, build: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written to .*latents_cache_dir"):
        on_disk(build(), tmp_path / "file")


def test_values_that_are_not_finite_are_never_kept(pictures: None, build: Build, tmp_path: Path) -> None:
    def encode(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return pixels_BCHW * torch.nan, pixels_BCHW

    with pytest.raises(DataError, match="not finite"):
        LatentCache.build(build(), encode, shelf=OnDisk(tmp_path / "latents", encoder="vae"))
    assert not list(tmp_path.glob("latents/*/*"))
