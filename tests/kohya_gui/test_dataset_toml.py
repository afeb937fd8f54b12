"""The dataset file is changed a key at a time: comments, order and everything else stay."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kohya_gui import dataset_toml
from trainer.errors import DataError

COMMENTED = """\
# my two dogs
[general]
enable_bucket = true                        # Whether to use Aspect Ratio Bucketing
num_repeats = 2

[[datasets]]
resolution = 512                            # Training resolution
batch_size = 4                              # Batch size

  [[datasets.subsets]]
  image_dir = 'C:\\hoge'                    # Specify the folder for learning target images
  class_tokens = 'hoge girl'                # Specify the identifier class
  num_repeats = 10                          # Number of repetitions

  # Include the following only if using regularization images
  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'                         # regularization
  class_tokens = 'girl'                     # Specify the class

# the end
"""


def test_tables_are_read_with_what_they_inherit() -> None:
    (dataset,) = dataset_toml.read(COMMENTED)
    first, second = dataset.subsets
    assert (first.place, first.image_dir, first.repeats, first.is_reg) == ((0, 0), "C:\\hoge", 10, False)
    assert (second.place, second.repeats, second.is_reg, second.words) == ((0, 1), 2, True, "girl")
    assert first.extension == ".caption" and first.all["enable_bucket"] is True
    assert dataset.all["batch_size"] == 4 and "resolution" not in first.own


def test_a_change_touches_its_line_only() -> None:
    changed = dataset_toml.change(COMMENTED, (0, 0), {"num_repeats": 20, "caption_extension": ".txt"})
    before, after = COMMENTED.splitlines(), changed.splitlines()
    different = [line for line in after if line not in before]
    assert [" ".join(line.split()) for line in different] == [
        "num_repeats = 20 # Number of repetitions",
        'caption_extension = ".txt"',
    ]
    assert [line for line in before if line not in after] == [
        "  num_repeats = 10                          # Number of repetitions"
    ]
    back = dataset_toml.change(changed, (0, 0), {"num_repeats": 10, "caption_extension": None})
    assert back == COMMENTED


def test_an_unchanged_value_leaves_the_file_as_it_is() -> None:
    assert dataset_toml.change(COMMENTED, (0, 0), {"image_dir": "C:\\hoge", "num_repeats": 10}) == COMMENTED


@pytest.mark.parametrize("place", [(), (0,)])
def test_the_tables_above_are_changed(place: tuple[int, ...]) -> None:
    changed = dataset_toml.change(COMMENTED, place, {"resolution": [768, 512], "flip_aug": True})
    (dataset,) = dataset_toml.read(changed)
    assert dataset.all["flip_aug"] is True
    assert dataset.all["resolution"] == (512 if place == () else [768, 512])  # the dataset's own wins over [general]


def test_general_is_made_where_there_is_none() -> None:
    text = dataset_toml.change('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n', (), {"flip_aug": True})
    assert tomllib.loads(text)["general"] == {"flip_aug": True}


def test_folders_are_added_and_removed() -> None:
    more = dataset_toml.add_subset(COMMENTED, {"image_dir": "/new é", "num_repeats": 3, "class_tokens": ""})
    assert [s.image_dir for s in dataset_toml.subsets(more)] == ["C:\\hoge", "reg", "/new é"]
    assert "class_tokens" not in dataset_toml.subsets(more)[2].own
    for comment in ("# my two dogs", "# regularization", "# the end", "# Batch size"):
        assert comment in more
    fewer = dataset_toml.remove_subset(more, (0, 1))
    assert [s.image_dir for s in dataset_toml.subsets(fewer)] == ["C:\\hoge", "/new é"]
    assert tomllib.loads(fewer)["datasets"][0]["batch_size"] == 4
    with pytest.raises(DataError, match="no longer"):
        dataset_toml.remove_subset(fewer, (0, 5))


def test_inline_tables_are_changed_too() -> None:
    text = "[[datasets]]\nsubsets = [{ image_dir = 'a' }] # mine\n"
    text = dataset_toml.add_subset(text, {"image_dir": "b"})
    text = dataset_toml.change(text, (0, 1), {"num_repeats": 4})
    assert [(s.image_dir, s.repeats) for s in dataset_toml.subsets(text)] == [("a", 1), ("b", 4)]
    assert "# mine" in text


def test_a_new_file_and_one_begun_from_nothing() -> None:
    text = dataset_toml.new([{"image_dir": "/a", "num_repeats": 2, "class_tokens": ""}], resolution=512, batch_size=1)
    assert tomllib.loads(text) == {
        "datasets": [{"resolution": 512, "batch_size": 1, "subsets": [{"image_dir": "/a", "num_repeats": 2}]}]
    }
    begun = dataset_toml.add_subset("# only a word\n", {"image_dir": "/b"})
    assert begun.startswith("# only a word") and dataset_toml.subsets(begun)[0].image_dir == "/b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[datasets]\n", "line 1"),
        ("a = 1\na = 2\n", "TOML"),
        ("datasets = 3\n", r"\[\[datasets\]\]"),
        ("[[datasets]]\nsubsets = 4\n", r"\[\[datasets.subsets\]\]"),
        ("general = 4\n", r"\[general\]"),
    ],
)
def test_what_cannot_be_read_says_where(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        dataset_toml.read(text)


def test_paths_are_made_whole_as_the_trainer_reads_them(tmp_path: Path) -> None:
    home, base = tmp_path / "home", tmp_path / "sets"
    (home / "one").mkdir(parents=True)
    (base / "two").mkdir(parents=True)
    text = "[[datasets]]\n" + "".join(f'[[datasets.subsets]]\nimage_dir = "{n}" # {n}\n' for n in ("one", "two", "no"))
    whole = dataset_toml.whole_paths(text, base, home)
    assert [s.image_dir for s in dataset_toml.subsets(whole)] == [
        str(home / "one"),
        str(base / "two"),
        str(home / "no"),
    ]
    assert "# two" in whole


def test_saving_is_whole_and_overwrites_nothing_unasked(tmp_path: Path) -> None:
    path = tmp_path / "datasets" / "dogs.toml"
    dataset_toml.save(COMMENTED, path, [tmp_path])
    assert dataset_toml.load(path) == COMMENTED
    with pytest.raises(DataError, match="exists already"):
        dataset_toml.save("", path, [tmp_path])
    assert dataset_toml.load(path) == COMMENTED
    dataset_toml.save(f"{COMMENTED}# more\n", path, [tmp_path], replace=True)
    assert dataset_toml.load(path).endswith("# more\n")
    assert [p.name for p in path.parent.iterdir()] == ["dogs.toml"]


@pytest.mark.parametrize("name", ["../out.toml", "dogs.txt", "dogs", "folder.toml"])
def test_places_that_are_not_written_to(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "folder.toml").mkdir(parents=True)
    with pytest.raises(DataError):
        dataset_toml.save(COMMENTED, root / name, [root], replace=True)
    assert [p.name for p in root.iterdir()] == ["folder.toml"]
