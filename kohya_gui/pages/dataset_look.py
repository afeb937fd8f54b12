"""The Check part of the Dataset tab: the report of the trainer's own command, thumbnails, and one picture in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from kohya_gui import dataset_preview, pictures, report_views, tokens
from kohya_gui import dataset_views as views
from kohya_gui.dataset_report import Cancelled, Look, Picture, Report
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.dataset_caption import CaptionPart
from kohya_gui.pages.dataset_exclude import ExcludePart
from kohya_gui.pages.dataset_parts import LIVE, Shared, digest, html, read_view, session, write_view
from kohya_gui.report_views import View
from trainer.errors import TrainerError

STALE = "The data set was changed since these pictures were checked."
INVITATION = (
    '<p class="ds-invite">Every picture is opened once and the plan of the training is made: sizes, crops, captions, '
    "and what is wrong with any of them. Nothing is changed.</p>"
)


class LookPart:
    """Button and progress, tiles, histogram, warnings, the grid, and the picture that was clicked."""

    def lay(self) -> None:
        self.caption, self.exclude = CaptionPart(), ExcludePart()
        with gr.Row(elem_id="ds-look-row"):
            self.button = gr.Button(
                "Check the pictures", variant="primary", scale=0, min_width=190, elem_id="ds-look", interactive=False
            )
            self.cancel = gr.Button("Cancel", visible=False, scale=0, min_width=100, elem_id="ds-look-cancel")
            self.progress = gr.HTML(INVITATION, elem_id="ds-look-progress", elem_classes="note")
        self.summary = html("ds-summary")
        with gr.Row(visible=False, elem_id="ds-overview") as self.overview:
            with gr.Column(elem_classes="section", min_width=400):
                self.histogram = html("ds-histogram")
            with gr.Column(elem_classes="section", min_width=400):
                self.warnings = html("ds-warnings")
        self.exclude.lay()
        with gr.Row(visible=False, equal_height=False, elem_id="ds-pictures") as self.pictures:
            with gr.Column(scale=3, min_width=460):
                self.grid = html("ds-pages")
            with gr.Column(scale=2, min_width=340, elem_classes="section", elem_id="ds-detail-column"):
                self.detail = html("ds-detail", value='<p class="ds-empty">Click a picture to see all about it.</p>')
                self.caption.lay()
                self.draws = html("ds-draws")

    def attach(self, shared: Shared) -> None:
        """Wire the part."""
        self.shared = shared
        self.shown: list[Any] = [shared.key, shared.looked, shared.view, self.summary, self.overview, self.histogram]
        self.shown += [self.warnings, self.pictures, self.grid, *self.exclude.outputs]
        asked = [shared.text, shared.base, shared.view]
        self.button.click(self.look, asked, [self.button, self.cancel, self.progress, *self.shown], **QUIET)
        self.cancel.click(self.stop, None, None, **QUIET)
        self.acted: list[Any] = [shared.view, self.warnings, self.grid, *self.exclude.outputs]
        self.acted += [self.detail, self.draws, *self.caption.outputs]
        for part in (self.warnings, self.grid, self.detail, self.exclude.note):
            part.click(self.act, [shared.key, shared.view], self.acted, **QUIET)
        self.caption.attach(shared, self.draws)
        self.exclude.attach(shared)
        shared.text.change(
            self.see_stale, [shared.text, shared.looked, shared.key], [self.button, self.progress], **LIVE
        )

    def see_stale(self, text: str, looked: str, key: str) -> list[Any]:
        """Say that what is shown is not what stands in the description any more."""
        can = gr.update(interactive=bool(text.strip()))
        if not key:
            return [can, gr.skip()]
        fresh = looked == digest(text)
        return [can, views.good("") if fresh else f'<span class="warn" role="status">{STALE}</span>']

    def look(self, text: str, base: str, view: str, request: gr.Request) -> Iterator[list[Any]]:
        """Run the report as a process of its own and show it."""
        skip = [gr.skip() for _ in self.shown]
        wait, ready = gr.update(interactive=False), gr.update(interactive=True)
        yield [wait, gr.update(visible=True), views.good("Starting…"), *skip]
        hide = gr.update(visible=False)
        key = ""
        try:
            for now in self.shared.looks.run(text, self.shared.base_of(base), session(request)):
                if isinstance(now, Look):
                    yield [wait, gr.skip(), report_views.progress(now), *skip]
                else:
                    key = now
            report = self.shared.looks.report(key)
            assert report is not None
        except Cancelled:
            yield [ready, hide, views.good("Cancelled; nothing was changed."), *skip]
            return
        except TrainerError as error:
            yield [ready, hide, views.bad(str(error)), *skip]
            return
        excluded = read_view(view).excluded & {str(p.path) for p in report.pictures}
        yield [ready, hide, views.good(_said(report)), key, digest(text), *self._show(report, View(excluded=excluded))]

    def stop(self, request: gr.Request) -> None:
        """Cancel was pressed."""
        self.shared.looks.cancel(session(request))

    def _show(self, report: Report, view: View) -> list[Any]:
        """The shared view and everything that shows the report."""
        has_pictures = bool(report.pictures)
        seen = has_pictures or bool(report.warnings)
        return [
            write_view(view),
            report_views.summary(report),
            gr.update(visible=seen),
            report_views.histogram(report),
            report_views.warnings(report, view),
            gr.update(visible=has_pictures),
            report_views.grid(report, view),
            *self.exclude.show(report, view),
        ]

    def act(self, key: str, text: str, event: gr.EventData) -> list[Any]:
        """A click on a picture, a page, a way to filter, or a warning's button."""
        report, view = self._report(key), read_view(text)
        if report is None:
            return [gr.skip() for _ in self.acted]
        act, value = str(event.act), str(event.value)
        if act in ("open", "caption"):
            return self._open(report, view, key, value)
        if act == "mend":
            return self._mend(report, view, value)
        view = _changed(view, act, value)
        shown = [write_view(view), report_views.warnings(report, view), report_views.grid(report, view)]
        picture = report.picture(view.chosen)
        detail = report_views.detail(report, picture, view) if picture is not None else gr.skip()
        rest = [gr.skip() for _ in range(1 + len(self.caption.outputs))]
        return [*shown, *self.exclude.show(report, view), detail, *rest]

    def _open(self, report: Report, view: View, key: str, value: str) -> list[Any]:
        picture = report.picture(int(value)) if value.isdecimal() else None
        if picture is None:
            return [gr.skip() for _ in self.acted]
        view = replace(view, chosen=picture.number, mending="")
        unchanged = [gr.skip() for _ in range(2 + len(self.exclude.outputs))]
        detail = [report_views.detail(report, picture, view), self._draws(report, picture, key)]
        return [write_view(view), *unchanged, *detail, *self.caption.open(report, picture)]

    def _mend(self, report: Report, view: View, path: str) -> list[Any]:
        """Open a caption file that cannot be used."""
        unusable = report.unusable_caption(path)
        if unusable is None:
            return [gr.skip() for _ in self.acted]
        unchanged = [gr.skip() for _ in range(2 + len(self.exclude.outputs))]
        shown = f"<h3>{pictures.escaped(unusable.path.name)}</h3>"
        opened = self.caption.open(report, unusable)
        return [write_view(replace(view, chosen=-1, mending=path)), *unchanged, shown, "", *opened]

    def _draws(self, report: Report, picture: Picture, key: str) -> str:
        try:
            found = dataset_preview.draws(self.shared.looks.draft(key), report, picture)
        except (TrainerError, OSError, IndexError) as error:
            return views.bad(f"the captions cannot be drawn: {error}")
        return report_views.draws(found, tokens.LIMIT)

    def _report(self, key: str) -> Report | None:
        try:
            return self.shared.looks.report(key)
        except TrainerError:
            return None


def _said(report: Report) -> str:
    if report.problems:
        return "The settings cannot be right; no picture was opened."
    bad = sum(warned.kind == "bad_file" for warned in report.warnings)
    if bad:
        return f"{bad} {'thing' if bad == 1 else 'things'} a training would stop at; see below."
    return "Every picture can be read."


def _changed(view: View, act: str, value: str) -> View:
    """What is in sight after a click."""
    if act == "page":
        return replace(view, page=int(value) if value.lstrip("-").isdecimal() else 0)
    if act == "show":
        return replace(view, page=0, shown=value)
    if act == "exclude":
        return replace(view, excluded=view.excluded | {value})
    if act == "include":
        return replace(view, excluded=view.excluded - {value})
    if act == "include-all":
        return replace(view, excluded=frozenset(), shown="all" if view.shown == "excluded" else view.shown)
    return view
