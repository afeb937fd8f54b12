"""Real picture folders in tmp_path."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.config import DataOptions, DatasetConfig, read_dataset
from trainer.data.dataset import TrainingSet
from trainer.errors import ConfigError, Problem

MakePicture = Callable[..., Path]
Read = Callable[..., DatasetConfig]


def noise_picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    """A picture whose pixels depend on its name only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.frombytes("RGB", (8, 8), random.Random(path.name).randbytes(192))
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> MakePicture:
    """picture("folder/a.png", (64, 48), caption="a cat") writes a picture, and its caption as .txt."""

    def make(name: str, size: tuple[int, int] = (64, 64), caption: str | None = None, mode: str = "RGB") -> Path:
        path = noise_picture(tmp_path / name, size, mode)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return make


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """read(toml, **flags): the datasets of a file in tmp_path."""

    def call(text: str, **flags: object) -> DatasetConfig:
        (tmp_path / "data.toml").write_text(text, encoding="utf-8")
        sources = {name: f"--{name}" for name in flags}
        return read_dataset(DataOptions(dataset_config=tmp_path / "data.toml", **flags), sources=sources)

    return call


def problems(call: Callable[[], object]) -> tuple[Problem, ...]:
    """What a call that raises says is wrong."""
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.problems


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., TrainingSet]:
    """Build the set of tmp_path/train (and tmp_path/reg when it is there) with flags over small defaults."""

    def make(**flags: object) -> TrainingSet:
        values: dict[str, object] = {"train_data_dir": tmp_path / "train", "resolution": "64"}
        values |= {"caption_extension": ".txt"}
        if (tmp_path / "reg").exists():
            values["reg_data_dir"] = tmp_path / "reg"
        return TrainingSet.build(read_dataset(DataOptions(**(values | flags))))

    return make
