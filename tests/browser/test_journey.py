"""The main job in a real browser with the real trainer: Start, watch, reload, lose the server, stop, finish, crash."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server, Watched, reload
from tests.browser.test_run_view import RUNNING, SECONDS, step_of, wait_for_step
from trainer.events import Step, read_events
from trainer.run_folder import RunFolder, list_runs
from trainer.store import read_config

pytestmark = pytest.mark.slow


def fill(page: Page, option: str, value: object) -> None:
    box = page.locator(f"#opt-{option} textarea, #opt-{option} input").first
    box.fill(str(value))
    box.blur()


@pytest.fixture
def own_pictures(tmp_path: Path, tiny_folder: Path) -> Callable[[Page], None]:
    """Fill the form with a tiny random model, six small pictures and one sample prompt."""
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 100, 200)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a sks house")

    def fill_form(page: Page) -> None:
        fill(page, "pretrained_model_name_or_path", tiny_folder)
        fill(page, "image_dir", pictures)
        fill(page, "reg_image_dir", "")
        fill(page, "resolution", 64)
        fill(page, "train_batch_size", 1)
        fill(page, "class_tokens", "sks house")
        for column, text in {0: "a sks house", 2: "64", 3: "1", 4: "4"}.items():
            cell = page.locator(f"#prompts [data-row='0'][data-col='{column}']").first
            cell.dblclick()
            cell.locator("textarea, input").first.fill(text)
            page.keyboard.press("Enter")
            expect(cell).to_contain_text(text)

    return fill_form


def open_form(page: Page, server: Server) -> None:
    """Open the page and wait until it has loaded the example."""
    page.goto(server.url)
    expect(page.locator("#preset-note")).to_contain_text("example-house", timeout=60 * SECONDS)


def press_start(page: Page, server: Server) -> RunFolder:
    """Press Start; the run view opens by itself."""
    page.click("#start")
    expect(page.locator("#run-head .rv-pill")).to_be_visible(timeout=90 * SECONDS)
    (folder,) = list_runs(server.home / "runs")
    expect(page.locator("#run-head h2")).to_contain_text("house")
    return folder


def stop(page: Page) -> None:
    page.click("#run-stop")
    expect(page.locator("#run-head .rv-pill.rv-stopped")).to_be_visible(timeout=60 * SECONDS)


def training_is_seen(page: Page) -> None:
    """The pictures from before training, then steps, loss and log lines."""
    phase = page.locator("#run-head .rv-phase")
    expect(phase).to_contain_text("loading", timeout=60 * SECONDS)
    expect(page.locator("#run-samples img").first).to_be_visible(timeout=120 * SECONDS)
    wait_for_step(page, 3)
    expect(phase).to_contain_text("training")
    expect(page.locator("#run-log")).to_contain_text("loss")
    expect(page.locator("#run-chart polyline.smooth")).to_be_attached()


def journey(page: Page, server: Server, watched: Watched) -> None:
    """Watch a run from Start over a reload and a killed server to Stop."""
    folder = press_start(page, server)
    training_is_seen(page)
    page.click("#run-sample")
    expect(page.locator("#run-samples button em").nth(1)).to_contain_text("step", timeout=60 * SECONDS)
    page.click("#run-save")
    expect(page.locator("#run-notes")).to_contain_text("Last saved", timeout=60 * SECONDS)

    reload(page, watched)
    expect(page.locator(RUNNING)).to_be_visible(timeout=30 * SECONDS)
    wait_for_step(page, step_of(page))

    server.kill()
    status = folder.status()
    assert status is not None and status.state == "running"
    before = step_of(page)
    server.start()
    wait_for_step(page, before)
    watched.errors.clear()

    stop(page)
    expect(page.locator("#run-notes")).to_contain_text("Stopped after step")
    state = Path(page.locator("#run-notes .rv-stopped code").inner_text())
    assert state.is_dir() and state.name.endswith("-state")


def test_from_start_to_stop(server: Server, page: Page, own_pictures: Callable[[Page], None], watched: Watched) -> None:
    open_form(page, server)
    own_pictures(page)
    fill(page, "max_train_epochs", 2000)
    journey(page, server, watched)
    go_on(page, server)


def go_on(page: Page, server: Server) -> None:
    """Go on with the stopped run: a new one, from the step after the last one."""
    (stopped,) = list_runs(server.home / "runs")
    before = step_of(page)
    page.click("#run-go-on")
    expect(page.locator("#run-go-on")).to_contain_text("Checking")
    expect(page.locator(RUNNING)).to_be_visible(timeout=90 * SECONDS)
    expect(page.locator("#run-list [data-run]")).to_have_count(2)
    wait_for_step(page, before, seconds=120)
    newest, _ = list_runs(server.home / "runs")
    steps = [line.event.step for line in read_events(newest.events_file)[0] if isinstance(line.event, Step)]
    assert newest.path != stopped.path and steps[0] == before + 1
    assert read_config(newest.config_file)["output_name"].value == "house"
    stop(page)


def test_the_example_from_start_to_stop(server: Server, page: Page) -> None:
    open_form(page, server)
    expect(page.locator("#badge")).to_contain_text("Stable Diffusion 1", timeout=30 * SECONDS)
    fill(page, "max_train_epochs", 2000)
    press_start(page, server)
    training_is_seen(page)
    stop(page)
    expect(page.locator("#run-notes")).to_contain_text("Stopped after step")


def test_a_finished_run_hands_over_its_file(server: Server, page: Page, own_pictures: Callable[[Page], None]) -> None:
    open_form(page, server)
    own_pictures(page)
    fill(page, "max_train_epochs", 1)
    fill(page, "num_repeats", 1)
    press_start(page, server)
    expect(page.locator("#run-head .rv-pill.rv-finished")).to_be_visible(timeout=180 * SECONDS)
    for said in (str(server.home / "outputs" / "house.safetensors"), "<lora:house:1>", "sks house"):
        expect(page.locator("#run-notes")).to_contain_text(said)
    with page.expect_download() as download:
        page.click("#run-download")
    with Path(download.value.path()).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        names = json.loads(file.read(length))
    assert any(name.startswith("lora_unet_") for name in names)


def test_a_killed_trainer_is_a_failure_with_a_cause(
    server: Server, page: Page, own_pictures: Callable[[Page], None]
) -> None:
    open_form(page, server)
    own_pictures(page)
    fill(page, "max_train_epochs", 2000)
    folder = press_start(page, server)
    wait_for_step(page, 1, seconds=120)
    os.kill(trainer_of(folder).pid, signal.SIGKILL)
    expect(page.locator("#run-head .rv-pill.rv-failed")).to_be_visible(timeout=30 * SECONDS)
    expect(page.locator("#run-notes")).to_contain_text("killed")
    expect(page.locator("#run-notes")).to_contain_text("memory")
    assert "inished" not in page.locator("#run-main").inner_text()


def trainer_of(folder: RunFolder) -> Any:
    """The process that trains: the innermost of supervisor, launcher and trainer."""
    status = folder.status()
    assert status is not None
    return psutil.Process(status.pid).children(recursive=True)[-1]
