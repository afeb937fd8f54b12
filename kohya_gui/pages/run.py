"""The run tab: everything about one run at a glance, and the list of all runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from kohya_gui import launch, runs
from kohya_gui.pages import run_parts as parts
from kohya_gui.run_view import RunReader, RunView
from kohya_gui.settings import Settings
from trainer.errors import TrainerError
from trainer.run_folder import RunFolder

TAB = "runs"
QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
ASSETS = Path(__file__).resolve().parent.parent / "assets"

_PICK_RUN = """
element.addEventListener("click", (event) => {
  const row = event.target.closest("[data-run]");
  if (row) trigger("click", { run: row.dataset.run });
});
"""
_PICK_SAMPLE = """
element.addEventListener("click", (event) => {
  const sample = event.target.closest("[data-sample]");
  if (sample) trigger("click", { sample: sample.dataset.sample, label: sample.dataset.label });
});
"""
_COPY = """
element.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    // without https or permission there is no clipboard: leave the text selected, ready for Ctrl+C
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Press Ctrl+C";
    return;
  }
  button.textContent = "Copied";
});
"""
_CLOSE = """
const close = () => { props.value = ""; };
element.addEventListener("click", close);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && props.value) close(); });
"""
GO_ON = "Go on"
_CONFIRM_REMOVAL = f"""
(name) => confirm(
  `Take "${{name}}" off the list?\\n\\n` +
  "Its folder with the log and the sample pictures moves to runs/{runs.REMOVED}. " +
  "Models, states to go on from and your own pictures stay where they are."
) ? name : ""
"""
_NAME_IN_ADDRESS = """
(name) => setTimeout(() => {
  // only what is looked at: with another tab in front the address stays as it is
  const address = new URL(location.href);
  if (name && document.querySelector("#run-page")?.offsetParent && address.searchParams.get("run") !== name) {
    address.searchParams.set("run", name);
    history.replaceState(history.state, "", address);
  }
}, 500)
"""

Seen = str
"""What a tab shows, a hash per part as JSON, so that only what changed is sent again. The tab itself keeps it, applied
together with the parts: kept here, it would be wrong for good once two answers overtake each other on their way."""


@dataclass(frozen=True)
class RunPage:
    """The run tab's components, for whoever starts or opens a run.

    A Start handler lists `[tabs, *page.outputs]` as outputs and returns `[gr.Tabs(selected=TAB), *page.show(name)]`,
    where name is the run folder's name.
    """

    reader: RunReader
    selected: gr.Textbox
    seen: gr.Textbox
    components: Mapping[str, Any]

    @property
    def outputs(self) -> list[Any]:
        """What `show` gives values for."""
        return [self.selected, self.seen, *self.components.values()]

    def show(self, run_name: str) -> list[Any]:
        """Values for `outputs` that open a run."""
        return [run_name, *self.changes(run_name, "")]

    def changes(self, run_name: str, seen: Seen) -> list[Any]:
        """Values for `seen` and the components, where one that stands already is skipped."""
        wanted = self._parts(run_name)
        stands = _read_seen(seen)
        hashes = {name: _digest(value) for name, value in wanted.items()}
        updates = [gr.skip() if stands.get(name) == hashes[name] else _update(wanted[name]) for name in self.components]
        return [gr.skip() if hashes == stands else json.dumps(hashes), *updates]

    def _parts(self, run_name: str) -> dict[str, Any]:
        rows = self.reader.rows()
        view = self.reader.view(run_name)
        found: dict[str, Any] = {"runs": parts.run_list(rows, run_name)}
        if view is None:
            empty = dict.fromkeys(("tiles", "chart", "samples", "notes", "log"), "")
            return {**found, "head": parts.EMPTY, **empty, **_buttons(None)}
        now = time.time()
        return {
            **found,
            "head": parts.head(view, now),
            "tiles": parts.tiles(view, now),
            "chart": parts.chart(view),
            "samples": parts.samples(view),
            "notes": parts.notes(view),
            "log": parts.short_log(view),
            **_buttons(view),
        }

    # what happens

    def tick(self, run_name: str, seen: Seen) -> list[Any]:
        """What changed since the last second; a page that shows no run yet opens one that begins to live."""
        if not run_name and (living := self.reader.newest_living()):
            return self.show(living)
        return [gr.skip(), *self.changes(run_name, seen)]

    def load(self, request: gr.Request) -> list[Any]:
        """On opening the page: `?run=NAME`, else the newest living run with its tab, else the newest run at all."""
        asked = str(request.query_params.get("run", ""))
        if self.reader.folder(asked) is not None:
            return [gr.Tabs(selected=TAB), *self.show(asked)]
        living = self.reader.newest_living()
        tab = gr.Tabs(selected=TAB) if living else gr.skip()
        return [tab, *self.show(living or self.reader.newest())]

    def pick(self, event: gr.EventData) -> list[Any]:
        """Open the run that was clicked in the list."""
        return self.show(str(event.run))

    def act(self, action: Callable[[RunFolder], None], run_name: str) -> None:
        """Do something to the shown run; the next tick shows what came of it."""
        folder = self.reader.folder(run_name)
        if folder is not None:
            action(folder)

    def go_on(self, settings: Settings, run_name: str) -> Iterator[dict[Any, Any]]:
        """Start a run that goes on with the shown one, and show it."""
        button = self.components["go_on"]
        view = self.reader.view(run_name)
        if view is None or view.resume_from is None:
            yield {}
            return
        yield {button: gr.update(value="Checking…", interactive=False)}
        try:
            folder = launch.go_on(view.folder, view.resume_from, settings)
        except TrainerError as error:
            yield {button: gr.update(value=GO_ON, interactive=True)}
            raise _refusal(error, said="It did not go on.") from error
        yield dict(zip(self.outputs, self.show(folder.path.name), strict=True))

    def remove(self, run_name: str) -> list[Any]:
        """Take the shown run off the list, when that was confirmed, and show the newest of the others."""
        view = self.reader.view(run_name)
        if view is None or view.is_living:
            return [gr.skip() for _ in self.outputs]
        try:
            runs.remove(view.folder)
        except TrainerError as error:
            raise _refusal(error, said="It stays in the list.") from error
        return self.show(self.reader.newest())

    def full_log(self, run_name: str) -> str:
        view = self.reader.view(run_name)
        return parts.full_log(view) if view else ""

    def enlarge(self, run_name: str, event: gr.EventData) -> str:
        """The clicked sample over the whole page."""
        view = self.reader.view(run_name)
        return parts.large(view, str(event.sample), str(event.label)) if view else ""

    def download(self, run_name: str) -> Any:
        """The last saved model as a file that Gradio may serve: a link to it in Gradio's own private folder."""
        view = self.reader.view(run_name)
        source = Path(view.model.path) if view and view.model else None
        if source is None or not source.is_file():
            raise gr.Error("The file is not there any more.")
        return gr.DownloadButton(value=str(_offered(source, Path(get_upload_folder()))))

    def attach(self, demo: gr.Blocks, tabs: gr.Tabs) -> None:
        """Call once all tabs are laid: on load the page opens `?run=NAME`, else the newest living run."""
        demo.load(self.load, None, [tabs, *self.outputs], queue=False, show_progress="hidden")


