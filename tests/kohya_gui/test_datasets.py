"""What a path holds, the usual slips, what is wrong with a description and what mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from kohya_gui import dataset_findings, dataset_toml, datasets, thumbs
from trainer.data.config import DataOptions, read_dataset


def make(folder: Path, count: int, *, captions: int = 0, suffix: str = ".txt", text: str = "a dog") -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (48, 32 + number), (number * 40 % 255, 90, 120)).save(folder / f"p{number}.png")
        if number < captions:
            (folder / f"p{number}{suffix}").write_text(text, encoding="utf-8")
    return folder


def findings(text: str, base: Path) -> dict[str, dataset_findings.Finding]:
    return {finding.key.split()[0]: finding for finding in dataset_findings.findings(text, base, base)}


# --- what was found ---


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    found = datasets.recognise(make(tmp_path / "dogs", 4, captions=4))
    assert (found.what, found.kind, found.slips) == ("pictures", "captions", ())
    assert found.sentence == "A folder with 4 pictures, all with captions (.txt)."
    plain = datasets.recognise(make(tmp_path / "cats", 3))
    assert plain.kind == "class" and "without captions" in plain.sentence


def test_a_parent_of_named_folders(tmp_path: Path) -> None:
    make(tmp_path / "all" / "10_sks dog", 2)
    make(tmp_path / "all" / "5_cpc cat", 3)
    make(tmp_path / "all" / "others", 1)
    found = datasets.recognise(tmp_path / "all")
    assert found.what == "named"
    assert [(c.repeats, c.words, c.pictures) for c in found.concepts] == [(10, "sks dog", 2), (5, "cpc cat", 3)]
    assert "1 folder without repeats in the name" in found.sentence
    subsets = dataset_toml.subsets(datasets.describe(found, kind="class"))
    assert [(s.repeats, s.words) for s in subsets] == [(10, "sks dog"), (5, "cpc cat")]


def test_a_leaf_where_the_parent_was_meant(tmp_path: Path) -> None:
    leaf = make(tmp_path / "10_sks dog", 2)
    make(tmp_path / "5_cpc cat", 3)
    found = datasets.recognise(leaf)
    assert found.what == "pictures" and found.concepts[0].words == "sks dog"
    (slip,) = found.slips
    assert slip.path == tmp_path and "1 more training folder" in slip.sentence
    assert datasets.recognise(slip.path).what == "named"


def test_a_parent_where_the_leaf_was_meant(tmp_path: Path) -> None:
    leaf = make(tmp_path / "outer" / "pictures", 2)
    found = datasets.recognise(tmp_path / "outer")
    assert found.what == "concepts" and found.slips[0].path == leaf
    assert "one folder further down" in found.slips[0].sentence


def test_loose_concepts_get_repeats_and_their_names(tmp_path: Path) -> None:
    make(tmp_path / "anna", 5)
    make(tmp_path / "bert", 20)
    found = datasets.recognise(tmp_path)
    assert found.what == "concepts" and not found.slips
    subsets = dataset_toml.subsets(datasets.describe(found, kind="class"))
    assert [(s.repeats, s.words) for s in subsets] == [(20, "anna"), (5, "bert")]


def test_a_training_project_brings_its_regularisation(tmp_path: Path) -> None:
    make(tmp_path / "img" / "10_sks dog", 2)
    make(tmp_path / "reg" / "1_dog", 3)
    (tmp_path / "log").mkdir()
    found = datasets.recognise(tmp_path)
    assert found.what == "project" and "3 regularisation pictures" in found.sentence
    subsets = dataset_toml.subsets(datasets.describe(found, kind="class"))
    assert [(s.is_reg, s.words, s.repeats) for s in subsets] == [(False, "sks dog", 10), (True, "dog", 1)]


def test_one_level_too_high(tmp_path: Path) -> None:
    make(tmp_path / "stuff" / "10_sks dog", 2)
    found = datasets.recognise(tmp_path)
    assert found.what == "unusable" and found.slips[0].path == tmp_path / "stuff"


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere", "nothing at this path"), ("p.png", "a file"), ("empty", "No pictures")]
)
def test_what_cannot_be_used(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    found = datasets.recognise(tmp_path / name)
    assert found.what == "unusable" and said in found.sentence
    assert [slip.path for slip in found.slips] == ([tmp_path] if name == "p.png" else [])


def test_metadata_beside_pictures(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", 2)
    entries = {"p0": {"tags": "shs, dog"}, "p1": {"caption": "a cat"}}
    (folder / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / "other.json").write_text("{}", encoding="utf-8")
    found = datasets.recognise(folder)
    assert found.kind == "metadata" and found.metadata == (folder / "meta.json",)
    text = datasets.describe(found, kind="metadata")
    assert dataset_toml.subsets(text)[0].metadata_file == str(folder / "meta.json")
    assert list(dataset_findings.captions_of(dataset_findings.counted(text, tmp_path, tmp_path))) == [
        "shs, dog",
        "a cat",
    ]


def test_a_broken_dataset_file_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[general]\nx = \n", encoding="utf-8")
    assert "line 2" in datasets.recognise(tmp_path / "a.toml").sentence
    (tmp_path / "b.toml").write_text("[general]\n", encoding="utf-8")
    assert "[[datasets.subsets]]" in datasets.recognise(tmp_path / "b.toml").sentence


def test_descriptions_are_what_the_trainer_reads(tmp_path: Path) -> None:
    make(tmp_path / "10_sks dog", 2, captions=2)
    make(tmp_path / "5_cpc cat", 3)
    path = tmp_path / "set.toml"
    path.write_text(datasets.describe(datasets.recognise(tmp_path), kind="class"), encoding="utf-8")
    (dataset,) = read_dataset(DataOptions(dataset_config=path)).datasets
    assert [s.num_repeats for s in dataset.subsets] == [10, 5]
    assert dataset.subsets[0].pictures.caption_extension == ".txt"


# --- what is wrong ---


def test_the_wrong_caption_extension_is_one_click(tmp_path: Path) -> None:
    make(tmp_path / "dogs", 3, captions=3)
    text = f"# mine\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'dogs'}'\n"
    finding = findings(text, tmp_path)["extension"]
    assert "3 .txt, 0 .caption" in finding.text and finding.level == "bad"
    assert finding.fix is not None and finding.fix.label == "Use .txt"
    mended = dataset_findings.apply(text, finding.fix)
    assert findings(mended, tmp_path) == {} and mended.startswith("# mine")
    assert dataset_toml.subsets(mended)[0].extension == ".txt"


def test_missing_folders_and_missing_words(tmp_path: Path) -> None:
    make(tmp_path / "a", 3, captions=1)
    text = dataset_toml.new([{"image_dir": str(tmp_path / "a"), "caption_extension": "txt"}, {"image_dir": "gone"}])
    found = findings(text, tmp_path)
    assert "does not exist" in found["folder"].text
    assert "2 pictures without a caption" in found["words"].text
    assert "words" not in findings(dataset_toml.change(text, (0, 0), {"class_tokens": "dog"}), tmp_path)


def test_the_rule_for_repeats(tmp_path: Path) -> None:
    make(tmp_path / "t", 3)
    make(tmp_path / "r", 20)
    tables = [{"image_dir": "t", "num_repeats": 2, "class_tokens": "sks dog"}]
    tables += [{"image_dir": "r", "is_reg": True, "class_tokens": "dog"}]
    text = dataset_toml.new(tables)
    finding = findings(text, tmp_path)["repeats"]
    assert "6 training uses" in finding.text and "20 regularisation" in finding.text
    assert finding.fix is not None and finding.fix.label == "Use 8 repeats"
    mended = dataset_findings.apply(text, finding.fix)
    assert findings(mended, tmp_path) == {}
    training, reg = dataset_findings.counted(mended, tmp_path, tmp_path)
    assert training.uses >= reg.uses
    assert "repeats" not in findings(dataset_toml.change(text, (0, 0), {"num_repeats": 7}), tmp_path)


def test_concepts_are_balanced(tmp_path: Path) -> None:
    for name, pictures in (("a", 4), ("b", 16)):
        make(tmp_path / name, pictures)
    text = dataset_toml.new([{"image_dir": n, "class_tokens": n, "num_repeats": 2} for n in ("a", "b")])
    finding = findings(text, tmp_path)["balance"]
    assert finding.fix is not None
    mended = dataset_findings.apply(text, finding.fix)
    assert [entry.uses for entry in dataset_findings.counted(mended, tmp_path, tmp_path)] == [32, 32]
    assert "balance" not in findings(mended, tmp_path)


@pytest.mark.parametrize(("pictures", "repeats"), [(1, 20), (10, 10), (33, 3), (100, 1), (5000, 1)])
def test_suggested_repeats(pictures: int, repeats: int) -> None:
    assert datasets.suggested_repeats(pictures) == repeats


# --- pictures to look at ---


def test_thumbnails_are_small_new_jpegs(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", 1)
    Image.new("RGBA", (400, 300), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.new("CMYK", (3000, 2000)).save(folder / "print.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    for name in ("p0.png", "clear.png", "print.jpg"):
        assert (
            thumbs.thumb(folder / name).startswith("data:image/jpeg;base64,")
            and len(thumbs.thumb(folder / name)) < 9000
        )
    assert thumbs.thumb(folder / "broken.png") == "" == thumbs.preview(folder / "gone.png")
    assert thumbs.preview(folder / "print.jpg").startswith("data:image/jpeg")


@pytest.mark.parametrize(
    ("size", "resolution"), [((2000, 1500), 512), ((400, 300), 320), ((130, 128), 128), ((20, 9), 64)]
)
def test_small_pictures_get_a_small_resolution_that_can_be_planned(
    tmp_path: Path, size: tuple[int, int], resolution: int
) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", size).save(tmp_path / "p" / "a.png")
    path = tmp_path / "set.toml"
    path.write_text(datasets.describe(datasets.recognise(tmp_path / "p"), kind="class", words="dog"), encoding="utf-8")
    (dataset,) = read_dataset(DataOptions(dataset_config=path)).datasets
    assert dataset.resolution == (resolution, resolution)
