"""What stands behind the Train page: folders, uploads, prompts, names, the files of a run, every first-user error."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kohya_gui import folders, launch, pictures, plan, request, sentences
from kohya_gui.request import MODEL, Request
from kohya_gui.settings import Settings
from trainer.config import build
from trainer.data.config import read_dataset
from trainer.errors import ConfigError, Problem
from trainer.run_folder import RunFolder, Status
from trainer.store import Sourced, read_config
from trainer.tasks.train_network import TrainNetworkConfig


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.of(tmp_path / "home é")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "my pictures", count=4, captions=3)


def picture_folder(path: Path, *, count: int, captions: int = 0, text: str = "a sks house on grass") -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 48 + number), (number * 40, 90, 120)).save(path / f"p{number}.png")
        if number < captions:
            (path / f"p{number}.txt").write_text(text, encoding="utf-8")
    return path


def asked(tiny: Path, folder: Path, **more: Any) -> Request:
    options = {MODEL: str(tiny), "output_name": "house", "resolution": "64", **more.pop("options", {})}
    sourced = {name: Sourced(value, "form") for name, value in options.items()}
    return Request(**{"options": sourced, "pictures": str(folder), "trigger": "sks house", **more})


def problems_of(wanted: Request, settings: Settings, tmp_path: Path) -> dict[str, Problem]:
    draft = tmp_path / "draft"
    draft.mkdir(exist_ok=True)
    with pytest.raises(ConfigError) as error:
        request.prepare(wanted, draft, settings)
    return {p.option: p for p in error.value.problems}


# --- folders and pictures ---


def test_browser_shows_only_what_lies_under_the_roots(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "model.safetensors").write_bytes(b"x")
    (root / "notes.md").write_text("x")
    (root / "way out").symlink_to(tmp_path)
    listing = folders.list_folder(root, [root], "model")
    assert [label for label, _ in listing.entries] == ["inside/", "model.safetensors"]
    assert listing.parent is None
    assert folders.list_folder(root / "inside", [root], "folder").parent == root
    outside = folders.list_folder(tmp_path, [root], "folder")
    assert outside.folder is None and "outside" in outside.problem
    assert folders.list_folder(root / ".." / "..", [root], "folder").folder is None
    assert folders.list_folder(root / "way out", [root], "folder").folder is None


def test_counts_of_a_folder(folder: Path) -> None:
    seen = pictures.look(folder)
    assert (seen.pictures, seen.captions, seen.extension) == (4, 3, ".txt")
    assert pictures.trigger_count(seen, "sks house") == 3
    assert pictures.trigger_count(seen, "SKS") == 3
    assert pictures.trigger_count(seen, "hous") == 0
    assert "4 pictures" in seen.words and "3 of them" in seen.words


def test_an_empty_folder_points_one_level_down(tmp_path: Path) -> None:
    inner = picture_folder(tmp_path / "outer" / "10_sks house", count=1)
    assert str(inner) in pictures.look(inner.parent).problem


def test_thumbnails_are_new_small_jpegs(folder: Path) -> None:
    found = pictures.thumbnails(folder)
    assert len(found) == 4
    assert all(data.startswith("data:image/jpeg;base64,") and len(data) < 8000 for data in found)


def test_uploads_are_taken_by_content(tmp_path: Path, settings: Settings) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    Image.new("RGB", (8, 8)).save(incoming / "a.png")
    (incoming / "a.png").rename(incoming / "really a png.jpg")
    (incoming / "page.png").write_text("<html><script>alert(1)</script></html>")
    (incoming / "drawing.svg").write_text("<svg/>")
    (incoming / "really a png.txt").write_text("a caption é", encoding="utf-8")
    (incoming / "bad.txt").write_bytes(b"caf\xe9")
    taken = pictures.take_uploads(sorted(incoming.iterdir()), settings.uploads)
    assert taken.folder is not None and taken.folder.parent == settings.uploads
    assert sorted(p.name for p in taken.folder.iterdir()) == ["really a png.png", "really a png.txt"]
    assert (taken.pictures, taken.captions) == (1, 1)
    assert sorted(s.split(":")[0] for s in taken.refused) == ["bad.txt", "drawing.svg", "page.png"]


def test_an_upload_without_pictures_makes_no_folder(tmp_path: Path, settings: Settings) -> None:
    text = tmp_path / "a.txt"
    text.write_text("x")
    assert pictures.take_uploads([text], settings.uploads).folder is None
    assert not settings.uploads.exists()


@pytest.mark.parametrize("name", ["../../x.png", "C:\\a\\b.png", "con.png", "a<b>.png", "..png"])
def test_upload_names_are_harmless(name: str) -> None:
    stem = pictures.safe_stem(name)
    assert stem and not set(stem) & set('/\\:*?"<>|') and ".." not in stem


# --- prompts ---


def test_prompts_go_there_and_back() -> None:
    rows = [["a sks house", "blurry", "128", "7", "20", "7.5"], ["two", "", "64x96", "", "", ""], [""] * 6, [None] * 6]
    lines, problems = request.read_prompts(rows)
    assert not problems
    assert [(p.prompt, p.negative_prompt, p.width, p.height, p.seed, p.steps, p.scale) for p in lines] == [
        ("a sks house", "blurry", 128, 128, 7, 20, 7.5),
        ("two", None, 64, 96, None, None, None),
    ]
    assert request.prompt_rows(lines) == rows[:2]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["", "", "128", "", "", ""], "no prompt"),
        (["a", "", "big", "", "", ""], "width"),
        (["a", "", "", "", "0", ""], "steps"),
    ],
)
def test_a_bad_prompt_says_which_row(row: list[str], said: str) -> None:
    _, problems = request.read_prompts([["fine", *[""] * 5], row])
    assert problems and said in problems[0].message and "row 2" in f"{problems[0].source} {problems[0].message}"


# --- the files of a run ---


def test_files_say_what_was_asked_for(tiny_folder: Path, folder: Path, settings: Settings, tmp_path: Path) -> None:
    classes = picture_folder(tmp_path / "classes", count=2)
    wanted = asked(
        tiny_folder, folder, num_repeats="10", class_pictures=str(classes), class_word="house",
        prompts=[["a sks house", "", "64", "1", "4", "7"]], options={"sample_at_first": True, "learning_rate": 1e-3},
    )  # fmt: skip
    run = RunFolder.create(settings.runs, "house")
    request.prepare(wanted, run.path, settings)
    config = build(TrainNetworkConfig, read_config(run.config_file))
    assert config.flat()["learning_rate"] == 1e-3
    assert config.flat()["output_dir"] == settings.outputs
    assert run.prompts_file.read_text(encoding="utf-8").startswith("a sks house --w 64 --h 64 --d 1")
    dataset = read_dataset(config.data)
    training, regularisation = dataset.datasets[0].subsets
    assert (training.image_dir, training.num_repeats, training.class_tokens) == (folder, 10, "sks house")
    assert training.pictures.caption_extension == ".txt"
    assert regularisation.is_reg and regularisation.class_tokens == "house"


def test_a_saved_data_set_is_copied_with_whole_paths(tiny_folder: Path, folder: Path, settings: Settings) -> None:
    saved = folder.parent / "set.toml"
    saved.write_text(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "my pictures"\nnum_repeats = 3\nclass_tokens = "x"\n'
    )
    run = RunFolder.create(settings.runs, "house")
    request.prepare(asked(tiny_folder, saved, trigger=""), run.path, settings)
    copy = tomllib.loads(run.dataset_file.read_text(encoding="utf-8"))
    assert copy["datasets"][0]["subsets"][0] == {"image_dir": str(folder), "num_repeats": 3, "class_tokens": "x"}
    seen = pictures.look(saved)
    assert (seen.pictures, seen.repeated, seen.is_dataset) == (4, 12, True)


def test_without_prompts_there_is_no_sample_schedule(
    tiny_folder: Path, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    wanted = asked(tiny_folder, folder, options={"sample_every_n_epochs": 1, "sample_at_first": True})
    config = request.prepare(wanted, RunFolder.create(settings.runs, "x").path, settings)
    assert config.flat()["sample_prompts"] is None and not config.flat()["sample_at_first"]


def test_hostile_text_stays_text(tiny_folder: Path, folder: Path, settings: Settings, tmp_path: Path) -> None:
    trigger = '$(touch CANARY) `x` "; [[datasets]] # --help'
    run = RunFolder.create(settings.runs, "house")
    request.prepare(asked(tiny_folder, folder, trigger=trigger), run.path, settings)
    config = build(TrainNetworkConfig, read_config(run.config_file))
    assert read_dataset(config.data).datasets[0].subsets[0].class_tokens == trigger
    assert "<b>" not in sentences.trigger(folder, "<b>x") or "&lt;b&gt;x" in sentences.trigger(folder, "<b>x")


# --- what a first user gets wrong ---


def broken_model(tmp_path: Path) -> Path:
    page = tmp_path / "model.safetensors"
    page.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    return page


ERRORS: dict[str, tuple[Callable[[Path, Path, Path], Request], str, str]] = {
    "no pictures chosen": (lambda m, f, t: asked(m, f, pictures=" "), "image_dir", "no pictures"),
    "wrong path": (lambda m, f, t: asked(m, f / "nowhere"), "image_dir", "does not exist"),
    "empty folder": (lambda m, f, t: asked(m, _made(t / "empty")), "image_dir", "no pictures in this folder"),
    "file for a folder": (lambda m, f, t: asked(m, f / "p0.png"), "image_dir", "is a file"),
    "no trigger word": (lambda m, f, t: asked(m, f, trigger=" "), "class_tokens", "no captions"),
    "no model": (lambda m, f, t: asked(m, f, options={MODEL: ""}), MODEL, "must not be empty"),
    "no such model": (lambda m, f, t: asked(t / "none", f), MODEL, "does not exist"),
    "an HTML page": (lambda m, f, t: asked(broken_model(t), f), MODEL, "HTML"),
    "bad number": (lambda m, f, t: asked(m, f, options={"network_dim": "abc"}), "network_dim", "whole number"),
    "out of range": (lambda m, f, t: asked(m, f, options={"train_batch_size": 0}), "train_batch_size", "at least 1"),
    "unknown key": (lambda m, f, t: asked(m, f, options={"network_dimm": 8}), "network_dimm", "not an option"),
    "bad repeats": (lambda m, f, t: asked(m, f, num_repeats="1.5"), "num_repeats", "whole number"),
    "no repeats": (lambda m, f, t: asked(m, f, num_repeats="0"), "num_repeats", "no picture is used"),
    "bad name": (lambda m, f, t: asked(m, f, options={"output_name": "../x"}), "output_name", "must not contain"),
    "output is a file": (
        lambda m, f, t: asked(m, f, options={"output_dir": str(f / "p0.png")}),
        "output_dir",
        "is a file",
    ),
    "no class pictures": (lambda m, f, t: asked(m, f, class_pictures=str(t / "c")), "reg_image_dir", "does not exist"),
    "bad prompt": (
        lambda m, f, t: asked(m, f, prompts=[["a", "", "huge", "", "", ""]]),
        "sample_prompts",
        "whole number",
    ),
}


def _made(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ERRORS)
def test_first_user_errors(name: str, tiny_folder: Path, folder: Path, settings: Settings, tmp_path: Path) -> None:
    make, option, said = ERRORS[name]
    found = problems_of(make(tiny_folder, folder, tmp_path), settings, tmp_path)
    assert option in found
    assert said in f"{found[option].message} {found[option].remedy}"
    assert not settings.runs.exists()


def test_all_errors_come_at_once(settings: Settings, tmp_path: Path) -> None:
    wanted = Request({"network_dim": Sourced("x", "form"), "learning_rate": Sourced(-1, "form")}, num_repeats="many")
    found = problems_of(wanted, settings, tmp_path)
    assert {MODEL, "image_dir", "network_dim", "learning_rate"} <= set(found)


def test_an_unwritable_output_folder(tiny_folder: Path, folder: Path, settings: Settings, tmp_path: Path) -> None:
    found = problems_of(asked(tiny_folder, folder, options={"output_dir": "/proc/outputs"}), settings, tmp_path)
    assert "cannot be written" in found["output_dir"].message


# --- names ---


@pytest.mark.parametrize(
    "made", ["house.safetensors", "house-000004.safetensors", "house-step00000010-state", "House.safetensors"]
)
def test_a_name_in_use_is_refused_and_another_proposed(
    made: str, tiny_folder: Path, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    settings.outputs.mkdir(parents=True)
    (settings.outputs / made).write_bytes(b"")
    found = problems_of(asked(tiny_folder, folder), settings, tmp_path)
    assert "house-2 is free" in found["output_name"].remedy
    assert request.free_name(settings.outputs, "house", settings) == "house-2"
    assert request.free_name(settings.outputs, "hous", settings) == "hous"


@pytest.mark.parametrize(
    ("name", "free"), [("a", "a-3"), ("a-2", "a-3"), ("a-7", "a-7"), ("a-2024", "a-2024-2"), ("b-9", "b-10")]
)
def test_the_next_name_counts_on(name: str, free: str, settings: Settings) -> None:
    settings.outputs.mkdir(parents=True)
    for made in ("a", "a-2", "a-2024", "b-9"):
        (settings.outputs / f"{made}.safetensors").write_bytes(b"")
    assert request.free_name(settings.outputs, name, settings) == free


def test_a_name_that_a_living_run_uses_is_refused(
    tiny_folder: Path, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    import os

    from trainer import host

    run = RunFolder.create(settings.runs, "house")
    request.prepare(asked(tiny_folder, folder), run.path, settings)
    run.write_status(Status("running", os.getpid(), host.process_started(os.getpid()) or 0.0))
    found = problems_of(asked(tiny_folder, folder), settings, tmp_path)
    assert run.path.name in found["output_name"].message
    run.write_status(Status("finished", os.getpid(), 0.0))
    assert request.free_name(settings.outputs, "house", settings) == "house"


# --- plan and sentences ---


def test_the_plan_counts_as_the_trainer_does(tiny_folder: Path, folder: Path) -> None:
    wanted = asked(tiny_folder, folder, num_repeats="10", options={"train_batch_size": 4, "max_train_epochs": 3})
    made = plan.make_plan(wanted, pictures.look(folder), pictures.Seen())
    assert made is not None and (made.steps_per_epoch, made.steps) == (10, 30)
    with_classes = plan.make_plan(wanted, pictures.look(folder), pictures.Seen(pictures=2))
    assert with_classes is not None and with_classes.steps == 60
    said = plan.sentence(made, None)
    assert "4 pictures × 10 repeats" in said and "30 steps in 3 epochs" in said and "unknown" in said
    assert "60 seconds" in plan.sentence(made, 2.0)


@pytest.mark.parametrize("name", ["train_batch_size", "max_train_epochs", "gradient_accumulation_steps"])
def test_no_plan_from_a_wrong_number(name: str, tiny_folder: Path, folder: Path) -> None:
    wanted = asked(tiny_folder, folder, options={name: "x"})
    assert plan.make_plan(wanted, pictures.look(folder), pictures.Seen()) is None


def test_what_came_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)>"
    said = [
        sentences.counts(evil),
        sentences.model(evil),
        sentences.result_path(tmp_path, "<b>", is_free=True),
        sentences.refusal([Problem("x", "<script>")], {}),
        sentences.problems_list([Problem("<i>", "<script>")]),
        sentences.changes([("a", "<b>", "</b><script>")]),
    ]
    assert not any(tag in text for text in said for tag in ("<img src=x", "<script>", "<b><", "<i>"))


def test_findings_of_the_check_find_their_field(settings: Settings) -> None:
    wanted = Request({}, class_pictures="/c")
    text = 'a library speaks\n{"findings": [{"option": "image_dir", "message": "none", "value": "/c"}], "plan": null}'
    found = launch._findings(text)
    assert found is not None
    assert launch._at_home(found[0], wanted, settings).option == "reg_image_dir"
    assert launch._findings("Traceback") is None
