"""All kinds of subsets together: one report of everything wrong, the policy on captions, what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.data.conftest import MakePicture
from trainer.data.config import DataOptions, read_dataset
from trainer.data.dataset import TrainingSet
from trainer.data.gather import count_pictures
from trainer.errors import DataError

Build = Callable[..., TrainingSet]

TEXT = """
[[datasets]]
[[datasets.subsets]]
image_dir = "pics"
[[datasets]]
[[datasets.subsets]]
image_dir = "pics"
metadata_file = "md.json"
[[datasets]]
[[datasets.subsets]]
image_dir = "masked"
conditioning_data_dir = "masks"
"""


def build(folder: Path) -> TrainingSet:
    (folder / "data.toml").write_text(TEXT)
    return TrainingSet.build(read_dataset(DataOptions(dataset_config=folder / "data.toml")))


@pytest.fixture
def place(picture: MakePicture, tmp_path: Path) -> Path:
    for name in ("pics/a.png", "pics/b.png", "masked/m.png", "masks/m.png"):
        picture(name)
    (tmp_path / "md.json").write_text(json.dumps({"a": {"caption": "x"}, "b": {"tags": "y"}}))
    return tmp_path


def test_every_bad_file_of_every_kind_in_one_report(place: Path) -> None:
    (place / "pics" / "b.png").write_bytes(b"")
    (place / "masks" / "m.png").write_bytes(b"no picture")
    (place / "masked" / "n.png").write_bytes((place / "masked" / "m.png").read_bytes())
    (place / "md.json").write_text(json.dumps({"a": {"caption": 1}, "b": {}, "gone": {}}))
    with pytest.raises(DataError) as caught:
        build(place)
    said = str(caught.value)
    assert "5 files or folders cannot be used" in said, "the empty picture of two datasets is named once"
    for part in (
        "b.png: is empty",
        "m.png: is not a picture",
        "n.png: has no mask",
        "caption should be text",
        "'gone'",
    ):
        assert part in said


def test_progress_counts_all_pictures_of_each_kind(place: Path) -> None:
    seen: list[tuple[int, int]] = []
    (place / "data.toml").write_text(TEXT)
    config = read_dataset(DataOptions(dataset_config=place / "data.toml"))
    TrainingSet.build(config, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and (3, 3) in seen and (2, 2) in seen
    assert [count_pictures(subset) for dataset in config.datasets for subset in dataset.subsets] == [2, 2, 1]


@pytest.mark.parametrize(
    ("policy", "tokens", "refused"),
    [("empty", "", False), ("empty", "sks", False), ("class_tokens", "sks", False), ("class_tokens", "", True),
     ("error", "sks", True)],
)  # fmt: skip
def test_what_is_done_about_missing_captions(
    picture: MakePicture, tmp_path: Path, policy: str, tokens: str, refused: bool
) -> None:
    picture("pics/a.png", caption="a cat")
    picture("pics/b.png")
    subset = f"image_dir = 'pics'\ncaption_extension = '.txt'\nmissing_caption = '{policy}'\nclass_tokens = '{tokens}'"
    (tmp_path / "data.toml").write_text(f"[[datasets]]\n[[datasets.subsets]]\n{subset}\n")
    config = read_dataset(DataOptions(dataset_config=tmp_path / "data.toml"))
    if refused:
        with pytest.raises(DataError, match="1 of 2 pictures have no caption.*b.png"):
            TrainingSet.build(config)
        return
    training_set = TrainingSet.build(config)
    assert [s.caption_source for s in training_set.samples] == ["file", "class_tokens" if tokens else "empty"]
    assert any("empty caption" in note for note in training_set.notes) is (tokens == "")


def test_two_pictures_that_share_a_caption_are_both_trained(picture: MakePicture, tmp_path: Path) -> None:
    picture("train/1_a/a.png", caption="a cat")
    picture("train/1_a/a.jpg", (64, 64))
    flags = DataOptions(train_data_dir=tmp_path / "train", resolution="64", caption_extension=".txt")
    training_set = TrainingSet.build(read_dataset(flags))
    assert [(s.picture.path.name, s.caption_text) for s in training_set.samples] == [
        ("a.jpg", "a cat"),
        ("a.png", "a cat"),
    ]
    assert len({view.key for view in training_set.fixed_views()}) == 2


def test_masks_of_another_size_and_black_ones(picture: MakePicture, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(f"pics/{name}.png", (64, 48), caption="x")
    picture("masks/a.png", (48, 64))
    Image.new("L", (64, 48), 0).save(tmp_path / "masks" / "b.png")
    Image.new("L", (64, 48), 1).save(tmp_path / "masks" / "c.png")
    (tmp_path / "d.toml").write_text(
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pics'\ncaption_extension = '.txt'\n"
        "conditioning_data_dir = 'masks'\n"
    )
    with pytest.raises(DataError) as caught:
        TrainingSet.build(read_dataset(DataOptions(dataset_config=tmp_path / "d.toml")))
    said = str(caught.value).splitlines()
    assert len(said) == 3 and "a.png: has 48x64 pixels" in said[1] and "b.png: is black everywhere" in said[2]
