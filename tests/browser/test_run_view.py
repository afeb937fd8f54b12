"""The run view in a real browser: a run is watched, found again after all that can happen to a page, and ended."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from kohya_gui import runs
from tests.browser.conftest import Server, Watched, free_port, reload
from tests.kohya_gui.writer import PROMPTS
from trainer.run_folder import Job, RunFolder

PROJECT = Path(__file__).resolve().parents[2]
WRITER = PROJECT / "tests" / "kohya_gui" / "writer.py"

RUNNING = "#run-head .rv-pill.rv-running"
SECONDS = 1000


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One page server for the tests of this file."""
    viewer = Server(tmp_path_factory.mktemp("viewer") / "My Studio é", free_port())
    viewer.home.mkdir()
    viewer.start()
    yield viewer
    viewer.kill()


@pytest.fixture
def server(viewer: Server) -> Iterator[Server]:
    """The same server without living runs, and without old ones."""
    yield viewer
    viewer.end_runs()
    shutil.rmtree(viewer.home / "runs")


@pytest.fixture
def start(server: Server) -> Callable[..., RunFolder]:
    """Start a run of the small writer under the real supervisor, as the page does."""

    def start_run(*, steps: int = 4000, seconds: float = 0.1, end: str = "finish") -> RunFolder:
        folder = RunFolder.create(server.home / "runs", "house")
        folder.dataset_file.write_text('[[datasets]]\n[[datasets.subsets]]\nclass_tokens = "sks house"\n')
        argv = [sys.executable, str(WRITER), str(folder.path), str(server.home / "outputs"), str(steps), str(seconds)]
        runs.start_job(folder, Job((*argv, end), str(PROJECT), {"PYTHONPATH": str(PROJECT)}, runs.locks_of(folder)))
        return folder

    return start_run


def step_of(page: Page) -> int:
    text = page.locator("#run-tiles dd").first.inner_text().split()[0].replace(",", "")
    return int(text) if text.isdigit() else -1


def wait_for_step(page: Page, more_than: int, *, seconds: int = 60) -> None:
    page.wait_for_function(
        "(n) => parseInt(document.querySelector('#run-tiles dd')?.innerText.replace(',', '')) > n",
        arg=more_than,
        timeout=seconds * SECONDS,
    )


def is_within_the_window(page: Page, selector: str) -> bool:
    box = page.locator(selector).bounding_box()
    return box is not None and box["y"] >= 0 and box["y"] + box["height"] <= 768 and box["x"] + box["width"] <= 1366


def test_a_run_is_seen_at_one_glance(server: Server, page: Page, start: Any) -> None:
    start(seconds=0.6)
    page.goto(server.url)
    # opening the page finds the living run without a click
    expect(page.locator(RUNNING)).to_be_visible(timeout=20 * SECONDS)
    wait_for_step(page, 3)
    expect(page.locator("#run-chart polyline.smooth")).to_be_attached()
    expect(page.locator("#run-log")).to_contain_text("loss")
    expect(page.locator("#run-samples img")).to_have_count(len(PROMPTS))
    page.click("#run-sample")
    expect(page.locator("#run-samples img")).to_have_count(2 * len(PROMPTS), timeout=15 * SECONDS)
    assert page.locator("#run-samples img").first.evaluate("image => image.naturalWidth") > 0
    page.click("#run-save")
    expect(page.locator("#run-notes")).to_contain_text("Last saved", timeout=10 * SECONDS)
    expect(page.locator("#run-notes")).to_contain_text("1 warning")
    for part in ("#run-head", "#run-buttons", "#run-tiles", "#run-chart", "#run-samples", "#run-notes", "#run-log"):
        assert is_within_the_window(page, part), part
    # what the run wrote stays text
    expect(page.locator("#run-samples figcaption").nth(1)).to_contain_text("<script>")
    first = page.locator("#run-head").inner_text()
    page.wait_for_timeout(2500)
    assert page.locator("#run-head").inner_text() != first, "never five seconds without a sign"


def test_download_enlarge_and_the_full_log(server: Server, page: Page, start: Any) -> None:
    folder = start(steps=30, seconds=0.02)
    page.goto(f"{server.url}?run={folder.path.name}")
    expect(page.locator("#run-head .rv-pill.rv-finished")).to_be_visible(timeout=30 * SECONDS)
    notes = page.locator("#run-notes")
    for said in ("house.safetensors", "<lora:house:1>", "sks house"):
        expect(notes).to_contain_text(said)
    with page.expect_download() as download:
        page.click("#run-download")
    assert download.value.suggested_filename == "house.safetensors"
    saved = server.home / "outputs" / "house.safetensors"
    assert Path(download.value.path()).read_bytes() == saved.read_bytes()
    page.locator("#run-samples [data-sample]").nth(1).click()
    expect(page.locator(".rv-large img")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".rv-large")).to_have_count(0)
    page.get_by_text("Full log").click()
    expect(page.locator("#run-full")).to_contain_text("<b>not bold</b>")
    expect(page.locator("#run-full")).to_contain_text("step 30")


