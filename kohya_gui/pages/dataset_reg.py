"""Draw regularisation pictures with the base model: a form for the command make_regularisation, run as a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from kohya_gui import dataset_toml, runs, sentences
from kohya_gui import dataset_views as views
from kohya_gui.form import Form
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.dataset_parts import Shared
from kohya_gui.pages.run import TAB as RUNS_TAB
from kohya_gui.pages.run import RunPage
from kohya_gui.request import MODEL, absolute
from trainer.config import build, specs
from trainer.errors import ConfigError, TrainerError
from trainer.run_folder import RunFolder
from trainer.store import Sourced
from trainer.tasks.make_regularisation import RegularisationConfig

FIELDS = (MODEL, "class_prompt", "reg_count", "output_dir", "seed", "sample_steps", "scale", "negative_prompt")
NAME = "regularisation"


class RegPart:
    """The form, and the button that starts the run."""

    def lay(self) -> None:
        self.form = Form([spec for spec in specs(RegularisationConfig) if spec.name in FIELDS], prefix="dsr")
        with gr.Column(elem_classes="section", elem_id="ds-reg"):
            gr.HTML(
                "<h2>Draw class pictures <small>so that the model does not forget its kind</small>"
                "</h2><p class='note'>The base model draws them by the class alone, in the sizes this data set is "
                "trained in. It is a run of its own: watch and stop it in the tab Runs; started again, it goes on with "
                "the pictures that are missing.</p>"
            )
            with gr.Row(elem_classes="option-grid"):
                for name in FIELDS:
                    self.form.draw(name)
            with gr.Row():
                self.button = gr.Button(
                    "Draw them", variant="primary", size="sm", scale=0, min_width=140, elem_id="ds-reg-start"
                )
                self.add = gr.Button(
                    "Add them to the data set", size="sm", scale=0, min_width=200, elem_id="ds-reg-add"
                )
            self.said = gr.HTML(elem_id="ds-reg-said", elem_classes="note")

    def attach(self, shared: Shared, tabs: gr.Tabs, run_page: RunPage) -> None:
        """Wire the part."""
        self.shared = shared
        self.run_page = run_page
        self.tabs = tabs
        asked = {*self.form.inputs(), shared.text, shared.base}
        self.button.click(self.start, asked, [self.said, tabs, *run_page.outputs], **QUIET)
        self.add.click(self.add_folder, asked, [self.said, shared.text], **QUIET)

    def start(self, values: Mapping[Component, Any]) -> dict[Any, Any]:
        """Write the run's files and start it."""
        settings = self.shared.settings
        typed = self._typed(values)
        text, base = str(values[self.shared.text]), self.shared.base_of(str(values[self.shared.base]))
        try:
            build(RegularisationConfig, typed)  # every wrong value is said before anything is written
            whole = _training_only(dataset_toml.whole_paths(text, base, settings.home))
            folder = RunFolder.create(settings.runs, NAME)
            if dataset_toml.subsets(whole):
                folder.dataset_file.write_text(whole, encoding="utf-8")
                typed["dataset_config"] = Sourced(str(folder.dataset_file), "page")
            config = build(RegularisationConfig, typed)
            folder.config_file.write_text(config.toml(), encoding="utf-8")
            runs.start(folder, task=config.task)
        except ConfigError as error:
            return {self.said: sentences.problems_list(error.problems)}
        except TrainerError as error:
            return {self.said: views.bad(str(error))}
        opened = dict(zip(self.run_page.outputs, self.run_page.show(folder.path.name), strict=True))
        said = views.good(f"The run {folder.path.name} is under way; see the tab Runs.")
        return {self.said: said, self.tabs: gr.Tabs(selected=RUNS_TAB), **opened}

    def add_folder(self, values: Mapping[Component, Any]) -> list[Any]:
        """The folder of drawn pictures as regularisation pictures of this data set."""
        typed = self._typed(values)
        if not {"output_dir", "class_prompt"} <= set(typed):
            return [views.bad("fill in the class prompt and the folder first"), gr.skip()]
        table = {"image_dir": typed["output_dir"].value, "class_tokens": typed["class_prompt"].value}
        table |= {"caption_extension": ".txt", "is_reg": True, "num_repeats": 1}
        try:
            text = dataset_toml.add_subset(str(values[self.shared.text]), table)
        except TrainerError as error:
            return [views.bad(str(error)), gr.skip()]
        return [views.good("Added; see Folders and settings."), text]

    def _typed(self, values: Mapping[Component, Any]) -> dict[str, Sourced]:
        """What was typed, with paths made whole."""
        settings = self.shared.settings
        typed = self.form.read(values)
        for name in (MODEL, "output_dir"):
            if name in typed and typed[name].value:
                typed[name] = Sourced(absolute(str(typed[name].value), settings), typed[name].source)
        return typed


def _training_only(text: str) -> str:
    """The data set without regularisation pictures: those are what is being made."""
    for subset in reversed(dataset_toml.subsets(text)):
        if subset.is_reg:
            text = dataset_toml.remove_subset(text, subset.place)
    return text
