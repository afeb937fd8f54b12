"""sd-scripts' .npz files are read where they surely fit, and ignored with a count where they do not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import MakePicture
from tests.data.test_cache import Counting
from trainer.data.buckets import Geometry
from trainer.data.cache import LatentCache, OnDisk
from trainer.data.dataset import TrainingSet
from trainer.data.npz import NpzFormat, _crop_of
from trainer.errors import DataError

Build = Callable[..., TrainingSet]
FORMAT = NpzFormat("sd", channels=4, factor=8, scale=0.18215)
VECTORS = Path(__file__).parents[1] / "vectors" / "bucket_cases.json"


@pytest.fixture
def path(picture: MakePicture) -> Path:
    return picture("train/1_a/house.png", (80, 64), caption="x")


def write(path: Path, *, name: str = "house_0080x0064_sd.npz", **changes: object) -> np.ndarray:
    """The file sd-scripts would leave for the picture at 64 pixels; returns its latents."""
    latents = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
    values: dict[str, object] = {"latents": latents, "original_size": [80, 64], "crop_ltrb": [0.0, 6.0, 64.0, 57.2]}
    values |= changes
    arrays = {key: np.asarray(value) for key, value in values.items() if value is not None}
    np.savez(path.with_name(name), **arrays)  # type: ignore[arg-type]
    return latents


def cached(training_set: TrainingSet, folder: Path) -> tuple[LatentCache, int]:
    encode = Counting()
    return LatentCache.build(training_set, encode, shelf=OnDisk(folder, encoder="v", npz=FORMAT)), encode.count


@pytest.mark.parametrize("name", ["house_0080x0064_sd.npz", "house.npz"])
def test_a_file_that_fits_is_used_without_spread(path: Path, build: Build, tmp_path: Path, name: str) -> None:
    latents = write(path, name=name)
    training_set = build()
    before = path.with_name(name).read_bytes()
    for _ in range(2):
        cache, encoded = cached(training_set, tmp_path / "latents")
        assert encoded == 0 and len(cache.notes) == 1 and "1 latents are read from .npz files" in cache.notes[0]
        mean_BCHW, std_BCHW = cache.moments([training_set.fixed_views()[0].key])
        assert torch.equal(mean_BCHW[0], torch.from_numpy(latents * np.float32(0.18215))) and not std_BCHW.any()
    assert path.with_name(name).read_bytes() == before and not list(tmp_path.glob("latents/*/*"))
    path.with_name(name).write_bytes(b"gone")
    with pytest.raises(DataError, match="was changed while it was in use"):
        cache.moments([training_set.fixed_views()[0].key])


@pytest.mark.parametrize(
    "changes",
    [
        {"original_size": [64, 80]},
        {"crop_ltrb": [0, 0, 64, 64]},
        {"latents": np.zeros((4, 8, 16), np.float32)},
        {"latents": np.full((4, 8, 8), np.nan, np.float32)},
        {"latents": None},
        {"crop_ltrb": None},
    ],
    ids=lambda changes: f"{next(iter(changes))}",
)
def test_a_file_that_does_not_fit_is_ignored_with_a_count(
    path: Path, build: Build, tmp_path: Path, changes: dict[str, object]
) -> None:
    write(path, **changes)
    cache, encoded = cached(build(), tmp_path / "latents")
    assert encoded == 1 and cache.notes == ("1 latents in .npz files beside the pictures do not fit and are made anew",)
    assert not cached(build(), tmp_path / "latents")[1], "ours is there now"


def test_files_that_may_be_of_another_picture(path: Path, build: Build, tmp_path: Path) -> None:
    write(path)
    time.sleep(0.05)  # clocks of disks tick a hundred times a second or so
    path.touch()
    assert cached(build(), tmp_path / "1")[1] == 1, "the picture is newer"
    write(path)
    before = path.stat()
    time.sleep(0.05)
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached(build(), tmp_path / "2")[1] == 1, "the picture was changed later, whatever its time says"
    write(path)
    path.with_name("house_0080x0064_sd.npz").write_bytes(b"PK\x03\x04 cut off")
    assert cached(build(), tmp_path / "3")[1] == 1
    write(path, name="hous_0080x0064_sd.npz")
    path.with_name("house_0080x0064_sd.npz").unlink()
    cache, encoded = cached(build(), tmp_path / "4")
    assert encoded == 1 and not cache.notes, "another picture's file is nothing to us"


def test_mirrored_latents_are_there_or_made(path: Path, build: Build, tmp_path: Path) -> None:
    write(path)
    assert cached(build(flip_aug=True), tmp_path / "1")[1] == 1
    latents = write(path, latents_flipped=np.ones((4, 8, 8), np.float32))
    training_set = build(flip_aug=True)
    cache, encoded = cached(training_set, tmp_path / "2")
    plain, flipped = (cache.moments([view.key])[0][0] for view in training_set.fixed_views())
    assert encoded == 0 and torch.equal(plain, torch.from_numpy(latents * np.float32(0.18215)))
    assert flipped.flatten()[0] == np.float32(0.18215)


def test_pictures_that_sd_scripts_reads_otherwise(path: Path, build: Build, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        image.save(path, exif=exif)
    write(path)
    assert cached(build(), tmp_path / "1")[1] == 1
    Image.new("RGBA", (80, 64), (1, 2, 3, 4)).save(path)
    write(path)
    assert cached(build(), tmp_path / "2")[1] == 1


def test_crops_as_sd_scripts_writes_them() -> None:
    cases = [case for case in json.loads(VECTORS.read_text()) if "crop_ltrb" in case]
    assert len(cases) > 500
    for case in cases:
        geometry = Geometry(tuple(case["image"]), tuple(case["bucket"]), (0, 0, *case["bucket"]))
        assert _crop_of(geometry) == pytest.approx(tuple(case["crop_ltrb"]), abs=1e-6)