def test_an_ended_run_leaves_the_page_quiet(server: Server, page: Page, start: Any) -> None:
    start(steps=5, seconds=0.02)
    page.goto(server.url)
    page.get_by_role("tab", name="Runs").click()
    expect(page.locator("#run-head .rv-pill.rv-finished")).to_be_visible(timeout=30 * SECONDS)
    page.wait_for_timeout(1500)
    page.evaluate(
        """() => {
          window.changes = 0;
          // Gradio turns a hidden sign of work on and off with every request; what a person sees must not move
          const isSeen = (change) => !change.target.parentElement?.closest("[data-testid=status-tracker]")
            && !change.target.matches?.("[data-testid=status-tracker]");
          const count = (list) => { window.changes += list.filter(isSeen).length; };
          new MutationObserver(count).observe(
            document.querySelector("#run-page"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    page.wait_for_timeout(4000)
    assert page.evaluate("window.changes") == 0


def test_reload_and_a_second_tab_find_the_run(
    server: Server, page: Page, start: Any, browser: Browser, watched: Watched
) -> None:
    start()
    page.goto(server.url)
    wait_for_step(page, 2)
    reload(page, watched)
    expect(page.locator(RUNNING)).to_be_visible(timeout=20 * SECONDS)
    second = browser.new_page()
    second.goto(server.url)
    # both go on side by side
    for tab in (page, second, page, second):
        wait_for_step(tab, step_of(tab))
    # and what one does, the other shows
    second.click("#run-stop")
    for tab in (page, second):
        expect(tab.locator("#run-head .rv-pill.rv-stopped")).to_be_visible(timeout=20 * SECONDS)
        expect(tab.locator("#run-notes")).to_contain_text("-state")
    second.close()


def test_a_killed_server_finds_the_run_again(server: Server, page: Page, start: Any, watched: Watched) -> None:
    folder = start()
    page.goto(server.url)
    wait_for_step(page, 2)
    server.kill()
    before = step_of(page)
    status = folder.status()
    assert status is not None and status.state == "running"
    server.start()
    # the tab that stayed open goes on by itself
    wait_for_step(page, before)
    expect(page.locator(RUNNING)).to_be_visible()
    # and so does a fresh one
    page.goto(server.url)
    wait_for_step(page, before)
    page.click("#run-stop")
    expect(page.locator("#run-head .rv-pill.rv-stopped")).to_be_visible(timeout=20 * SECONDS)
    # while the server was down the browser could only complain
    watched.errors.clear()


def test_a_run_that_does_not_heed_stop_is_ended_by_hand(server: Server, page: Page, start: Any) -> None:
    folder = start(steps=10, seconds=300)
    page.goto(server.url)
    expect(page.locator(RUNNING)).to_be_visible(timeout=20 * SECONDS)
    page.click("#run-stop")
    expect(page.locator("#run-notes")).to_contain_text("go on later")
    page.click("#run-kill")
    expect(page.locator("#run-head .rv-pill.rv-killed")).to_be_visible(timeout=20 * SECONDS)
    expect(page.locator("#run-notes")).to_contain_text("by hand")
    status = folder.status()
    assert status is not None and status.state == "killed"


def test_an_ended_run_is_taken_off_the_list_after_asking(server: Server, page: Page, start: Any) -> None:
    kept = start(steps=3, seconds=0.02)
    folder = start(steps=5, seconds=0.02)
    page.goto(f"{server.url}?run={folder.path.name}")
    expect(page.locator("#run-head .rv-pill.rv-finished")).to_be_visible(timeout=30 * SECONDS)
    asked: list[str] = []

    def answer(*, yes: bool) -> None:
        page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept() if yes else dialog.dismiss()))
        page.click("#run-remove")

    answer(yes=False)
    page.wait_for_timeout(1500)
    expect(page.locator("#run-list [data-run]")).to_have_count(2)
    answer(yes=True)
    expect(page.locator("#run-list [data-run]")).to_have_count(1, timeout=20 * SECONDS)
    expect(page.locator("#run-list [aria-current]")).to_have_attribute("data-run", kept.path.name)
    assert folder.path.name in asked[0] and "moves to runs/.removed" in asked[0] and asked[1] == asked[0]
    assert (server.home / "runs" / ".removed" / folder.path.name / "events.jsonl").exists()
    assert (server.home / "outputs" / "house.safetensors").exists()


@pytest.mark.parametrize(
    ("end", "cause", "last"),
    [("crash", "Out of memory", "step 5"), ("exit", "exit code 1", "RuntimeError"), ("die", "SIGKILL", "step")],
)
def test_a_crash_shows_its_cause(server: Server, page: Page, start: Any, end: str, cause: str, last: str) -> None:
    folder = start(steps=10, seconds=0.02, end=end)
    page.goto(f"{server.url}?run={folder.path.name}")
    expect(page.locator("#run-head .rv-pill.rv-failed")).to_be_visible(timeout=30 * SECONDS)
    expect(page.locator("#run-notes .rv-failed")).to_contain_text(cause)
    expect(page.locator("#run-log")).to_contain_text(last)
    assert "inished" not in page.locator("#run-main").inner_text()
