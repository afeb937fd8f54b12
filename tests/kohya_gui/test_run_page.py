"""What the run tab says: every state in words, nothing of the run's own text as HTML, only changes sent."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from kohya_gui.pages import run, run_parts
from kohya_gui.run_view import RunReader, RunView
from kohya_gui.settings import Settings
from trainer import events as ev
from trainer import host
from trainer.events import Events
from trainer.run_folder import ENDED, Job, RunFolder, State, Status

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'"


class Tags(HTMLParser):
    """The tags and text of a piece of HTML, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def make_run(
    root: Path, *events: ev.Event, state: State = "running", name: str = "house", console: str = "", cause: str = ""
) -> RunFolder:
    folder = RunFolder.create(root, name)
    folder.samples.mkdir()
    for number in range(2):
        Image.new("RGB", (300, 200), (200, 80 * number, 90)).save(folder.samples / f"{number}.png")
    writer = Events(folder.events_file)
    for event in events:
        writer.emit(event)
    folder.console_log.write_text(console)
    ended = time.time() if state in ENDED else None
    me = os.getpid()
    status = Status(state, me, host.process_started(me) or 0, begun=time.time() - 90, ended=ended, cause=cause)
    folder.write_status(status)
    return folder


START = ev.Start("train_network", "house", 100, 10, 10, 0, 12, "cpu")
STEP = ev.Step(40, 4, 0.08, 0.09, {"unet": 1e-4, "text_encoder": 5e-5}, 0.4, 0.42, 512.0)
MODEL = ev.Checkpoint(40, "model", "/out/house-step00000040.safetensors", 21_000_000)


@pytest.fixture
def page(tmp_path: Path) -> run.RunPage:
    with gr.Blocks() as demo, gr.Tabs() as tabs, gr.Tab("Runs", id=run.TAB):
        page = run.build(Settings.of(tmp_path))
        page.attach(demo, tabs)
    return page


@pytest.fixture
def show(page: run.RunPage) -> Callable[[RunFolder], dict[str, Any]]:
    """What the tab would hold for a run, by the name of the part."""

    def shown(folder: RunFolder) -> dict[str, Any]:
        return dict(zip(page.components, page.show(folder.path.name)[2:], strict=True))

    return shown


def view_of(folder: RunFolder) -> RunView:
    view = RunReader(folder.path.parent).view(folder.path.name)
    assert view is not None
    return view


def test_a_living_run_at_one_glance(page: run.RunPage, show: Any) -> None:
    samples = [ev.Sample(0, 0, "samples/0.png", "a house", 1), ev.Sample(40, 0, "samples/1.png", "a house", 1)]
    measured = ev.Validation(30, 3, 0.1234, 5)
    folder = make_run(page.reader.root, START, samples[0], measured, STEP, samples[1], MODEL, console="one\ntwo\n")
    parts = show(folder)
    head = Tags(parts["head"]).words
    assert "Running" in head and "house" in head and "training" in head and "40/100" in head
    tiles = Tags(parts["tiles"]).words
    for said in ("40", "of 100", "4", "of 10", "0.42", "median 0.42", "512 MB", "0.0800", "0.1234", "after step 30"):
        assert said in tiles
    assert "<svg" in parts["chart"]
    assert parts["samples"].count("data:image/jpeg;base64,") == 2
    assert "before" in parts["samples"] and "step 40" in parts["samples"]
    assert MODEL.path in parts["notes"] and "21.0 MB" in parts["notes"]
    assert "two" in parts["log"]
    assert parts["stop"]["visible"] and not parts["kill"]["visible"] and parts["download"]["visible"]


def test_stop_turns_into_end_it_now(page: run.RunPage, show: Any) -> None:
    folder = make_run(page.reader.root, START, STEP)
    page.act(run.runs.stop, folder.path.name)
    assert folder.asked("stop")
    parts = show(folder)
    assert "Stopping" in parts["head"] and "go on later" in parts["notes"] and "Stopping" in parts["runs"]
    assert parts["kill"]["visible"] and not parts["stop"]["visible"]


