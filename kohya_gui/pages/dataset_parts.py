"""What the parts of the Dataset tab share: the description being made, kept in the browser, and small helpers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import dataset_findings
from kohya_gui.background import Works
from kohya_gui.dataset_findings import Counted
from kohya_gui.dataset_report import Looks
from kohya_gui.pages.browser import QUIET
from kohya_gui.report_views import View
from kohya_gui.settings import Settings
from trainer.errors import TrainerError

LIVE: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
ACT = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  if (button.dataset.act === "open") {
    element.querySelectorAll(".ds-cell.chosen").forEach((cell) => cell.classList.remove("chosen"));
    button.classList.add("chosen");
  }
  if (["open", "caption"].includes(button.dataset.act)) {
    setTimeout(() => document.querySelector("#ds-detail-column")?.scrollIntoView({ block: "nearest" }), 300);
  }
  if (button.dataset.act === "caption") setTimeout(() => document.querySelector("#ds-caption textarea")?.focus(), 900);
  trigger("click", { act: button.dataset.act, value: button.dataset.value });
});
"""


def html(elem_id: str, *, classes: str = "ds-part", value: str = "") -> gr.HTML:
    """A piece of the page whose buttons tell (act, value)."""
    return gr.HTML(value, elem_id=elem_id, elem_classes=classes, js_on_load=ACT, apply_default_css=False)


def hidden(elem_id: str, value: str = "") -> gr.Textbox:
    """A value kept in the open page, not in the server: a restart of the server loses nothing of it."""
    return gr.Textbox(value, visible="hidden", elem_id=elem_id, show_label=False, container=False)


@dataclass(frozen=True)
class Shared:
    """text: the data set's TOML. base: the folder its relative paths count from. origin: the file it was read from or
    saved to last. made: the text as it was then, or as the page made it: what differs is a person's work. key: of the
    last report. looked: hash of the text it was made from. view: what of it is in sight, as JSON."""

    settings: Settings
    looks: Looks
    works: Works
    text: gr.Textbox
    base: gr.Textbox
    origin: gr.Textbox
    made: gr.Textbox
    key: gr.Textbox
    looked: gr.Textbox
    view: gr.Textbox

    def counted(self, text: str, base: str) -> list[Counted]:
        """The folders of a description; nothing while it cannot be read."""
        try:
            return dataset_findings.counted(text, self.base_of(base), self.settings.home)
        except TrainerError:
            return []

    def base_of(self, base: str) -> Path:
        return Path(base) if base else self.settings.home


def read_view(text: str) -> View:
    """What is in sight; the beginning where it cannot be read."""
    try:
        raw = json.loads(text) if text else {}
        excluded = frozenset(map(str, raw.get("excluded", [])))
        shown, mending = str(raw.get("shown", "all")), str(raw.get("mending", ""))
        return View(int(raw.get("page", 0)), shown, int(raw.get("chosen", -1)), excluded, mending)
    except (ValueError, TypeError, AttributeError):
        return View()


def write_view(view: View) -> str:
    """For the hidden box."""
    return json.dumps({**vars(view), "excluded": sorted(view.excluded)})


def digest(text: str) -> str:
    """Tells descriptions apart."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def session(request: gr.Request) -> str:
    """The tab that asks."""
    return str(request.session_hash or "")


def place_of(text: str) -> tuple[int, ...]:
    """ "0.1" -> (0, 1); () for anything else."""
    parts = str(text).split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()
