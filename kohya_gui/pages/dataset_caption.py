"""Edit the caption of the picture in sight: old and new are shown, then the file is written, and Undo puts it back."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from kohya_gui import dataset_files, dataset_preview, report_views, tokens
from kohya_gui import dataset_views as views
from kohya_gui.dataset_files import Edit, plain
from kohya_gui.dataset_report import Picture, Report
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.dataset_parts import LIVE, Shared, hidden, read_view
from trainer.data import scan
from trainer.errors import TrainerError


class CaptionPart:
    """A text box, the change it would make, and its buttons."""

    def __init__(self) -> None:
        self.seen = hidden("ds-caption-seen")
        self.edit = hidden("ds-caption-edit")

    def lay(self) -> None:
        with gr.Column(visible=False, elem_id="ds-caption-part") as self.column:
            self.box = gr.Textbox("", label="Caption", lines=2, max_lines=6, elem_id="ds-caption", elem_classes="field")
            self.tokens = gr.HTML(elem_classes="note", elem_id="ds-caption-tokens")
            self.change = gr.HTML(elem_classes="note", elem_id="ds-caption-change")
            with gr.Row():
                self.ask = gr.Button("Show the change", size="sm", min_width=110, elem_id="ds-caption-ask")
                self.write = gr.Button(
                    "Write it", size="sm", variant="primary", visible=False, min_width=80, elem_id="ds-caption-write"
                )
                self.leave = gr.Button("Leave it", size="sm", visible=False, min_width=80, elem_id="ds-caption-leave")
                self.undo = gr.Button("Undo", size="sm", visible=False, min_width=80, elem_id="ds-caption-undo")

    @property
    def outputs(self) -> list[Any]:
        """What `open` gives values for."""
        return [self.column, self.box, self.seen, self.change, self.ask, self.write, self.leave]

    def attach(self, shared: Shared, draws: gr.HTML) -> None:
        """Wire the part."""
        self.shared = shared
        here = [shared.key, shared.view]
        asked = [self.change, self.write, self.leave, self.ask]
        self.box.change(lambda text: _counted(text), self.box, self.tokens, **LIVE)
        self.ask.click(self.show_change, [*here, self.box, self.seen], asked, **QUIET)
        self.leave.click(self.forget, self.seen, [self.box, *asked], **QUIET)
        written = [self.seen, self.edit, self.undo, draws, *asked]
        self.write.click(self.put, [*here, self.box, self.seen], written, **QUIET)
        self.undo.click(self.take_back, [self.edit, self.seen], [self.box, *written], **QUIET)

    def open(self, report: Report, picture: Picture) -> list[Any]:
        """The caption of a picture that was clicked, as it stands in its file now."""
        calm = ["", gr.update(visible=True), gr.update(visible=False), gr.update(visible=False)]
        if picture.caption_source == "metadata":
            said = views.good("This caption stands in a metadata file; it is not edited here.")
            return [gr.update(visible=False), "", "", said, *calm[1:]]
        try:
            now = plain(dataset_files.read_caption(scan.caption_path(picture.path, _extension(report, picture))))
        except TrainerError as error:
            return [gr.update(visible=True), "", json.dumps(None), views.bad(str(error)), *calm[1:]]
        label = "Caption" if now is not None else f"Caption (no file yet: “{picture.caption}” is used)"
        box = gr.update(value=now or "", label=label)
        return [gr.update(visible=True), box, json.dumps(now), *calm]

    def show_change(self, key: str, view: str, text: str, seen: str) -> list[Any]:
        """Old and new, and whether to write it."""
        found = self._picture(key, view)
        if found is None:
            return [gr.skip() for _ in range(4)]
        path = scan.caption_path(found[1].path, _extension(*found))
        old = json.loads(seen) if seen else None
        if old == text:
            return [views.good("Nothing was changed."), *_buttons(asking=False)]
        if not text.strip():
            return [views.bad("an empty caption would stop a training"), *_buttons(asking=False)]
        return [report_views.difference(str(path), old, text), *_buttons(asking=True)]

    def forget(self, seen: str) -> list[Any]:
        """The box as the file is."""
        return [(json.loads(seen) if seen else None) or "", "", *_buttons(asking=False)]

    def put(self, key: str, view: str, text: str, seen: str) -> list[Any]:
        """Write the caption file, if it is still what the person saw."""
        found = self._picture(key, view)
        if found is None:
            return [gr.skip() for _ in range(8)]
        report, picture = found
        try:
            extension = _extension(report, picture)
            expected = json.loads(seen) if seen else None
            edit = dataset_files.write_caption(picture.path, extension, text, expected=expected)
        except TrainerError as error:
            nothing = [gr.skip() for _ in range(4)]
            return [*nothing, views.bad(str(error)), *_buttons(asking=False)]
        said = views.good(f"Written to {edit.path}.")
        draft = self.shared.looks.draft(key)
        drawn = dataset_preview.draws(draft, report, picture, caption=text) if picture.number >= 0 else []
        undo = gr.update(visible=True, value=f"Undo {picture.path.stem}")
        shown = report_views.draws(drawn, tokens.LIMIT)
        return [json.dumps(text), edit.as_json(), undo, shown, said, *_buttons(asking=False)]

    def take_back(self, edit: str, seen: str) -> list[Any]:
        """Undo the last change."""
        try:
            last = Edit(**json.loads(edit))
            dataset_files.undo(last)
        except (TrainerError, ValueError, TypeError) as error:
            return [*[gr.skip() for _ in range(5)], views.bad(str(error)), *_buttons(asking=False)]
        said = views.good(f"{last.path} is as it was.")
        same = json.loads(seen) == plain(last.new) if seen else False
        box, now = (plain(last.old) or "", json.dumps(plain(last.old))) if same else (gr.skip(), gr.skip())
        return [box, now, "", gr.update(visible=False), gr.skip(), said, *_buttons(asking=False)]

    def _picture(self, key: str, view: str) -> tuple[Report, Picture] | None:
        report, seen = self.shared.looks.report(key), read_view(view)
        if report is None:
            return None
        picture = report.unusable_caption(seen.mending) if seen.mending else report.picture(seen.chosen)
        return (report, picture) if picture is not None else None


def _counted(text: str) -> str:
    if not text.strip():
        return ""
    number = tokens.count(text)
    said = f"{number} {'token' if number == 1 else 'tokens'}"
    return f'<span class="warn">{said}: the model reads {tokens.LIMIT}</span>' if number > tokens.LIMIT else said


def _extension(report: Report, picture: Picture) -> str:
    if picture.number < 0:
        return picture.path.suffix
    return str(report.subset_of(picture).get("caption_extension", ".caption"))


def _buttons(*, asking: bool) -> list[Any]:
    """Write, leave, ask."""
    return [gr.update(visible=asking), gr.update(visible=asking), gr.update(visible=not asking)]