def test_a_finished_run_says_how_to_use_it(page: run.RunPage, show: Any) -> None:
    end = ev.Finished(100, "/out/my house.safetensors", 185.0)
    folder = make_run(page.reader.root, START, STEP, end, state="finished")
    folder.dataset_file.write_text('[[datasets]]\n[[datasets.subsets]]\nclass_tokens = "sks house"\n')
    notes = Tags(show(folder)["notes"]).words
    for said in ("Finished in 3:05", "/out/my house.safetensors", "<lora:my house:1>", "sks house"):
        assert said in notes
    # the time since the supervisor began is another one, and confuses beside it
    assert "after 3:05" in Tags(show(folder)["head"]).words


@pytest.mark.parametrize(("task", "said"), [("train_textual_inversion", "In a prompthouse"), ("train_db", "")])
def test_a_finished_run_of_another_task_names_no_lora(page: run.RunPage, show: Any, task: str, said: str) -> None:
    end = ev.Finished(100, "/out/house.safetensors", 185.0)
    folder = make_run(page.reader.root, dataclasses.replace(START, task=task), end, state="finished")
    notes = Tags(show(folder)["notes"]).words
    assert "<lora:" not in notes and said in notes


def test_a_stopped_run_names_where_it_goes_on(page: run.RunPage, show: Any) -> None:
    folder = make_run(page.reader.root, START, STEP, ev.Stopped(40, "/out/house-state"), state="stopped")
    notes = Tags(show(folder)["notes"]).words
    assert "Stopped after step 40" in notes and "/out/house-state" in notes
    # a run from the command line, whose paths may not be whole, is gone on with there
    assert "Go on" not in notes and not show(folder)["go_on"]["visible"]


def test_a_run_that_can_go_on_has_the_button(page: run.RunPage, show: Any, tmp_path: Path) -> None:
    state = tmp_path / "house-step00000040-state"
    state.mkdir()
    events = [ev.Checkpoint(40, "state", str(state), 1000), ev.Stopped(40, str(state))]
    folder = make_run(page.reader.root, START, STEP, *events, state="stopped")
    folder.write_job(Job(("x",), "."))
    assert "Press Go on" in Tags(show(folder)["notes"]).words
    assert show(folder)["go_on"]["visible"] and show(folder)["remove"]["visible"]
    living = make_run(page.reader.root, START, STEP, name="other")
    assert not show(living)["go_on"]["visible"] and not show(living)["remove"]["visible"]


def test_a_problem_on_going_on_is_said_and_the_button_comes_back(page: run.RunPage, tmp_path: Path) -> None:
    state = tmp_path / "house-state"
    state.mkdir()
    folder = make_run(page.reader.root, ev.Checkpoint(40, "state", str(state), 1), state="stopped")
    folder.write_job(Job(("x",), "."))
    folder.config_file.write_text(f'output_name = "<b>"\nseed = "{EVIL[:8]}"\n')
    answers = page.go_on(Settings.of(tmp_path), folder.path.name)
    button = page.components["go_on"]
    assert next(answers)[button]["interactive"] is False
    assert next(answers)[button]["interactive"] is True
    with pytest.raises(gr.Error) as error:
        next(answers)
    assert "seed: should be" in error.value.message and "<script" not in error.value.message
    assert not list(page.reader.root.glob("*-b*"))


def test_removing_shows_the_newest_of_the_others(page: run.RunPage) -> None:
    old = make_run(page.reader.root, START, state="finished", name="a")
    ended = make_run(page.reader.root, START, state="stopped", name="b")
    living = make_run(page.reader.root, START, name="c")
    for kept in ("", living.path.name, "no such run"):
        assert page.remove(kept) == [gr.skip()] * len(page.outputs)
    assert page.remove(ended.path.name)[0] == living.path.name
    assert {row.name for row in page.reader.rows()} == {old.path.name, living.path.name}
    assert (page.reader.root / ".removed" / ended.path.name / "status.json").exists()


