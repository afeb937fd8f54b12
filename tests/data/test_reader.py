"""The kinds of data sets, documented examples, keys whose use comes later, and paths that are not there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.data.conftest import MakePicture, Read, problems
from trainer.data.config import (
    DataOptions,
    DatasetTableOptions,
    SubsetOptions,
    read_dataset,
)
from trainer.data.dataset import TrainingSet

EXAMPLES = Path(__file__).parent / "examples"
# documented examples; their Windows paths are names of folders beside the file here


@pytest.mark.skipif(os.name == "nt", reason="C:\\hoge would be a real place")
def test_class_and_identifier(read: Read, picture: MakePicture) -> None:
    picture("C:\\\\hoge/a.png")
    picture("C:\\\\reg/a.png")
    text = (EXAMPLES / "class_and_identifier.toml").read_text(encoding="utf-8")
    (dataset,) = read(text).datasets
    assert (dataset.resolution, dataset.batch_size, dataset.buckets.enable_bucket) == ((512, 512), 4, True)
    facts = [(s.num_repeats, s.class_tokens, s.is_reg) for s in dataset.subsets]
    assert facts == [(10, "hoge girl", False), (1, "girl", True)]
    without_regularisation = text[: text.index("  # Include the following only")]
    assert [s.is_reg for s in read(without_regularisation).datasets[0].subsets] == [False]


@pytest.mark.skipif(os.name == "nt", reason="C:\\hoge would be a real place")
def test_captions(read: Read, picture: MakePicture, tmp_path: Path) -> None:
    picture("C:\\hoge/a.png").with_suffix(".caption").write_text("a girl in the rain")
    picture("C:\\reg/a.png")
    training_set = TrainingSet.build(read((EXAMPLES / "captions.toml").read_text(encoding="utf-8")))
    texts = {(s.caption_text, s.caption_source, s.repeats) for s in training_set.samples}
    assert texts == {("a girl in the rain", "file", 10), ("girl", "class_tokens", 1)}


@pytest.mark.skipif(os.name == "nt", reason="C:\\piyo would be a real place")
def test_fine_tuning(read: Read, picture: MakePicture, tmp_path: Path) -> None:
    picture("C:\\piyo/a.png", (96, 64))
    picture("C:\\piyo/b.jpg")
    records = {"a": {"caption": "a girl", "tags": "1girl, solo"}, "b.jpg": {"tags": "1boy"}}
    (tmp_path / "C:\\piyo\\piyo_md.json").write_text(json.dumps(records))
    config = read((EXAMPLES / "fine_tuning.toml").read_text(encoding="utf-8"))
    (subset,) = config.datasets[0].subsets
    assert (subset.kind, subset.pictures.shuffle_caption, subset.pictures.keep_tokens) == ("metadata", True, 1)
    samples = TrainingSet.build(config).samples
    assert [s.caption_text for s in samples] == ["a girl,1girl, solo", "1boy"]
    assert samples[0].picture.size == (96, 64) and {s.caption_source for s in samples} == {"metadata"}


# kinds

KINDS = """
[[datasets]]
[[datasets.subsets]]
image_dir = "pics"
{0}
[[datasets.subsets]]
image_dir = "more"
{1}
"""


@pytest.fixture
def kinds(picture: MakePicture, tmp_path: Path) -> None:
    for folder in ("pics", "more", "masks"):
        picture(f"{folder}/a.png")
    (tmp_path / "md.json").write_text('{"a": {"caption": "x"}}')


@pytest.mark.parametrize("key", ["metadata_file = 'md.json'", "conditioning_data_dir = 'masks'"])
def test_kinds_cannot_be_mixed_in_one_dataset(read: Read, kinds: None, key: str, tmp_path: Path) -> None:
    (problem,) = problems(lambda: read(KINDS.format(key, "")))
    assert problem.option == key.partition(" ")[0] and "[[datasets]]" in problem.remedy
    assert problem.source == f"{tmp_path / 'data.toml'} line 6", "the folder without it"
    assert len(read(KINDS.format(key, key)).datasets[0].subsets) == (1 if "metadata" in key else 2)


def test_kinds_in_datasets_of_their_own(read: Read, kinds: None) -> None:
    text = KINDS.format("metadata_file = 'md.json'", "").replace(
        '[[datasets.subsets]]\nimage_dir = "more"',
        '[[datasets]]\nresolution = 256\n[[datasets.subsets]]\nimage_dir = "more"',
    )
    config = read(text)
    assert [d.subsets[0].kind for d in config.datasets] == ["metadata", "folder"]
    assert [d.resolution for d in config.datasets] == [(512, 512), (256, 256)]
    assert len(TrainingSet.build(config).samples) == 2


def test_masks_belong_to_their_pictures(read: Read, kinds: None, picture: MakePicture, tmp_path: Path) -> None:
    picture("pics/b.jpg")
    picture("masks/b.webp")
    picture("masks/c.png")
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pics'\nconditioning_data_dir = 'masks'\n"
    training_set = TrainingSet.build(read(text))
    masks = [(s.picture.path.name, s.mask_path and s.mask_path.name) for s in training_set.samples]
    assert masks == [("a.png", "a.png"), ("b.jpg", "b.webp")]
    assert any("1 masks belong to no picture" in note and "c.png" in note for note in training_set.notes)


# flags


def test_a_metadata_file_by_flag(picture: MakePicture, tmp_path: Path) -> None:
    picture("pics/a.png")
    file = tmp_path / "md.jsonl"
    file.write_text('{"image_path": "a.png", "caption": "x"}\n')
    flags = DataOptions(in_json=file, train_data_dir=tmp_path / "pics", dataset_repeats=3, caption_extension=".txt")
    config = read_dataset(flags, sources={"caption_extension": "--caption_extension"})
    assert config.notes == ("caption_extension is not used: in_json holds the captions",)
    (sample,) = TrainingSet.build(config).samples
    assert (sample.repeats, sample.caption_text, sample.subset.kind) == (3, "x", "metadata")
    beside = tmp_path / "pics" / "md.jsonl"
    beside.write_bytes(file.read_bytes())
    assert len(TrainingSet.build(read_dataset(DataOptions(in_json=beside))).samples) == 1
    both = DataOptions(in_json=file, train_data_dir=tmp_path / "pics", reg_data_dir=tmp_path)
    assert [p.option for p in problems(lambda: read_dataset(both))] == ["reg_data_dir"]
    gone = DataOptions(in_json=tmp_path / "gone.json", train_data_dir=file)
    assert [p.option for p in problems(lambda: read_dataset(gone))] == ["in_json", "train_data_dir"]


def test_dataset_repeats_stands_in_for_num_repeats(read: Read, kinds: None) -> None:
    config = read(KINDS.format("num_repeats = 2", ""), dataset_repeats=7)
    assert [s.num_repeats for s in config.datasets[0].subsets] == [2, 7]
    assert any("num_repeats = 2" in note and "--dataset_repeats says 7" in note for note in config.notes)


# keys


def test_every_key_is_read_at_its_levels(read: Read, kinds: None, tmp_path: Path) -> None:
    """Each key with a value of its own, in [general] and in a folder's table."""
    everywhere = """
num_repeats = 2
shuffle_caption = true
caption_separator = ";"
keep_tokens = 3
keep_tokens_separator = "|||"
secondary_separator = "+"
enable_wildcard = true
caption_prefix = "p"
caption_suffix = "s"
token_warmup_min = 2
token_warmup_step = 0.5
flip_aug = true
random_crop = true
caption_dropout_rate = 1
caption_dropout_every_n_epochs = 4
caption_tag_dropout_rate = 0.25
caption_extension = "txt"
class_tokens = "c"
missing_caption = "class_tokens"
cache_info = true
custom_attributes = {}
"""
    of_datasets = """
batch_size = 5
resolution = [320, 256]
enable_bucket = true
min_bucket_reso = 128
max_bucket_reso = 640
bucket_reso_steps = 32
bucket_no_upscale = true
network_multiplier = 1
validation_split = 0
validation_seed = 7
"""
    subset = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pics'\n"
    general = read(f"[general]{everywhere}{of_datasets}{subset}").datasets
    assert general[0].subsets[0].pictures == read(subset + everywhere).datasets[0].subsets[0].pictures
    assert general[0].subsets[0].num_repeats == 2 and general[0].subsets[0].class_tokens == "c"
    assert general[0].batch_size == 5 and general[0].resolution == (320, 256) and general[0].split.validation_seed == 7
    defaults = read(subset).datasets[0]
    for settled, plain in (
        (general[0].subsets[0].pictures, defaults.subsets[0].pictures),
        (general[0].buckets, defaults.buckets),
    ):
        same = {name for name, value in settled if value == getattr(plain, name)}
        assert not same & {line.partition(" ")[0] for line in (everywhere + of_datasets).splitlines()}
    for line in of_datasets.split("\n")[1:-1]:
        (problem,) = problems(lambda line=line: read(subset + line))
        assert problem.option == line.partition(" ")[0] and "is not a key of" in problem.message