def build(settings: Settings) -> RunPage:
    """Lay the run tab; call inside `gr.Tab("Runs", id=TAB)`."""
    page = _lay(RunReader(settings.runs))
    _wire(page, settings)
    return page


def _lay(reader: RunReader) -> RunPage:
    html: dict[str, gr.HTML] = {}
    button: dict[str, Any] = {}
    gr.HTML(f"<style>{(ASSETS / 'run.css').read_text(encoding='utf-8')}</style>", visible="hidden")
    selected = gr.Textbox(visible="hidden", elem_id="run-selected", show_label=False, container=False)
    seen = gr.Textbox(visible="hidden", elem_id="run-seen", show_label=False, container=False)
    with gr.Row(elem_id="run-page", equal_height=False):
        with gr.Column(scale=0, min_width=230, elem_id="run-side"):
            html["runs"] = _html("run-list", _PICK_RUN)
        with gr.Column(scale=1, min_width=560, elem_id="run-main"):
            with gr.Row(elem_id="run-top"):
                html["head"] = _html("run-head")
                with gr.Row(elem_id="run-buttons"):
                    button["sample"] = gr.Button("Sample now", size="sm", min_width=90, elem_id="run-sample")
                    button["save"] = gr.Button("Save now", size="sm", min_width=80, elem_id="run-save")
                    button["stop"] = gr.Button("Stop", size="sm", min_width=80, elem_id="run-stop")
                    button["kill"] = gr.Button(
                        "End it now", size="sm", variant="stop", min_width=90, elem_id="run-kill"
                    )
                    button["go_on"] = gr.Button(GO_ON, size="sm", variant="primary", min_width=80, elem_id="run-go-on")
                    button["remove"] = gr.Button("Remove from the list", size="sm", min_width=140, elem_id="run-remove")
            html["tiles"] = _html("run-tiles")
            with gr.Row(elem_id="run-middle", equal_height=True):
                html["chart"] = _html("run-chart")
                html["samples"] = _html("run-samples", _PICK_SAMPLE)
            with gr.Row(elem_id="run-outcome"):
                html["notes"] = _html("run-notes", _COPY)
                button["download"] = gr.Button("Download", size="sm", min_width=100, elem_id="run-download")
            html["log"] = _html("run-log")
            with gr.Accordion("Full log", open=False, elem_id="run-full-log") as button["fold"]:
                full = _html("run-full")
                again = gr.Button("Read again", size="sm")
    page = RunPage(reader, selected, seen, {**html, **button})
    for trigger in (button["fold"].expand, again.click):
        trigger(page.full_log, selected, full, **QUIET)
    return page


