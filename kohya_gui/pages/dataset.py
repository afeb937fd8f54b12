"""The Dataset tab: from a folder of pictures to a checked dataset file that the Train tab uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import dataset_findings, dataset_toml
from kohya_gui import dataset_views as views
from kohya_gui.background import Works
from kohya_gui.dataset_report import Looks
from kohya_gui.pages.browser import QUIET, FolderBrowser
from kohya_gui.pages.dataset_build import BuildPart
from kohya_gui.pages.dataset_layout import LayoutPart
from kohya_gui.pages.dataset_look import LookPart
from kohya_gui.pages.dataset_parts import LIVE, Shared, hidden, html
from kohya_gui.pages.dataset_reg import RegPart
from kohya_gui.pages.dataset_source import SourcePart
from kohya_gui.pages.run import ASSETS, RunPage
from kohya_gui.request import MODEL, path_of
from kohya_gui.settings import Settings
from trainer.errors import DataError, TrainerError

TAB = "dataset"


class DatasetPage:
    """The tab put together from its parts, and the bar with Save and Use this in Train."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        style = (ASSETS / "dataset.css").read_text(encoding="utf-8")
        gr.HTML(f"<style>{style}</style>", visible="hidden")
        self.source, self.look = SourcePart(), LookPart()
        self.build, self.layout, self.reg = BuildPart(), LayoutPart(), RegPart()
        text = gr.Textbox(
            "",
            show_label=False,
            label="The dataset file",
            lines=18,
            max_lines=34,
            elem_id="ds-text",
            container=False,
            interactive=True,
            render=False,
        )
        self.source.lay()
        self.findings = html("ds-findings")
        with gr.Tabs(elem_id="ds-tabs"):
            with gr.Tab("Check"):
                self.look.lay()
            with gr.Tab("Folders and settings"):
                self.build.lay(text)
            with gr.Tab("Class pictures"):
                self.reg.lay()
            with gr.Tab("Training folders"):
                self.layout.lay()
        self._lay_bar()
        names = ("base", "origin", "made", "key", "looked", "view")
        boxes = {name: hidden(f"ds-{name}-kept") for name in names}
        self.shared = Shared(settings=settings, looks=Looks(settings), works=Works(), text=text, **boxes)
        self.browser = FolderBrowser(settings, elem_id="ds-browser")

    def _lay_bar(self) -> None:
        with gr.Row(elem_id="data-bar"):
            self.bar = gr.HTML(views.bar([], 0, is_saved=False, path=""), elem_classes="plan", elem_id="ds-bar")
            self.path = gr.Textbox(
                "",
                placeholder="datasets/my-dog.toml",
                label="Save as",
                show_label=False,
                container=False,
                max_lines=1,
                elem_id="ds-path",
                scale=0,
                min_width=230,
            )
            self.save_button = gr.Button("Save", scale=0, min_width=90, elem_id="ds-save")
            self.replace_button = gr.Button("Replace it", visible=False, scale=0, min_width=110, elem_id="ds-replace")
            self.use_button = gr.Button(
                "Use this in Train", variant="primary", scale=0, min_width=170, elem_id="ds-use"
            )

    def attach(
        self, demo: gr.Blocks, tabs: gr.Tabs, train_tab: str, train_pictures: gr.Textbox, run_page: RunPage
    ) -> None:
        """Wire the tab, once all tabs are laid. train_pictures: the Train tab's box for pictures."""
        shared = self.shared
        self.source.attach(demo, shared, self.path)
        self.look.attach(shared)
        self.build.attach(shared)
        self.layout.attach(shared)
        self.reg.attach(shared, tabs, run_page)
        self._attach_browser()
        seen = [shared.text, shared.base, shared.origin, shared.made, self.build.place]
        refreshed = [self.findings, self.build.table, self.bar]
        shared.text.change(self.refresh, seen, refreshed, **LIVE)
        shared.made.change(self.refresh, seen, refreshed, **LIVE)
        self.findings.click(self.mend, [shared.text, shared.base], shared.text, **QUIET)
        asked = [shared.text, shared.base, self.path, shared.origin]
        saved = [self.bar, self.replace_button, shared.text, shared.base, shared.origin, shared.made]
        self.save_button.click(self.save, asked, saved, **QUIET)
        self.replace_button.click(self.replace, asked, saved, **QUIET)
        self.path.change(lambda: gr.update(visible=False), None, self.replace_button, **QUIET)
        self.use_button.click(
            lambda *values: self.use(train_tab, *values), [*asked, shared.made], [*saved, train_pictures, tabs], **QUIET
        )

    def _attach_browser(self) -> None:
        self.browser.serve("ds-source", self.source.browse, self.source.box, "pictures")
        self.browser.serve("ds-metadata", self.source.browse_metadata, self.source.metadata, "toml")
        for form, prefix in ((self.build.folder, "ds"), (self.reg.form, "dsr")):
            for name, button in form.browse.items():
                wanted = "model" if name == MODEL else "toml" if form.specs[name].widget == "path" else "folder"
                self.browser.serve(f"{prefix}-{name}", button, form.components[name], wanted)  # type: ignore[arg-type]
        self.browser.finish()

    # what stands in the file

    def refresh(self, text: str, base: str, origin: str, made: str, place: str) -> list[Any]:
        """What is wrong with the description, its folders, and the sentence in the bar."""
        if not text.strip():
            return ["", views.table([], ""), views.bar([], 0, is_saved=False, path="")]
        try:
            found = dataset_findings.findings(text, self.shared.base_of(base), self.settings.home)
            entries = self.shared.counted(text, base)
        except TrainerError as error:
            return [f'<div class="ds-finding bad" role="status">{views.bad(str(error))}</div>', gr.skip(), gr.skip()]
        problems = sum(finding.level == "bad" for finding in found)
        is_saved = bool(origin) and text == made
        shown = self.settings.short(Path(origin)) if origin else ""
        bar = views.bar(entries, problems, is_saved=is_saved, path=shown)
        return [views.findings(found), views.table(entries, place), bar]

    def mend(self, text: str, base: str, event: gr.EventData) -> Any:
        """A finding's button."""
        try:
            found = dataset_findings.findings(text, self.shared.base_of(base), self.settings.home)
            fix = next(finding.fix for finding in found if finding.key == str(event.value) and finding.fix)
            return dataset_findings.apply(text, fix)
        except (TrainerError, StopIteration):
            return gr.skip()

    # the bar

    def save(self, text: str, base: str, typed: str, origin: str, *, replace: bool = False) -> list[Any]:
        """Write the file; an existing one is only replaced when it is the one that was opened, or on a second press."""
        try:
            path, text = self._write(text, base, typed, origin, replace=replace)
        except TrainerError as error:
            exists = "exists already" in str(error)
            return [views.bad(str(error)), gr.update(visible=exists), *[gr.skip() for _ in range(4)]]
        said = views.good(f"Saved as {path}.")
        return [said, gr.update(visible=False), text, str(path.parent), str(path), text]

    def replace(self, text: str, base: str, typed: str, origin: str) -> list[Any]:
        """The second press: what stands there is replaced."""
        return self.save(text, base, typed, origin, replace=True)

    def _write(self, text: str, base: str, typed: str, origin: str, *, replace: bool) -> tuple[Path, str]:
        if not text.strip():
            raise DataError("there is nothing to save yet: choose pictures first")
        if not typed.strip():
            raise DataError("the file needs a name", remedy="Write one into the box, as datasets/my-dog.toml")
        path = path_of(typed, self.settings)
        if origin and path != Path(origin):  # relative paths would mean something else from another folder
            text = dataset_toml.whole_paths(text, self.shared.base_of(base), self.settings.home)
        roots = (self.settings.datasets, *self.settings.roots)
        return dataset_toml.save(text, path, roots, replace=replace), text

    def use(self, train_tab: str, text: str, base: str, typed: str, origin: str, made: str) -> list[Any]:
        """Put the saved file into the Train tab; what is not saved yet is saved first."""
        if origin and text == made:
            kept = [gr.skip() for _ in range(6)]
            return [*kept, self.settings.short(Path(origin)), gr.Tabs(selected=train_tab)]
        answer = self.save(text, base, typed, origin)
        if not isinstance(answer[4], str):
            return [*answer, gr.skip(), gr.skip()]
        return [*answer, self.settings.short(Path(answer[4])), gr.Tabs(selected=train_tab)]
