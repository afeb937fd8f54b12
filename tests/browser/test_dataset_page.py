"""The Dataset tab in a real browser: found, checked, mended, edited, saved, read back, copied and used in Train."""

from __future__ import annotations

import io
import os
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import PROJECT, Server, Watched, reload

QUICK = 30_000
SLOW = 120_000
COMMENTED = """\
# my dogs, please keep
[[datasets]]
resolution = 64          # small
enable_bucket = true
min_bucket_reso = 32
bucket_reso_steps = 32

[[datasets.subsets]]
image_dir = "{folder}"   # where they are
num_repeats = 3
"""


def opened(page: Page, server: Server) -> Page:
    page.goto(server.url)
    expect(page.locator("#preset-note")).to_contain_text("example-house", timeout=SLOW)
    page.get_by_role("tab", name="Dataset", exact=True).click()
    expect(page.locator("#ds-source")).to_be_visible(timeout=QUICK)
    return page


def box(page: Page, name: str) -> Any:
    return page.locator(f"#{name} textarea, #{name} input").first


def choose(page: Page, path: object) -> None:
    box(page, "ds-source").fill(str(path))


def check(page: Page) -> None:
    expect(page.locator("#ds-look")).to_be_enabled(timeout=QUICK)
    page.click("#ds-look")
    expect(page.locator("#ds-pages .ds-cell").first).to_be_visible(timeout=SLOW)


def propose_caption(page: Page, warning: Any, text: str) -> None:
    """A warning's Caption button, the text, and what it would change; nothing is written yet."""
    warning.locator("button", has_text="Caption").click()
    expect(box(page, "ds-caption")).to_be_visible(timeout=QUICK)
    box(page, "ds-caption").fill(text)
    page.click("#ds-caption-ask")


