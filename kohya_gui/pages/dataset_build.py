"""The Folders part of the Dataset tab: the data set as a list of folders, their settings, and the file itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from kohya_gui import dataset_toml, datasets, sentences
from kohya_gui import dataset_views as views
from kohya_gui.form import Form
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.dataset_parts import Shared, hidden, html, place_of
from trainer.data.config import DatasetTableOptions, SubsetOptions
from trainer.errors import Problem, TrainerError
from trainer.schema import specs_of, validate

FOLDER = ("image_dir", "num_repeats", "class_tokens", "caption_extension", "is_reg")
TABLE = ("resolution", "batch_size", "enable_bucket")
NEW = "new"


class BuildPart:
    """A list of folders with an editor, the data set's own settings, and its text."""

    def lay(self, text: gr.Textbox) -> None:
        """text: the data set's TOML, shown here for editing by hand."""
        own = {spec.name for spec in specs_of(SubsetOptions)}
        tables = [spec for spec in specs_of(DatasetTableOptions) if spec.name not in own]
        self.folder = Form(specs_of(SubsetOptions), prefix="ds")
        self.dataset = Form(tables, prefix="dsd")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=520, elem_classes="section"):
                gr.HTML("<h2>Folders <small>each is used pictures × repeats times an epoch</small></h2>")
                self.table = html("ds-table")
                with gr.Row():
                    self.add = gr.Button("Add a folder", size="sm", scale=0, min_width=120, elem_id="ds-add")
                    self.add_reg = gr.Button(
                        "Add regularisation pictures", size="sm", scale=0, min_width=200, elem_id="ds-add-reg"
                    )
                self.problems = gr.HTML(elem_classes="note", elem_id="ds-build-problems")
                self._lay_editor()
                gr.HTML("<h2>All folders <small>size and batch; a change counts at once</small></h2>")
                with gr.Row(elem_classes="option-grid", elem_id="ds-dataset"):
                    for name in [*TABLE, *(n for n in self.dataset.specs if n not in TABLE)]:
                        self.dataset.draw(name)
            with gr.Column(scale=2, min_width=380, elem_classes="section"):
                gr.HTML("<h2>The file <small>as it will be saved; yours to edit, comments are kept</small></h2>")
                text.render()

    def _lay_editor(self) -> None:
        self.place = hidden("ds-place")
        with gr.Column(visible=False, elem_id="ds-editor") as self.editor:
            self.title = gr.HTML()
            with gr.Row(elem_classes="option-grid"):
                for name in FOLDER:
                    self.folder.draw(name)
            self.more = gr.Checkbox(False, label="Show more options of this folder", container=False, elem_id="ds-more")
            with gr.Column(visible=False, elem_id="ds-more-options") as self.rest:
                self.folder.draw_rest()
            with gr.Row():
                self.put = gr.Button("Put it in", size="sm", variant="primary", min_width=120, elem_id="ds-put")
                self.close = gr.Button("Close", size="sm", min_width=90, elem_id="ds-close")

    def attach(self, shared: Shared) -> None:
        """Wire the part."""
        self.shared = shared
        form = list(self.folder.components.values())
        self.opened: list[Any] = [self.editor, self.title, self.place, self.put, self.problems, *form]
        self.table.click(self.act, [shared.text, shared.base], [shared.text, *self.opened], **QUIET)
        self.add.click(lambda: self._open(NEW, {}, {}), None, self.opened, **QUIET)
        self.add_reg.click(lambda: self._open(NEW, {"is_reg": True}, {}), None, self.opened, **QUIET)
        self.close.click(lambda: gr.update(visible=False), None, self.editor, **QUIET)
        self.more.change(lambda on: gr.update(visible=on), self.more, self.rest, **QUIET)
        asked = {*self.folder.inputs(), shared.text, self.place}
        self.put.click(self.put_in, asked, [shared.text, self.problems, self.editor], **QUIET)
        tables = {*self.dataset.inputs(), shared.text}
        for component in self.dataset.components.values():
            events = [component.input] if isinstance(component, gr.Checkbox) else [component.blur, component.submit]
            gr.on(events, self.set_dataset, tables, [shared.text, self.problems], **QUIET)
        gr.on([shared.text.blur], self.see_dataset, shared.text, list(self.dataset.components.values()), **QUIET)
        shared.made.change(self.see_dataset, shared.text, list(self.dataset.components.values()), **QUIET)

    # one folder

    def act(self, text: str, base: str, event: gr.EventData) -> list[Any]:
        """Change or Remove of a line."""
        place = place_of(str(event.value))
        try:
            if str(event.act) == "remove":
                closed = [gr.update(visible=False), *[gr.skip() for _ in self.opened[1:]]]
                return [dataset_toml.remove_subset(text, place), *closed]
            subset = next(s for s in dataset_toml.subsets(text) if s.place == place)
        except (TrainerError, StopIteration):
            return [gr.skip() for _ in range(1 + len(self.opened))]
        return [gr.skip(), *self._open(str(event.value), subset.own, subset.all)]

    def _open(self, place: str, own: Mapping[str, Any], everything: Mapping[str, Any]) -> list[Any]:
        """The editor for a folder. own: what stands in its table; everything: what counts for it."""
        title = "A new folder" if place == NEW else f"Folder {escaped_name(own)}"
        shown = self.folder.show({**{n: v for n, v in everything.items() if _is_switch(self.folder, n)}, **own})
        button = "Add it" if place == NEW else "Put it in"
        updates = [shown[component] for component in self.folder.components.values()]
        return [gr.update(visible=True), f"<h3>{title}</h3>", place, gr.update(value=button), "", *updates]

    def put_in(self, values: Mapping[Component, Any]) -> list[Any]:
        """Write the editor's fields into the folder's table: only what was changed."""
        text = str(values[self.shared.text])
        typed = {name: sourced.value for name, sourced in self.folder.read(values).items()}
        problems = _wrong(SubsetOptions, typed)
        if "image_dir" not in typed and "metadata_file" not in typed:
            problems.append(Problem("image_dir", "no folder is chosen", remedy="Type a path, or Browse"))
        if problems:
            return [gr.skip(), sentences.problems_list(problems), gr.skip()]
        place = place_of(str(values[self.place]))
        try:
            if place:
                subset = next(s for s in dataset_toml.subsets(text) if s.place == place)
                changes = _changes(self.folder, values, typed, subset.own, subset.all)
                text = dataset_toml.change(text, place, changes)
            else:
                text = dataset_toml.add_subset(text, self._with_extension(typed))
        except (TrainerError, StopIteration) as error:
            return [gr.skip(), views.bad(str(error) or "this folder is no longer in the data set"), gr.skip()]
        return [text, "", gr.update(visible=False)]

    def _with_extension(self, typed: Mapping[str, Any]) -> dict[str, Any]:
        """A new folder's table; the ending of its captions is read from the folder when none is typed."""
        if "caption_extension" in typed or "image_dir" not in typed:
            return {name: _plain(value) for name, value in typed.items()}
        home = self.shared.settings.home
        found = datasets.look(dataset_toml.resolve(str(typed["image_dir"]), home, home))
        return {**{n: _plain(v) for n, v in typed.items()}, "caption_extension": found.extension}

    # all folders

    def set_dataset(self, values: Mapping[Component, Any]) -> list[Any]:
        """Write a change of the data set's own settings."""
        text = str(values[self.shared.text])
        typed = {n: _sides(n, s.value) for n, s in self.dataset.read(values).items()}
        problems = _wrong(DatasetTableOptions, typed)
        if problems:
            return [gr.skip(), sentences.problems_list(problems)]
        try:
            tables = dataset_toml.read(text)
            for table in tables[:1]:
                text = dataset_toml.change(
                    text, table.place, _changes(self.dataset, values, typed, table.all, table.all)
                )
        except TrainerError as error:
            return [gr.skip(), views.bad(str(error))]
        return [text, ""]

    def see_dataset(self, text: str) -> list[Any]:
        """The settings as the file has them."""
        try:
            tables = dataset_toml.read(text)
        except TrainerError:
            return [gr.skip() for _ in self.dataset.components]
        values = dict(tables[0].all) if tables else {}
        if isinstance(values.get("resolution"), list):
            values["resolution"] = "x".join(map(str, values["resolution"]))
        shown = self.dataset.show(values)
        return [shown[component] for component in self.dataset.components.values()]