def test_a_file_that_sets_cache_info_is_told(read: Read, kinds: None) -> None:
    assert any("cache_info" in note for note in read(KINDS.format("cache_info = true", "")).notes)


@pytest.mark.parametrize(
    "text", ["network_multiplier = 0.5", "custom_attributes = { diff_output_preservation = true }"]
)
def test_keys_that_nothing_follows_yet_are_refused(read: Read, kinds: None, text: str) -> None:
    (problem,) = problems(lambda: read(f"[general]\n{text}\n" + KINDS.format("", "")))
    assert problem.option == text.partition(" ")[0] and problem.message == "is not supported yet"
    assert problem.source.endswith("line 2")


def test_captions_of_a_metadata_file_have_no_extension(read: Read, kinds: None) -> None:
    key = "metadata_file = 'md.json'\ncaption_extension = '.txt'"
    assert [p.option for p in problems(lambda: read(KINDS.format(key, "metadata_file = 'md.json'")))] == [
        "caption_extension"
    ]


# paths


def test_three_ways_a_folder_cannot_be_used(
    read: Read, kinds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = {}
    for name in ("gone", "md.json", "empty"):
        (problem,) = problems(lambda name=name: read(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{name}'\n"))
        assert problem.option == "image_dir" and problem.source.endswith("data.toml line 3")
        said[name] = problem.message
    assert len(set(said.values())) == 3
    assert str(tmp_path / "elsewhere" / "gone") in said["gone"] and str(tmp_path / "gone") in said["gone"]
    assert "is a file" in said["md.json"] and "no pictures in this folder" in said["empty"]


def test_three_ways_train_data_dir_cannot_be_used(kinds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    said = {}
    for name in ("gone", "md.json", "empty"):
        (problem,) = problems(lambda name=name: read_dataset(DataOptions(train_data_dir=Path(name))))
        assert problem.option == "train_data_dir"
        said[name] = problem.message
    assert len(set(said.values())) == 3 and str(tmp_path / "gone") in said["gone"]


def test_metadata_and_mask_paths_are_checked(read: Read, kinds: None) -> None:
    text = (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pics'\nmetadata_file = '{}'\nconditioning_data_dir = '{}'\n"
    )
    found = {p.option: p.message for p in problems(lambda: read(text.format("gone.json", "md.json")))}
    assert "does not exist" in found["metadata_file"] and "is a file" in found["conditioning_data_dir"]
    found = {p.option: p.message for p in problems(lambda: read(text.format("masks", "gone")))}
    assert "is a folder, not a file" in found["metadata_file"] and "does not exist" in found["conditioning_data_dir"]


def test_dataset_guide_names_every_key() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "dataset.md").read_text(encoding="utf-8")
    keys = {*SubsetOptions.model_fields, *DatasetTableOptions.model_fields}
    assert not sorted(key for key in keys if not re.search(rf"`{key}`", guide))
