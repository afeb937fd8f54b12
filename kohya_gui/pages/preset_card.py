"""The card beside the form: load a preset with what it changes, save the form as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from kohya_gui import presets, sentences
from kohya_gui.form import Form
from kohya_gui.pages.browser import QUIET
from kohya_gui.settings import Settings
from trainer.config import RunConfig
from trainer.errors import ConfigError, TrainerError


class PresetCard:
    """Lay it where it belongs, `attach` it when the whole form is drawn."""

    def __init__(self, settings: Settings, config: type[RunConfig], form: Form) -> None:
        self.settings = settings
        self.config = config
        self.form = form
        with gr.Column(elem_classes="section", elem_id="presets"):
            gr.HTML("<h2>Presets</h2>")
            self.note = gr.HTML(elem_classes="note", elem_id="preset-note")
            choices = presets.names(self.settings, self.config.task)
            self.box = gr.Dropdown(
                choices, value=self.settings.example.preset, label="Preset", filterable=False, elem_id="preset-box"
            )
            with gr.Row():
                self.load_button = gr.Button("Load", size="sm", min_width=70, elem_id="preset-load")
                self.upload = gr.UploadButton(
                    "From a file…", file_types=[".json"], size="sm", min_width=110, elem_id="preset-upload"
                )
            self.changes = gr.HTML(elem_classes="changes", elem_id="preset-changes")
            self.name = gr.Textbox(
                label="Save the settings as",
                info="What differs from the defaults, without paths",
                elem_id="preset-name",
                placeholder="a name",
                max_lines=1,
            )
            self.save_button = gr.Button("Save preset", size="sm", elem_id="preset-save")
            self.saved = gr.HTML(elem_classes="note", elem_id="preset-saved")

    def attach(self) -> None:
        """Wire the buttons."""
        form = self.form.inputs()
        shown = [*self.form.components.values(), self.note, self.changes]
        self.load_button.click(self.load, {*form, self.box}, shown, **QUIET)
        self.upload.upload(self.load_file, {*form, self.upload}, shown, **QUIET)
        self.save_button.click(self.save, {*form, self.name}, [self.saved, self.box], **QUIET)

    @property
    def outputs(self) -> list[Component]:
        """What `begun` updates."""
        return [self.note, self.changes, self.box]

    def begun(self, loaded: presets.Loaded, name: str) -> dict[Component, Any]:
        """The card after the page started from a preset."""
        return {
            self.note: sentences.preset_note(loaded.preset),
            self.changes: sentences.problems_list(loaded.problems),
            self.box: gr.update(choices=presets.names(self.settings, self.config.task), value=name),
        }

    def _plain(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        return {name: sourced.value for name, sourced in self.form.read(values).items()}

    def load(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """A preset of the list into the form."""
        try:
            loaded = presets.load(self.settings, self.config, str(values[self.box]))
        except ConfigError as error:
            return {self.changes: sentences.problems_list(error.problems)}
        return self._put(loaded, values)

    def load_file(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """A preset from a person's own file into the form."""
        try:
            loaded = presets.load_file(self.config, Path(str(values[self.upload])))
        except ConfigError as error:
            return {self.changes: sentences.problems_list(error.problems)}
        return self._put(loaded, values)

    def _put(self, loaded: presets.Loaded, values: Mapping[Component, Any]) -> dict[Component, Any]:
        before = self._plain(values)
        after = presets.patched(self.config, before, loaded.values)
        differences = presets.differences(list(self.form.specs.values()), before, after)
        return {
            **self.form.show(after),
            self.note: sentences.preset_note(loaded.preset),
            self.changes: sentences.changes(differences) + sentences.problems_list(loaded.problems),
        }

    def save(self, values: Mapping[Component, Any]) -> list[Any]:
        """Save the form as the person's own preset; an existing one of that name is said to be replaced."""
        name = str(values[self.name] or "").strip()
        replaced = presets.exists(self.settings, self.config, name)
        try:
            path = presets.save(self.settings, self.config, name, self._plain(values))
        except TrainerError as error:
            return [sentences.problems_list(error.problems), gr.skip()]
        choices = presets.names(self.settings, self.config.task)
        return [sentences.saved(path, replaced=replaced), gr.update(choices=choices, value=f"{presets.USER}{name}")]
