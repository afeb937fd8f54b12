"""The Train page in a real browser: the example, errors beside their fields, presets, folders, uploads, one start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PROJECT, Server, Watched, reload, watch

MODEL = "pretrained_model_name_or_path"
QUICK = 40_000
SLOW = 150_000


def opened(page: Page, server: Server) -> Page:
    page.goto(server.url)
    expect(page.locator("#preset-note")).to_contain_text("example-house", timeout=SLOW)
    return page


def box(page: Page, name: str) -> Any:
    return page.locator(f"#opt-{name} textarea, #opt-{name} input").first


def make_pictures(folder: Path, count: int = 3, caption: str = "") -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (64, 64), (number * 60, 120, 80)).save(folder / f"picture {number}.png")
        if caption:
            (folder / f"picture {number}.txt").write_text(caption, encoding="utf-8")
    return folder


def fill_own(page: Page, model: Path, folder: Path) -> None:
    page.click("#card-own")
    expect(page.locator("#preset-note")).to_contain_text("sd15-lora", timeout=QUICK)
    values = {MODEL: model, "image_dir": folder, "class_tokens": "sks house", "max_train_epochs": 400, "num_repeats": 1}
    for name, value in values.items():
        box(page, name).fill(str(value))
    page.locator("#show-all").evaluate("e => e.scrollIntoView({block: 'center'})")
    page.check("#show-all input")
    page.locator("#opt-enable_bucket input").uncheck()
    box(page, "resolution").fill("64")


def test_the_example_is_loaded_and_pictured(page: Page, studio: Server, tmp_path: Path) -> None:
    opened(page, studio)
    expect(page.locator("#badge")).to_contain_text("Stable Diffusion 1", timeout=QUICK)
    expect(page.locator("#counts")).to_contain_text("pictures")
    expect(page.locator("#counts .strip img").first).to_be_visible()
    expect(page.locator("#trigger-note")).to_contain_text("In ")
    expect(page.locator("#path-note")).to_contain_text(str(studio.home / "outputs" / "house.safetensors"))
    expect(page.locator("#plan")).to_contain_text("steps", timeout=QUICK)
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator("#card-example")).to_be_in_viewport()
    expect(page.locator("#start")).to_be_in_viewport()
    page.evaluate("document.activeElement.blur()")
    # the README's picture is taken here: UPDATE_PICTURES=1 python -m pytest tests/browser/test_train_page.py
    readme = PROJECT / "docs" / "page.png"
    picture = readme if os.environ.get("UPDATE_PICTURES") or not readme.exists() else tmp_path / "page.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 50_000


def test_every_error_stands_beside_its_field(page: Page, studio: Server, tmp_path: Path) -> None:
    opened(page, studio)
    web_page = tmp_path / "model.safetensors"
    web_page.write_text("<!DOCTYPE html><html>404</html>")
    page.click("#card-own")
    expect(page.locator("#preset-note")).to_contain_text("sd15-lora", timeout=QUICK)
    box(page, MODEL).fill(str(web_page))
    box(page, "image_dir").fill("/no/such/folder")
    box(page, "learning_rate").fill("fast")
    expect(page.locator("#err-learning_rate")).to_contain_text("should be a number", ignore_case=True, timeout=QUICK)
    box(page, "network_dim").fill("0")
    page.click("#start")
    expect(page.locator(f"#err-{MODEL}")).to_contain_text("HTML", timeout=QUICK)
    expect(page.locator("#err-image_dir")).to_contain_text("does not exist")
    expect(page.locator("#err-learning_rate")).to_be_visible()
    expect(page.locator("#err-network_dim")).to_contain_text("1 to 4096")
    expect(page.locator("#plan")).to_contain_text("4 things to mend")
    expect(box(page, "learning_rate")).to_have_attribute("aria-invalid", "true")
    box(page, "learning_rate").fill("0.001")
    expect(page.locator("#err-learning_rate")).to_have_count(0)
    expect(page.locator("#start")).to_be_enabled()
    assert not list((studio.home / "runs").glob("*/job.json"))


def test_the_trainers_own_findings_stand_beside_fields(
    page: Page, studio: Server, tiny_folder: Path, tmp_path: Path
) -> None:
    """fp16 on a machine without a card is found by the check, in an option that was hidden."""
    opened(page, studio)
    fill_own(page, tiny_folder, make_pictures(tmp_path / "pictures"))
    page.click("#opt-memory input")
    page.get_by_role("option", name="fp16").click()
    expect(page.locator("#memory-note")).to_contain_text("fp16", timeout=QUICK)
    page.click("#start")
    expect(page.locator("#err-mixed_precision")).to_contain_text("fp16", timeout=SLOW)


def test_presets_are_saved_and_loaded(page: Page, studio: Server) -> None:
    opened(page, studio)
    box(page, "network_dim").fill("7")
    page.locator("#preset-name textarea, #preset-name input").first.fill("mine")
    page.click("#preset-save")
    expect(page.locator("#preset-saved")).to_contain_text("Saved", timeout=QUICK)
    saved = json.loads((studio.home / "presets" / "user" / "train_network" / "mine.json").read_text(encoding="utf-8"))
    assert saved["values"]["network_dim"] == 7 and "output_name" not in saved["values"]
    box(page, "network_dim").fill("9")
    page.click("#preset-load")
    expect(page.locator("#preset-changes")).to_contain_text("network_dim", timeout=QUICK)
    expect(box(page, "network_dim")).to_have_value("7")
    expect(page.locator("#preset-note")).to_contain_text("mine")


def test_a_preset_file_lists_what_it_cannot_use(page: Page, studio: Server, tmp_path: Path) -> None:
    opened(page, studio)
    odd = tmp_path / "odd.json"
    body = {"preset_version": 1, "task": "train_network", "values": {"network_dimm": 3, "network_dim": 5}}
    odd.write_text(json.dumps(body), encoding="utf-8")
    with page.expect_file_chooser() as chooser:
        page.click("#preset-upload")
    chooser.value.set_files(str(odd))
    expect(page.locator("#preset-changes")).to_contain_text("network_dimm", timeout=QUICK)
    expect(page.locator("#preset-changes")).to_contain_text("Did you mean network_dim?")
    expect(box(page, "network_dim")).to_have_value("5")


def test_all_options_are_found_by_searching(page: Page, studio: Server) -> None:
    opened(page, studio)
    page.locator("#show-all").evaluate("e => e.scrollIntoView({block: 'center'})")
    page.check("#show-all input")
    expect(page.locator("#opt-noise_offset")).to_be_visible(timeout=QUICK)
    page.locator("#search-options textarea, #search-options input").first.fill("bucket")
    expect(page.locator("#opt-enable_bucket")).to_be_visible()
    expect(page.locator("#opt-noise_offset")).to_be_hidden()
    page.locator("#search-options textarea, #search-options input").first.fill("learning_rate")
    expect(page.locator("#search-note a").first).to_have_text("learning_rate ")


def test_a_folder_is_browsed_to(page: Page, studio: Server) -> None:
    folder = make_pictures(studio.home / "pictures", caption="a sks house")
    opened(page, studio)
    page.click("#card-own")
    expect(page.locator("#preset-note")).to_contain_text("sd15-lora", timeout=QUICK)
    page.locator("#opt-image_dir button", has_text="Browse").click()
    page.locator("#browser-entries label", has_text=str(studio.home)).first.click()
    page.locator("#browser-entries label", has_text="pictures/").click()
    path = page.locator("#browser-path textarea, #browser-path input").first
    expect(path).to_have_value(str(folder), timeout=QUICK)
    page.click("#browser-use")
    expect(box(page, "image_dir")).to_have_value(str(folder), timeout=QUICK)
    expect(page.locator("#counts")).to_contain_text("3 pictures, all with captions", timeout=QUICK)
    expect(page.locator("#browser")).to_be_hidden()
    page.locator("#opt-image_dir button", has_text="Browse").click()
    expect(page.locator("#browser")).to_have_role("dialog", timeout=QUICK)
    page.keyboard.press("Escape")
    expect(page.locator("#browser")).to_be_hidden(timeout=QUICK)


def test_dropped_pictures_go_into_a_folder_of_ours(page: Page, studio: Server, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "drop", caption="a sks house")
    opened(page, studio)
    page.set_input_files("#upload input[type=file]", [str(p) for p in sorted(folder.iterdir())])
    expect(page.locator("#counts")).to_contain_text("3 pictures, all with captions", timeout=QUICK)
    uploads = list((studio.home / "uploads").iterdir())
    assert len(uploads) == 1 and len(list(uploads[0].iterdir())) == 6
    assert box(page, "image_dir").input_value() == str(uploads[0])


def test_what_is_typed_survives_a_reload_and_a_restarted_server(page: Page, server: Server, watched: Watched) -> None:
    opened(page, server)
    box(page, "network_dim").fill("7")
    box(page, "learning_rate").fill("fast")
    box(page, "class_tokens").fill("sks ball")
    cell = page.locator("#prompts [data-row='0'][data-col='0']").first
    cell.dblclick()
    cell.locator("textarea, input").first.fill("a red ball")
    page.keyboard.press("Enter")
    expect(cell).to_contain_text("a red ball")
    expect(page.locator("#err-learning_rate")).to_contain_text("number", timeout=QUICK)
    # a table says a moment later that it changed
    page.wait_for_function("window.studio.kept().includes('a red ball')", timeout=QUICK)

    def stands_again() -> None:
        expect(box(page, "network_dim")).to_have_value("7", timeout=SLOW)
        expect(box(page, "learning_rate")).to_have_value("fast")
        expect(box(page, "class_tokens")).to_have_value("sks ball")
        expect(cell).to_contain_text("a red ball")
        expect(page.locator("#err-learning_rate")).to_contain_text("number", timeout=QUICK)

    reload(page, watched)
    stands_again()
    server.kill()
    server.start()
    opened(page, server)
    stands_again()
    watched.errors.clear()  # while the server was down the browser could only complain
    # the cards begin anew, and what they show is what a reload shows
    page.click("#card-own")
    expect(box(page, "output_name")).to_have_value("my-lora", timeout=QUICK)
    reload(page, watched)
    expect(box(page, "output_name")).to_have_value("my-lora", timeout=SLOW)
    expect(box(page, "class_tokens")).to_have_value("")
    page.click("#card-example")
    expect(box(page, "class_tokens")).to_have_value("sks house", timeout=QUICK)
    expect(box(page, "network_dim")).to_have_value("16")
    reload(page, watched)
    expect(box(page, "class_tokens")).to_have_value("sks house", timeout=SLOW)


def test_help_moves_nothing_and_buttons_are_whole(page: Page, studio: Server) -> None:
    opened(page, studio)
    # Gradio lays a field's button at its corner, where its frame was cut off
    for name in (MODEL, "image_dir", "reg_image_dir"):
        field, button = page.locator(f"#opt-{name}"), page.locator(f"#opt-{name} .icon-button-wrapper")
        outer, inner = field.bounding_box(), button.bounding_box()
        assert outer and inner and inner["x"] + inner["width"] <= outer["x"] + outer["width"]
        assert inner["y"] >= outer["y"]
    info = page.locator("#opt-learning_rate .info-text")
    page.locator("#opt-learning_rate").evaluate("e => e.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(300)
    before = page.locator("#opt-learning_rate").bounding_box()
    info.hover()
    for said in ("A LoRA usually wants about 1e-4", "usually 1. [at least 0; default"):  # from its beginning to its end
        expect(page.locator("#help")).to_contain_text(said)
    assert page.locator("#opt-learning_rate").bounding_box() == before
    page.mouse.move(5, 5)
    expect(page.locator("#help")).to_have_count(0)
    box(page, "learning_rate").focus()
    expect(page.locator("#help")).to_be_visible()
    assert page.locator("#opt-learning_rate").bounding_box() == before


@pytest.mark.slow
def test_starting_in_two_tabs_gives_one_run(
    page: Page, browser: Browser, server: Server, watched: Watched, tiny_folder: Path
) -> None:
    folder = make_pictures(server.home / "pictures")
    other = browser.new_page(viewport={"width": 1366, "height": 768})
    watch(other, watched)
    for tab in (page, other):
        opened(tab, server)
        fill_own(tab, tiny_folder, folder)
        expect(tab.locator("#plan")).to_contain_text("steps", timeout=QUICK)
    page.locator("#start").dblclick()
    other.locator("#start").click()
    expect(page.locator("#run-head")).to_contain_text("my-lora", timeout=SLOW)
    expect(other.locator("#err-output_name")).to_contain_text("my-lora-2 is free", timeout=SLOW)
    assert len(list((server.home / "runs").glob("*/job.json"))) == 1
    other.close()


def test_the_page_works_in_the_dark(browser: Browser, studio: Server, watched: Watched, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1366, "height": 768}, color_scheme="dark")
    watch(page, watched)
    opened(page, studio)
    page.screenshot(path=tmp_path / "dark.png")
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    page.close()
    assert colours[0] != colours[1]
    assert not watched.errors and not watched.foreign