@pytest.mark.parametrize("state", ["failed", "killed", "died"])
def test_a_run_that_ended_badly_never_reads_as_complete(page: run.RunPage, show: Any, state: State) -> None:
    error = [ev.Error("out of memory: 3 GB were wanted")] if state == "failed" else []
    folder = make_run(
        page.reader.root, START, STEP, MODEL, *error, state=state, cause="signal 9", console="last words\n"
    )
    parts = show(folder)
    text = Tags("".join(v for v in parts.values() if isinstance(v, str))).words
    assert ("Out of memory: 3 GB were wanted." if error else "Signal 9.") in text
    assert "last words" in text and "40.00%" in parts["head"]
    assert "inished" not in text and "omplete" not in text and "<lora:" not in text
    assert not parts["stop"]["visible"] and not parts["save"]["visible"]


def test_every_problem_of_a_refused_configuration_is_listed(page: run.RunPage, show: Any) -> None:
    problems = [{"option": "seed", "message": "is bad"}, {"option": "resolution", "message": "is worse"}]
    folder = make_run(page.reader.root, ev.Error("seed: is bad\nresolution: is worse", problems), state="failed")
    notes = show(folder)["notes"]
    assert Tags(notes).tags.count("li") == 2 and "2 things stand in the way" in notes
    assert "Not started" in Tags(notes).words and "Not started" in show(folder)["head"]
    assert "Not started" in show(folder)["runs"] and "ailed" not in Tags(show(folder)["runs"]).words


@pytest.mark.parametrize(("silence", "seconds", "warned"), [(50, 0.5, False), (90, 0.5, True), (90, 10.0, False)])
def test_only_a_long_silence_is_warned_of(tmp_path: Path, silence: int, seconds: float, warned: bool) -> None:
    step = ev.Step(40, 4, 0.08, 0.09, {}, 0.4, seconds, 512.0)
    view = view_of(make_run(tmp_path / "runs", START, step, ev.Phase("sampling", 0, 3)))
    assert ("last sign" in run_parts.head(view, view.last_sign + silence)) == warned


@pytest.mark.parametrize("state", ["running", "failed", "finished", "stopped"])
def test_nothing_a_run_or_a_person_wrote_is_html(page: run.RunPage, show: Any, state: State) -> None:
    folder = make_run(
        page.reader.root,
        ev.Phase(EVIL, 1, 2),
        ev.Start("train_network", EVIL, 100, 10, 10, 0, 12, EVIL),
        ev.Sample(0, 0, "samples/0.png", EVIL, 1),
        ev.Sample(2, 1, f"samples/{EVIL}.png", EVIL, 1),
        STEP,
        ev.Warning(EVIL, EVIL),
        ev.Warning(EVIL + "2"),
        ev.Checkpoint(1, "model", EVIL, 10),
        ev.Phase(EVIL, 1, 2),
        {"failed": ev.Error(EVIL), "stopped": ev.Stopped(1, EVIL), "finished": ev.Finished(1, EVIL, 1.0)}.get(
            state, STEP
        ),
        state=state,
        name="a & <b>",
        console=EVIL,
        cause=EVIL,
    )
    folder.dataset_file.write_text(f"[[datasets]]\n[[datasets.subsets]]\nclass_tokens = '''{EVIL} '''\n")
    html = [value for value in show(folder).values() if isinstance(value, str)]
    view = view_of(folder)
    html += [run_parts.full_log(view), run_parts.large(view, "samples/0.png", EVIL)]
    seen = Tags("".join(html))
    assert "script" not in seen.tags and not seen.handlers
    assert seen.tags.count("img") == 2
    assert seen.words.count("<script>") >= 5