def part(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def make(folder: Path, count: int = 5, *, suffix: str = ".txt", caption: str = "a sks dog on grass") -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        size = ((96, 64), (64, 64), (64, 96))[number % 3]
        Image.effect_noise(size, 60 + 20 * number).convert("RGB").save(folder / f"dog {number}.png")
        if suffix:
            (folder / f"dog {number}{suffix}").write_text(caption, encoding="utf-8")
    return folder


def test_from_a_folder_to_train(page: Page, studio: Server, tmp_path: Path) -> None:
    """Folder, report, histogram, thumbnails; the wrong caption ending mended; saved, read back, used in Train."""
    folder = make(tmp_path / "dogs")
    file = studio.home / "wrong.toml"
    file.write_text(COMMENTED.format(folder=folder.as_posix()), encoding="utf-8")
    opened(page, studio)
    choose(page, file)
    expect(page.locator("#ds-found")).to_contain_text("1 data set and 1 folder", timeout=QUICK)
    expect(page.locator("#ds-findings")).to_contain_text("5 .txt, 0 .caption", timeout=QUICK)
    expect(page.locator("#ds-bar")).to_contain_text("1 thing to mend")
    page.locator("#ds-findings button", has_text="Use .txt").click()
    expect(page.locator("#ds-findings .ds-finding.bad")).to_have_count(0, timeout=QUICK)
    check(page)
    expect(page.locator("#ds-summary")).to_contain_text("5 by caption file")
    expect(page.locator("#ds-pages .ds-cell img")).to_have_count(5)
    expect(page.locator("#ds-histogram svg rect.bar")).to_have_count(2)
    expect(page.locator("#ds-histogram svg")).to_contain_text("64×64")

    page.locator("#ds-pages .ds-cell").first.click()
    expect(page.locator("#ds-detail")).to_contain_text("96×64", timeout=QUICK)
    expect(page.locator("#ds-detail .ds-crop")).to_be_visible()
    expect(page.locator("#ds-draws li")).to_have_count(10)
    expect(page.locator("#ds-draws li").first).to_contain_text("a sks dog on grass")

    box(page, "ds-path").fill("datasets/dogs.toml")
    page.click("#ds-save")
    expect(page.locator("#ds-bar")).to_contain_text("Saved as", timeout=QUICK)
    saved = (studio.home / "datasets" / "dogs.toml").read_text(encoding="utf-8")
    for comment in ("# my dogs, please keep", "# small", "# where they are"):
        assert comment in saved
    assert tomllib.loads(saved)["datasets"][0]["subsets"][0]["caption_extension"] == ".txt"
    assert "caption_extension" not in file.read_text(encoding="utf-8")

    choose(page, "datasets/dogs.toml")
    expect(page.locator("#ds-bar")).to_contain_text("Saved as datasets/dogs.toml", timeout=QUICK)
    part(page, "Folders and settings")
    expect(box(page, "ds-text")).to_have_value(saved, timeout=QUICK)
    page.click("#ds-use")
    expect(page.locator("#opt-image_dir")).to_be_visible(timeout=QUICK)
    expect(box(page, "opt-image_dir")).to_have_value("datasets/dogs.toml")
    expect(page.locator("#counts")).to_contain_text("5 pictures", timeout=QUICK)


def test_the_first_look(page: Page, studio: Server, tmp_path: Path) -> None:
    opened(page, studio)
    choose(page, "examples/dataset")
    expect(page.locator("#ds-found")).to_contain_text("12 pictures, all with captions (.txt)", timeout=QUICK)
    expect(page.locator("#ds-found .ds-strip img")).to_have_count(8)
    for button in ("#ds-look", "#ds-save", "#ds-use"):
        expect(page.locator(button)).to_be_in_viewport()
    check(page)
    page.locator("#ds-summary").scroll_into_view_if_needed()
    page.evaluate("document.activeElement.blur()")
    kept = PROJECT / "docs" / "dataset.png"
    picture = kept if os.environ.get("UPDATE_PICTURES") or not kept.exists() else tmp_path / "page.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 40_000


def test_slips_are_named_and_mended(page: Page, studio: Server, tmp_path: Path) -> None:
    leaf = make(tmp_path / "all" / "10_sks dog", 2)
    make(tmp_path / "all" / "5_cpc cat", 3)
    opened(page, studio)
    choose(page, leaf)
    expect(page.locator("#ds-found")).to_contain_text("1 more training folder", timeout=QUICK)
    page.locator("#ds-found button", has_text="Use all of them").click()
    expect(page.locator("#ds-found")).to_contain_text("2 training folders with 5 pictures", timeout=QUICK)
    assert box(page, "ds-source").input_value() == str(tmp_path / "all")
    expect(page.locator("#ds-bar")).to_contain_text("in 2 folders, 35 uses an epoch")
    choose(page, tmp_path)
    expect(page.locator("#ds-found")).to_contain_text("one folder further down", timeout=QUICK)
    choose(page, tmp_path / "nowhere")
    expect(page.locator("#ds-found")).to_contain_text("nothing at this path", timeout=QUICK)


def test_an_identifier_is_weighed(page: Page, studio: Server, watched: Watched, tmp_path: Path) -> None:
    folder = make(tmp_path / "p", 3, suffix="")
    opened(page, studio)
    choose(page, folder)
    expect(page.locator("#ds-found")).to_contain_text("without captions", timeout=QUICK)
    box(page, "ds-words").fill("mylovelydog dog")
    expect(page.locator("#ds-words-note")).to_contain_text("one token is learned more easily", timeout=QUICK)
    page.locator("#ds-words-note button", has_text="wny").click()
    expect(box(page, "ds-words")).to_have_value("wny dog", timeout=QUICK)
    part(page, "Folders and settings")
    expect(box(page, "ds-text")).to_have_value(_has('class_tokens = "wny dog"'), timeout=QUICK)

    # nothing of it is saved in a file, and a reload finds all of it again
    page.wait_for_function("window.studio.described().includes('class_tokens = ')", timeout=QUICK)
    reload(page, watched)
    opened(page, studio)
    expect(box(page, "ds-words")).to_have_value("wny dog", timeout=QUICK)
    expect(box(page, "ds-source")).to_have_value(str(folder))
    part(page, "Folders and settings")
    expect(box(page, "ds-text")).to_have_value(_has('class_tokens = "wny dog"'))
    expect(page.locator("#ds-found")).to_contain_text("without captions", timeout=QUICK)


def test_an_empty_caption_is_written_or_left_out(page: Page, studio: Server, tmp_path: Path) -> None:
    folder = make(tmp_path / "p", 3)
    (folder / "dog 1.txt").write_bytes(b"")
    opened(page, studio)
    choose(page, folder)
    expect(page.locator("#ds-found")).to_contain_text("3 pictures", timeout=QUICK)
    check(page)
    bad = page.locator("#ds-warnings [data-kind=bad_file]")
    expect(bad).to_contain_text("this caption is empty")
    bad.locator("button", has_text="Exclude").click()
    box(page, "ds-exclude-name").fill("two dogs")
    page.click("#ds-exclude-copy")
    expect(page.locator("#ds-exclude-said")).to_contain_text("4 files copied", timeout=QUICK)
    copied = sorted(path.name for path in (studio.home / "datasets" / "two dogs").rglob("dog*"))
    assert copied == ["dog 0.png", "dog 0.txt", "dog 2.png", "dog 2.txt"]
    assert (folder / "dog 1.txt").read_bytes() == b""

    propose_caption(page, bad, "a dog in the snow")
    page.click("#ds-caption-write")
    expect(page.locator("#ds-caption-change")).to_contain_text("Written", timeout=QUICK)
    assert (folder / "dog 1.txt").read_text(encoding="utf-8") == "a dog in the snow"


def test_a_caption_is_written_and_put_back(page: Page, studio: Server, tmp_path: Path) -> None:
    folder = make(tmp_path / "p", 3)
    (folder / "dog 1.txt").unlink()
    opened(page, studio)
    choose(page, folder)
    expect(page.locator("#ds-found")).to_contain_text("2 with captions", timeout=QUICK)
    check(page)
    warning = page.locator("#ds-warnings [data-kind=missing_caption]")
    expect(warning).to_contain_text("dog 1.png")
    propose_caption(page, warning, "a dog in the snow")
    expect(page.locator("#ds-caption-change ins")).to_have_text("a dog in the snow", timeout=QUICK)
    assert not (folder / "dog 1.txt").exists()
    page.click("#ds-caption-write")
    expect(page.locator("#ds-caption-change")).to_contain_text("Written", timeout=QUICK)
    assert (folder / "dog 1.txt").read_text(encoding="utf-8") == "a dog in the snow"
    page.click("#ds-caption-undo")
    expect(page.locator("#ds-caption-change")).to_contain_text("as it was", timeout=QUICK)
    assert not (folder / "dog 1.txt").exists() and len(list(folder.iterdir())) == 5


def test_excluding_copies_the_others(page: Page, studio: Server, tmp_path: Path) -> None:
    folder = make(tmp_path / "p", 4)
    opened(page, studio)
    choose(page, folder)
    check(page)
    page.locator("#ds-pages .ds-cell").nth(2).click()
    page.locator("#ds-detail button", has_text="Exclude").click()
    expect(page.locator("#ds-excluded")).to_contain_text("1 picture excluded", timeout=QUICK)
    expect(page.locator("#ds-pages .ds-cell.out")).to_have_count(1)
    expect(page.locator("#ds-detail button")).to_have_text("Take back")
    box(page, "ds-exclude-name").fill("three")
    page.click("#ds-exclude-copy")
    expect(page.locator("#ds-exclude-said")).to_contain_text("6 files copied", timeout=QUICK)
    copied = studio.home / "datasets" / "three" / "p"
    assert sorted(p.name for p in copied.glob("*.png")) == ["dog 0.png", "dog 1.png", "dog 3.png"]
    assert len(list(folder.iterdir())) == 8
    expect(page.locator("#ds-look-progress")).to_contain_text("changed since", timeout=QUICK)


def test_folders_are_added_by_form(page: Page, studio: Server, tmp_path: Path) -> None:
    opened(page, studio)
    choose(page, make(tmp_path / "dogs", 3))
    make(tmp_path / "classes", 40, suffix="")
    part(page, "Folders and settings")
    page.click("#ds-add-reg")
    box(page, "ds-image_dir").fill(str(tmp_path / "classes"))
    box(page, "ds-num_repeats").fill("none")
    box(page, "ds-class_tokens").fill("dog")
    page.click("#ds-put")
    expect(page.locator("#ds-build-problems")).to_contain_text("num_repeats", timeout=QUICK)
    box(page, "ds-num_repeats").fill("2")
    page.click("#ds-put")
    expect(page.locator("#ds-table")).to_contain_text("regularisation", timeout=QUICK)
    expect(page.locator("#ds-findings")).to_contain_text("80 regularisation pictures", timeout=QUICK)
    page.locator("#ds-findings button", has_text="repeats").click()
    expect(page.locator("#ds-findings .ds-finding")).to_have_count(0, timeout=QUICK)
    size = box(page, "dsd-resolution")
    size.fill("96x64")
    size.blur()
    expect(box(page, "ds-text")).to_have_value(_has("resolution = [96, 64]"), timeout=QUICK)
    page.locator("#ds-table tr", has_text="classes").locator("button", has_text="Remove").click()
    expect(page.locator("#ds-table tr")).to_have_count(2, timeout=QUICK)


def test_a_zip_is_taken_and_the_layout_copied(page: Page, studio: Server, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(picture, "PNG")
    file = tmp_path / "pets.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("10_sks dog/a.png", "5_cpc cat/b.png", "../evil.png"):
            archive.writestr(name, picture.getvalue())
    opened(page, studio)
    page.set_input_files("#ds-upload input[type=file]", str(file))
    expect(page.locator("#ds-found")).to_contain_text("2 training folders", timeout=QUICK)
    expect(page.locator("#ds-upload-note")).to_contain_text("leads out of the zip")
    part(page, "Training folders")
    expect(page.locator("#ds-layout-plan")).to_contain_text("img/10_sks dog", timeout=QUICK)
    box(page, "ds-layout-name").fill("pets")
    page.click("#ds-layout-copy")
    expect(page.locator("#ds-layout-said")).to_contain_text("2 files copied", timeout=QUICK)
    assert (studio.home / "datasets" / "pets" / "img" / "10_sks dog" / "a.png").is_file()
    page.click("#ds-layout-copy")
    expect(page.locator("#ds-layout-said")).to_contain_text("exists already", timeout=QUICK)


def test_a_file_is_replaced_on_a_second_press_only(page: Page, studio: Server, tmp_path: Path) -> None:
    target = studio.home / "datasets" / "mine.toml"
    target.parent.mkdir(exist_ok=True)
    target.write_text("# precious\n", encoding="utf-8")
    opened(page, studio)
    choose(page, make(tmp_path / "p", 2))
    expect(page.locator("#ds-bar")).to_contain_text("2 pictures", timeout=QUICK)
    box(page, "ds-path").fill("datasets/mine.toml")
    page.click("#ds-save")
    expect(page.locator("#ds-bar")).to_contain_text("exists already", timeout=QUICK)
    assert target.read_text(encoding="utf-8") == "# precious\n"
    page.click("#ds-replace")
    expect(page.locator("#ds-bar")).to_contain_text("Saved as", timeout=QUICK)
    assert "[[datasets.subsets]]" in target.read_text(encoding="utf-8")
    box(page, "ds-path").fill("/etc/dogs.toml")
    page.click("#ds-save")
    expect(page.locator("#ds-bar")).to_contain_text("outside the folders", timeout=QUICK)


@pytest.mark.slow
def test_class_pictures_are_drawn_as_a_run(page: Page, server: Server, tiny_folder: Path) -> None:
    opened(page, server)
    choose(page, make(server.home / "p", 2))
    expect(page.locator("#ds-found")).to_contain_text("2 pictures", timeout=QUICK)
    part(page, "Class pictures")
    page.click("#ds-reg-start")
    expect(page.locator("#ds-reg-said")).to_contain_text("class_prompt", timeout=QUICK)
    values = {"pretrained_model_name_or_path": tiny_folder, "class_prompt": "dog", "output_dir": "datasets/reg"}
    for name, value in {**values, "reg_count": 2, "sample_steps": 1}.items():
        box(page, f"dsr-{name}").fill(str(value))
    page.click("#ds-reg-start")
    expect(page.locator("#run-head .rv-pill.rv-finished")).to_be_visible(timeout=SLOW)
    drawn = server.home / "datasets" / "reg"
    assert len(list(drawn.glob("*.png"))) == 2 == len(list(drawn.glob("*.txt")))
    page.get_by_role("tab", name="Dataset", exact=True).click()
    page.click("#ds-reg-add")
    expect(page.locator("#ds-bar")).to_contain_text("2 regularisation pictures", timeout=QUICK)


@pytest.mark.slow
@pytest.mark.timing
def test_five_thousand_pictures_stay_usable(page: Page, studio: Server, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(5000):
        Image.new("RGB", (64, 48), (number % 256, number // 20 % 256, 90)).save(folder / f"{number:04d}.png")
    opened(page, studio)
    choose(page, folder)
    expect(page.locator("#ds-found")).to_contain_text("5,000 pictures", timeout=QUICK)
    expect(page.locator("#ds-look")).to_be_enabled(timeout=QUICK)
    # pressed in the moment it is there: these small pictures are looked through in seconds
    page.evaluate("""() => new MutationObserver((_, observer) => {
        const button = document.querySelector('#ds-look-cancel');
        if (button && button.offsetParent) { observer.disconnect(); button.click(); }
    }).observe(document.body, {childList: true, subtree: true, attributes: true})""")
    page.click("#ds-look")
    expect(page.locator("#ds-look-progress")).to_contain_text("Cancelled", timeout=QUICK)
    check(page)
    expect(page.locator("#ds-pages .ds-pager")).to_contain_text("1 of 139")
    began = time.monotonic()
    page.locator("#ds-pages .ds-pager button", has_text="›").click()
    expect(page.locator("#ds-pages .ds-pager")).to_contain_text("2 of 139", timeout=QUICK)
    expect(page.locator("#ds-pages .ds-cell img")).to_have_count(36)
    assert time.monotonic() - began < 3


def _has(text: str) -> Any:
    import re

    return re.compile(re.escape(text))
