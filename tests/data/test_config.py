"""From flags and dataset TOML to datasets: fallback, notes, and every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.conftest import MakePicture, Read, problems
from trainer.data.config import DataOptions, read_dataset
from trainer.schema import specs_of, validate


@pytest.fixture
def read(read: Read, picture: MakePicture) -> Read:
    """read(toml, **flags) with folders of one picture each, pics and more, beside the file."""
    picture("pics/a.png")
    picture("more/a.png")
    return read


SUBSET = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pics'\n"


def test_every_option_has_its_spec() -> None:
    names = [spec.name for spec in specs_of(DataOptions)]
    assert names[:5] == ["train_data_dir", "reg_data_dir", "dataset_config", "in_json", "dataset_repeats"]
    assert {"enable_bucket", "caption_extension", "shuffle_caption", "cache_latents", "prior_loss_weight"} <= set(names)
    made, found = validate(DataOptions, {})
    assert not found and made == DataOptions()


@pytest.mark.parametrize(
    ("resolution", "size"),
    [("512", (512, 512)), ("512,768", (512, 768)), (" 512 , 768 ", (512, 768)), (640, (640, 640))],
)
def test_resolution_in_kohyas_form(resolution: str | int, size: tuple[int, int]) -> None:
    options = DataOptions(resolution=resolution)
    assert options.resolution_wh() == size and not list(options.problems())


@pytest.mark.parametrize("resolution", ["", "x", "512,", "1,2,3", "0", "512.5", "-512"])
def test_wrong_resolutions(resolution: str) -> None:
    assert "resolution" in [p.option for p in validate(DataOptions, {"resolution": resolution})[1]] or list(
        DataOptions(resolution=resolution).problems()
    )


def test_folders_named_as_kohya_names_them(picture: MakePicture, tmp_path: Path) -> None:
    picture("train/10_sks my dog/a.png")
    picture("train/notes/a.png")
    picture("train/0_off/a.png")
    picture("reg/2_dog/a.png")
    flags = DataOptions(train_data_dir=tmp_path / "train", reg_data_dir=tmp_path / "reg", train_batch_size=3)
    config = read_dataset(flags)
    (dataset,) = config.datasets
    facts = [(s.image_dir.name, s.num_repeats, s.class_tokens, s.is_reg) for s in dataset.subsets]
    assert facts == [("10_sks my dog", 10, "sks my dog", False), ("2_dog", 2, "dog", True)]
    assert dataset.batch_size == 3 and len(config.notes) == 2


def test_pictures_directly_in_train_data_dir(picture: MakePicture, tmp_path: Path) -> None:
    picture("train/a.png")
    (problem,) = problems(lambda: read_dataset(DataOptions(train_data_dir=tmp_path / "train")))
    assert problem.option == "train_data_dir" and "1 pictures lie in it directly" in problem.remedy


def test_nothing_named_and_folder_missing(tmp_path: Path) -> None:
    assert problems(lambda: read_dataset(DataOptions()))[0].option == "train_data_dir"
    flags = DataOptions(train_data_dir=tmp_path / "none", reg_data_dir=tmp_path / "nor this")
    found = problems(lambda: read_dataset(flags, sources={"train_data_dir": "--train_data_dir"}))
    assert [p.option for p in found] == ["train_data_dir", "reg_data_dir"] and found[0].source == "--train_data_dir"


def test_first_explicit_value_wins(read: Read) -> None:
    text = """
[general]
shuffle_caption = true
keep_tokens = 3
batch_size = 4
caption_extension = "txt"

[[datasets]]
resolution = [256, 512]
keep_tokens = 0
[[datasets.subsets]]
image_dir = "pics"
shuffle_caption = false
caption_prefix = ""
num_repeats = 5
[[datasets.subsets]]
image_dir = "more"
keep_tokens = 2

[[datasets]]
batch_size = 2
[[datasets.subsets]]
image_dir = "pics"
"""
    config = read(text, keep_tokens=9, caption_prefix="flag", flip_aug=True, resolution="512", train_batch_size=8)
    first, second = config.datasets
    assert (first.resolution, first.batch_size) == ((256, 512), 4)
    assert (second.resolution, second.batch_size) == ((512, 512), 2)
    pics, more = first.subsets
    assert (pics.pictures.shuffle_caption, pics.pictures.keep_tokens, pics.pictures.caption_prefix) == (False, 0, "")
    assert (more.pictures.shuffle_caption, more.pictures.keep_tokens, more.pictures.caption_prefix) == (True, 2, "flag")
    assert (pics.num_repeats, more.num_repeats) == (5, 1)
    assert second.subsets[0].pictures.keep_tokens == 3 and second.subsets[0].pictures.flip_aug
    assert pics.pictures.caption_extension == ".txt"


def test_overridden_flags_are_said(read: Read) -> None:
    text = "[general]\nresolution = 256\nflip_aug = true\n" + SUBSET
    notes = read(text, resolution="512", flip_aug=True, train_data_dir=Path("x"), train_batch_size=2).notes
    assert len(notes) == 2 and "train_data_dir is not used" in notes[0]
    assert "data.toml line 2" in notes[1] and "--resolution says 512x512" in notes[1]


def test_defaults_stated_in_a_runs_own_file_override_nothing(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").touch()
    file = tmp_path / "data.toml"
    file.write_text("[[datasets]]\nresolution = 256\n[[datasets.subsets]]\nimage_dir = 'pics'\n")
    options = DataOptions(dataset_config=file)
    assert read_dataset(options, sources={"resolution": "config.toml line 9"}).notes == ()
    assert len(read_dataset(options, sources={"resolution": "--resolution"}).notes) == 1


def test_every_problem_at_once_with_file_and_line(read: Read, tmp_path: Path) -> None:
    text = """[generall]