def escaped_name(own: Mapping[str, Any]) -> str:
    """The folder's name for a heading."""
    return sentences.escaped(str(own.get("image_dir", "")).replace("\\", "/").rstrip("/").rpartition("/")[2])


def _is_switch(form: Form, name: str) -> bool:
    return name in form.specs and form.specs[name].type is bool


def _changes(
    form: Form,
    values: Mapping[Component, Any],
    typed: Mapping[str, Any],
    own: Mapping[str, Any],
    all_: Mapping[str, Any],
) -> dict[str, Any]:
    """Keys to set or to take out: a switch is written when it differs from what counts, a text when it was changed."""
    changes: dict[str, Any] = {}
    for name, component in form.components.items():
        if _is_switch(form, name):
            if bool(values[component]) != bool(all_.get(name, form.specs[name].default)):
                changes[name] = bool(values[component])
        elif _plain(typed.get(name)) != own.get(name):
            changes[name] = _plain(typed.get(name))
    return changes


def _wrong(owner: Any, typed: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with single values; what is missing is said elsewhere."""
    found: list[Problem] = validate(owner, dict(typed))[1]
    return [p for p in found if p.option in typed]


def _sides(name: str, value: Any) -> Any:
    """ "512x768" and "512,768" as the file has them."""
    if name == "resolution" and isinstance(value, str):
        sides = re.fullmatch(r"\s*(\d+)\s*[x×,]\s*(\d+)\s*", value)
        return [int(sides[1]), int(sides[2])] if sides else value
    return value


def _plain(value: Any) -> Any:
    """A value for the file."""
    return value if value is None or isinstance(value, (bool, int, float, str, list)) else str(value)
