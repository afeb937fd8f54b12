"""The Train tab: from a model and a folder of pictures to a started LoRA training, most options out of the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from kohya_gui import launch, pictures, presets, request, sentences
from kohya_gui.folders import Wanted
from kohya_gui.pages.browser import QUIET, FolderBrowser
from kohya_gui.pages.preset_card import PresetCard
from kohya_gui.pages.run import TAB as RUNS_TAB
from kohya_gui.pages.run import RunPage
from kohya_gui.pages.train_fields import BASIC, BLANK_ROW, TrainFields
from kohya_gui.pages.train_notes import BY_HAND, TrainNotes
from kohya_gui.pages.typed import OWN, TypedValues
from kohya_gui.request import MODEL
from kohya_gui.settings import Settings
from trainer.errors import Problem, TrainerError
from trainer.formats import prompts
from trainer.tasks.train_network import TrainNetworkConfig

OWN_PRESET = "sd15-lora"
OWN_NAME = "my-lora"
EXAMPLE_NAME = "house"
EXAMPLE_TRIGGER = "sks house"
EXAMPLE_REPEATS = "2"
BROWSED: dict[str, Wanted] = {"model": "model", "folder": "folder", "path": "toml"}


class TrainPage:
    """The tab and what it does. Handlers get dictionaries keyed by component."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.memory = presets.memory_presets(settings, TrainNetworkConfig)
        self.fields = TrainFields([*self.memory, BY_HAND])
        self.form = self.fields.form
        self._lay()

    def _lay(self) -> None:
        with gr.Row(elem_id="cards", equal_height=True):
            self.example_card = gr.Button(EXAMPLE_CARD, elem_id="card-example", elem_classes="chosen")
            self.own_card = gr.Button(OWN_CARD, elem_id="card-own")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=600, elem_id="basic"):
                self.fields.lay_basic()
            with gr.Column(scale=1, min_width=270, elem_id="side"):
                self.presets = PresetCard(self.settings, TrainNetworkConfig, self.form)
        self.fields.lay_all_options()
        with gr.Row(elem_id="plan-bar"):
            self.plan = gr.HTML(elem_classes="plan", elem_id="plan")
            self.start_button = gr.Button("Start", variant="primary", scale=0, min_width=170, elem_id="start")
        self.problems = gr.Textbox(visible="hidden", elem_id="problems", show_label=False, container=False)
        self.browser = FolderBrowser(self.settings)
        self.notes = TrainNotes(self.settings, self.fields, self.memory, self.plan)
        self.typed = TypedValues(self.fields)

    # events

    def attach(self, demo: gr.Blocks, tabs: gr.Tabs, run_page: RunPage) -> None:
        """Wire the tab, once all tabs are laid."""
        self._attach_browser()
        planning = self.notes.attach(self.problems)
        self.presets.attach()
        self._attach_cards()
        self.form.follow_kinds()
        self.fields.show_all.change(
            lambda on: gr.update(visible=on), self.fields.show_all, self.fields.all_options, **QUIET
        )
        self.problems.change(None, self.problems, None, js="(text) => { window.studio.showProblems(text); }")
        names = [self.fields.path_note, self.fields.other_name]
        outputs = [self.plan, self.start_button, self.problems, self.fields.show_all, *names, tabs, *run_page.outputs]
        self.start_button.click(
            self._starter(tabs, run_page),
            self.fields.asked,
            outputs,
            cancels=[planning],
            concurrency_limit=1,
            concurrency_id="start",
            show_progress="hidden",
            api_visibility="private",
        )
        demo.load(self._open, self.typed.box, self._loaded(), js="() => window.studio.kept()", **QUIET)
        self.typed.attach()

    def _attach_browser(self) -> None:
        for name, (button, box, wanted) in self.fields.browse.items():
            self.browser.serve(name, button, box, wanted)
        for name, button in self.form.browse.items():
            self.browser.serve(name, button, self.form.components[name], BROWSED[self.form.specs[name].widget])
        self.browser.finish()
        self.fields.upload.upload(
            self.take_upload,
            self.fields.upload,
            [self.fields.pictures, self.fields.upload, self.fields.upload_note],
            **QUIET,
        )

    def _attach_cards(self) -> None:
        fresh = "() => { window.studio.startFresh('%s'); return []; }"
        self.example_card.click(self._show_example, None, self._loaded(), js=fresh % "", **QUIET)
        self.own_card.click(self._show_own, None, self._loaded(), js=fresh % OWN, **QUIET).then(
            None, None, None, js=f"() => window.studio.reveal('{MODEL}')"
        )

    # the two ways in

    def _loaded(self) -> list[Component]:
        mine = [
            self.fields.pictures,
            self.fields.trigger,
            self.fields.repeats,
            self.fields.class_pictures,
            self.fields.class_word,
            self.fields.prompts,
        ]
        notes = [*self.presets.outputs, self.example_card, self.own_card, self.problems, self.fields.upload_note]
        looks = [
            self.fields.badge,
            self.fields.counts,
            self.fields.class_counts,
            self.fields.trigger_note,
            self.fields.path_note,
            self.fields.other_name,
        ]
        return [*self.form.components.values(), *mine, *notes, *looks, self.fields.memory_box, self.fields.memory_note]

    def _open(self, kept: str) -> dict[Component, Any]:
        """On opening the page: what the browser kept of the last time, else the example."""
        typed = self.typed.read(kept)
        fresh = self._show_own() if typed.card == OWN else self._show_example()
        if not typed.values:
            return fresh
        again = {self.typed.components[name]: value for name, value in typed.values.items()}
        stands = {component: again.get(component, _value(fresh[component])) for component in self.fields.asked}
        values = {name: sourced.value for name, sourced in self.fields.form.read(stands).items()}
        return {**fresh, **again, **self._looks(values, stands)}

    def _show_example(self) -> dict[Component, Any]:
        example = self.settings.example
        classes = example.class_pictures
        rows = request.prompt_rows(_example_prompts(example.prompts))
        return self._begin(
            example.preset,
            {MODEL: self.settings.short(example.model), "output_name": EXAMPLE_NAME},
            {
                self.fields.pictures: self.settings.short(example.pictures),
                self.fields.class_pictures: self.settings.short(classes) if classes.is_dir() else "",
                self.fields.trigger: EXAMPLE_TRIGGER,
                self.fields.repeats: EXAMPLE_REPEATS,
                self.fields.class_word: "",
                self.fields.prompts: rows or [BLANK_ROW],
                self.example_card: gr.update(elem_classes="chosen"),
                self.own_card: gr.update(elem_classes=""),
            },
        )

    def _show_own(self) -> dict[Component, Any]:
        return self._begin(
            OWN_PRESET,
            {"output_name": OWN_NAME},
            {
                self.fields.pictures: "",
                self.fields.class_pictures: "",
                self.fields.trigger: "",
                self.fields.repeats: "10",
                self.fields.class_word: "",
                self.fields.prompts: [BLANK_ROW],
                self.example_card: gr.update(elem_classes=""),
                self.own_card: gr.update(elem_classes="chosen"),
            },
        )

    def _begin(self, preset: str, values: dict[str, Any], rest: dict[Any, Any]) -> dict[Component, Any]:
        """The whole page from a preset, a few values, and the boxes that are no options."""
        loaded = presets.load(self.settings, TrainNetworkConfig, preset)
        folder = self.settings.outputs
        values = {
            **loaded.values,
            **values,
            "output_name": request.free_name(folder, values["output_name"], self.settings),
        }
        return {
            **self.form.show(values),
            **rest,
            **self.presets.begun(loaded, preset),
            self.problems: "",
            self.fields.upload_note: "",
            **self._looks(values, rest),
        }

    def _looks(self, values: Mapping[str, Any], boxes: Mapping[Any, Any]) -> dict[Component, Any]:
        """What the page says of the options and of the boxes that are none."""
        path_note, other = self.notes.see_name_of(str(values.get("output_name", "")), str(values.get("output_dir", "")))
        memory, memory_note = self.notes.see_memory_of(values)
        return {
            self.fields.badge: self.notes.see_model(str(values.get(MODEL, ""))),
            self.fields.counts: self.notes.see_pictures(boxes[self.fields.pictures])[0],
            self.fields.class_counts: self.notes.see_classes(boxes[self.fields.class_pictures]),
            self.fields.trigger_note: self.notes.see_trigger(boxes),
            self.fields.path_note: path_note,
            self.fields.other_name: other,
            self.fields.memory_box: memory,
            self.fields.memory_note: memory_note,
        }

    def take_upload(self, files: Sequence[str] | None) -> list[Any]:
        """Copy what was dropped into a folder of ours and choose it."""
        if not files:
            return [gr.skip(), gr.skip(), gr.skip()]
        taken = pictures.take_uploads([Path(file) for file in files], self.settings.uploads)
        note = sentences.refused(taken.refused)
        if taken.folder is None:
            return [gr.skip(), None, note or '<span class="bad">There was no picture among these files.</span>']
        return [str(taken.folder), None, note]

    # Start

    def _starter(self, tabs: gr.Tabs, run_page: RunPage) -> Any:
        def start(values: dict[Component, Any]) -> Iterator[dict[Any, Any]]:
            yield {
                self.start_button: gr.update(value="Checking…", interactive=False),
                self.plan: sentences.status(
                    "Checking model, pictures and disk on this machine; this takes a few seconds."
                ),
                self.problems: "",
            }
            again = gr.update(value="Start", interactive=True)
            try:
                folder = launch.start(self.fields.request(values), self.settings)
            except TrainerError as error:
                yield {self.start_button: again, **self._refused(error.problems)}
                return
            opened = dict(zip(run_page.outputs, run_page.show(folder.path.name), strict=True))
            note, other = self.notes.see_name(values)
            names = {self.fields.path_note: note, self.fields.other_name: other}
            yield {
                self.start_button: again,
                self.plan: sentences.started(folder.path.name),
                tabs: gr.Tabs(selected=RUNS_TAB),
                **names,
                **opened,
            }

        return start

    def _refused(self, problems: Sequence[Problem]) -> dict[Component, Any]:
        """Every problem beside its field, and a list of links by the Start button."""
        fields = [*BASIC, *(name for name in self.form.components if name not in BASIC)]
        problems = sorted(problems, key=lambda p: fields.index(p.option) if p.option in fields else len(fields))
        hidden = any(p.option in fields and p.option not in BASIC for p in problems)
        return {
            self.problems: sentences.problems_json(problems),
            self.plan: sentences.refusal(problems, {name: self.fields.label(name) for name in fields}),
            **({self.fields.show_all: True} if hidden else {}),
        }


EXAMPLE_CARD = (
    "Try the example\nA tiny model and a dozen pictures of one house are loaded. Press Start and watch it learn."
)
OWN_CARD = "Train on my pictures\nChoose a Stable Diffusion model and a folder of pictures; the rest is set sensibly."


def _value(update: Any) -> Any:
    """The value that an update puts into a component."""
    return update["value"] if isinstance(update, dict) else update


def _example_prompts(path: Path) -> list[prompts.PromptLine]:
    try:
        return prompts.read_prompts(path)[0]
    except TrainerError:
        return []