@pytest.mark.parametrize(
    "path", ["../../secret.png", "/etc/passwd", "samples/../../secret.png", "config.toml", "samples"]
)
def test_only_pictures_inside_the_run_folder_are_shown(tmp_path: Path, path: str) -> None:
    folder = make_run(tmp_path / "runs")
    folder.config_file.write_text("secret = 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    assert run_parts.picture(folder.path, path, 256) == ""


def test_a_link_out_of_the_run_folder_is_not_followed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder.samples / "link.png").symlink_to(tmp_path / "secret.png")
    assert run_parts.picture(folder.path, "samples/link.png", 256) == ""
    assert run_parts.picture(folder.path, "samples/0.png", 256).startswith("data:image/jpeg;base64,")


def test_only_what_changed_is_sent(page: run.RunPage) -> None:
    folder = make_run(page.reader.root, START, STEP, state="finished", console="one\n")
    name = folder.path.name
    seen = page.show(name)[1]
    assert page.tick(name, seen) == [gr.skip()] * len(page.outputs)
    folder.console_log.write_text("one\ntwo\n")
    changed = dict(zip(page.outputs, page.tick(name, seen), strict=True))
    sent = [part for part, value in changed.items() if value != gr.skip()]
    assert sent == [page.seen, page.components["log"]]


@pytest.mark.parametrize("seen", ["", "{", "[1]", "null", '{"head": 3, "other": "x"}'])
def test_whatever_a_tab_says_it_shows_it_gets_the_rest(page: run.RunPage, seen: str) -> None:
    folder = make_run(page.reader.root, START, STEP, state="finished")
    assert gr.skip() not in page.tick(folder.path.name, seen)[1:]


def test_an_empty_page_waits_and_then_shows_what_begins_to_live(page: run.RunPage) -> None:
    _, seen, *_ = page.show("")
    assert page.tick("", seen) == [gr.skip()] * len(page.outputs)
    folder = make_run(page.reader.root, START)
    assert page.tick("", seen)[0] == folder.path.name


class Asked:
    """The part of a request that is read on loading."""

    def __init__(self, **query: str) -> None:
        self.query_params = query


def test_opening_the_page_finds_the_run(page: run.RunPage) -> None:
    def opened(**query: str) -> tuple[bool, str]:
        tab, name, *_ = page.load(Asked(**query))  # type: ignore[arg-type]
        return isinstance(tab, gr.Tabs), name

    assert opened() == (False, "")
    old = make_run(page.reader.root, START, state="finished", name="a").path.name
    assert opened() == (False, old)
    living = make_run(page.reader.root, START, name="b").path.name
    make_run(page.reader.root, START, state="failed", name="c")
    assert opened() == (True, living)
    assert opened(run=old) == (True, old)
    assert opened(run="../../etc") == (True, living)


def test_the_offered_file_is_a_link_that_keeps_its_name(tmp_path: Path) -> None:
    source = tmp_path / "my model.safetensors"
    source.write_bytes(b"weights")
    target = run._offered(source, tmp_path / "private")
    assert target.name == source.name and target.read_bytes() == b"weights"
    assert target.stat().st_ino == source.stat().st_ino
    assert run._offered(source, tmp_path / "private") == target


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.9, "59 s"), (60, "1:00"), (3725, "1:02:05"), (-3, "0 s")]
)
def test_clock(seconds: float, said: str) -> None:
    assert run_parts.clock(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2, "5 s"), (41, "40 s"), (100, "2 min"), (3600, "1 h"), (7800, "2 h 10 min"), (200_000, "2 days")],
)
def test_about(seconds: float, said: str) -> None:
    assert run_parts.about(seconds) == said


@pytest.mark.parametrize(("num_bytes", "said"), [(730_000, "730 kB"), (18_400_000, "18.4 MB"), (4.27e9, "4.27 GB")])
def test_size(num_bytes: float, said: str) -> None:
    assert run_parts.size(num_bytes) == said