def _html(elem_id: str, script: str | None = None) -> gr.HTML:
    return gr.HTML(elem_id=elem_id, js_on_load=script, apply_default_css=False)


def _wire(page: RunPage, settings: Settings) -> None:
    """Connect the buttons, the list and the clock; nothing here streams, so no tab ever waits for another."""
    here, changed, html = [page.selected, page.seen], page.outputs, page.components
    timer = gr.Timer(1)
    timer.tick(page.tick, here, changed, queue=False, trigger_mode="once", **QUIET)
    actions = {"stop": runs.stop, "kill": runs.kill, "save": runs.save_now, "sample": runs.sample_now}
    for name, action in actions.items():
        html[name].click(partial(page.act, action), page.selected, None, **QUIET)
    html["go_on"].click(partial(page.go_on, settings), page.selected, changed, **{**QUIET, "concurrency_limit": 1})
    html["remove"].click(page.remove, page.selected, changed, js=_CONFIRM_REMOVAL, **QUIET)
    html["runs"].click(page.pick, None, changed, **QUIET)
    # the address names the run, so that a reload or a bookmark finds it
    page.selected.change(None, page.selected, None, js=_NAME_IN_ADDRESS)
    overlay = _html("run-overlay", _CLOSE)
    html["samples"].click(page.enlarge, page.selected, overlay, **QUIET)
    file = gr.DownloadButton(visible="hidden", elem_id="run-file")
    offered = html["download"].click(page.download, page.selected, file, **QUIET)
    offered.success(None, None, None, js="() => { document.querySelector('#run-file')?.click(); }")


def _offered(source: Path, folder: Path) -> Path:
    """A hard link to the file (a copy where that cannot be), in a folder of its own so that it keeps its name."""
    facts = source.stat()
    key = hashlib.sha256(f"{source} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:32]
    target = folder / key / source.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            partial_copy = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, partial_copy)
            partial_copy.replace(target)
    return target


def _buttons(view: RunView | None) -> dict[str, Any]:
    living = view is not None and view.is_living
    stopping = view is not None and view.stop_asked is not None
    training = living and view is not None and view.step is not None and not stopping
    waiting = view.waiting if view is not None else frozenset()
    sample, save = "sample" in waiting, "save" in waiting
    return {
        "sample": {"visible": living, "interactive": training and not sample, "value": _asked("Sample now", sample)},
        "save": {"visible": living, "interactive": training and not save, "value": _asked("Save now", save)},
        "stop": {"visible": living and not stopping},
        "kill": {"visible": living and stopping},
        "go_on": {"visible": view is not None and view.resume_from is not None, "interactive": True, "value": GO_ON},
        "remove": {"visible": view is not None and not living},
        "fold": {"visible": view is not None},
        "download": {"visible": view is not None and view.model is not None},
    }


def _refusal(error: TrainerError, *, said: str) -> gr.Error:
    """Every problem in a box over the page, which reads HTML."""
    text = "<br>".join([f"<b>{escape(said)}</b>", *(escape(str(problem)) for problem in error.problems)])
    return gr.Error(text, duration=None, print_exception=False)


def _asked(text: str, is_waiting: bool) -> str:
    """A button says that its wish was heard and comes after the step."""
    return f"{text} …" if is_waiting else text


def _read_seen(seen: Seen) -> dict[str, Any]:
    try:
        stands = json.loads(seen) if seen else {}
    except json.JSONDecodeError:
        return {}
    return stands if isinstance(stands, dict) else {}


def _digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


def _update(value: Any) -> Any:
    return gr.update(**value) if isinstance(value, dict) else value