[general]
shufle_caption = true
resolution = 512.0
[[datasets]]
enable_buckets = true
batch_size = 0
[[datasets.subsets]]
image_dir = "pics"
num_repeats = "10"
[[datasets.subsets]]
image_dir = "gone"
[[datasets.subsets]]
num_repeats = 2
"""
    found = {(p.option, p.source.rpartition(" ")[2]): p for p in problems(lambda: read(text))}
    assert set(found) == {
        ("generall", "1"),
        ("shufle_caption", "3"),
        ("resolution", "4"),
        ("enable_buckets", "6"),
        ("batch_size", "7"),
        ("num_repeats", "10"),
        ("image_dir", "12"),
        ("image_dir", "13"),
    }
    assert found["shufle_caption", "3"].remedy == "Did you mean shuffle_caption?"
    assert found["generall", "1"].remedy == "Did you mean general?"
    assert "[width, height]" in found["resolution", "4"].message
    assert "does not exist" in found["image_dir", "12"].message
    assert found["image_dir", "12"].source == f"{tmp_path / 'data.toml'} line 12"


@pytest.mark.parametrize(
    "text", ["datasets = 3", "datasets = [1]", "[[datasets]]", "[[datasets]]\nsubsets = 'x'", "", "[["]
)
def test_files_of_the_wrong_shape(read: Read, text: str) -> None:
    assert problems(lambda: read(text))


def test_no_such_file(tmp_path: Path) -> None:
    (problem,) = problems(lambda: read_dataset(DataOptions(dataset_config=tmp_path / "none.toml")))
    assert problem.option == "dataset_config" and "does not exist" in problem.message


def test_relative_folders(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: MakePicture) -> None:
    assert read(SUBSET).datasets[0].subsets[0].image_dir == tmp_path / "pics"
    picture("here/pics/a.png")
    monkeypatch.chdir(tmp_path / "here")
    assert read(SUBSET).datasets[0].subsets[0].image_dir == Path("pics")


def test_a_folder_twice_in_one_dataset(read: Read) -> None:
    config = read(SUBSET + "[[datasets.subsets]]\nimage_dir = './pics'\n")
    assert len(config.datasets[0].subsets) == 1 and "is left out" in config.notes[0]


def test_settings_that_contradict_each_other(read: Read) -> None:
    both = problems(lambda: read(SUBSET + "random_crop = true\n", cache_latents=True))
    assert both[0].option == "random_crop" and "cache_latents" in both[0].message
    only_reg = problems(lambda: read(SUBSET + "is_reg = true\n"))
    assert "no training pictures" in only_reg[0].message
    small = problems(lambda: read(SUBSET, enable_bucket=True, resolution="128"))
    assert small[0].option == "min_bucket_reso" and small[0].remedy == "Set min_bucket_reso to at most 128"
    assert small[0].value == "256"
    large = problems(lambda: read(SUBSET, enable_bucket=True, resolution="1536"))
    assert large[0].option == "max_bucket_reso"
    odd = problems(lambda: read(SUBSET, resolution="500"))
    assert odd[0].option == "resolution" and odd[0].source == "--resolution" and "496 or 504" in odd[0].remedy


def test_bucket_sides_on_the_grid_are_noted(read: Read) -> None:
    config = read(SUBSET, enable_bucket=True, min_bucket_reso=300, max_bucket_reso=1000)
    assert config.notes == (
        "min_bucket_reso 300 is used as 256, a multiple of bucket_reso_steps",
        "max_bucket_reso 1000 is used as 1024, a multiple of bucket_reso_steps",
    )


def test_json_dataset_files(tmp_path: Path, picture: MakePicture) -> None:
    picture("pics/a.png")
    (tmp_path / "data.json").write_text('{"datasets": [{"subsets": [{"image_dir": "pics", "num_repeats": 3}]}]}')
    config = read_dataset(DataOptions(dataset_config=tmp_path / "data.json"))
    assert config.datasets[0].subsets[0].num_repeats == 3


def test_flags_alone_are_checked_without_reading_anything() -> None:
    flags = DataOptions(resolution="100", random_crop=True, cache_latents=True)
    assert [p.option for p in flags.problems()] == ["resolution", "random_crop"]
    assert not list(DataOptions(resolution="100", dataset_config=Path("x")).problems())


def test_a_bucket_problem_names_the_table(read: Read) -> None:
    (problem,) = problems(
        lambda: read("[general]\nenable_bucket = true\nmin_bucket_reso = 320\n" + SUBSET, resolution="256")
    )
    assert problem.source.endswith("data.toml line 3")
