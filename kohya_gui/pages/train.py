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
from kohya_gui.plan import make_plan, measured_seconds, sentence
from kohya_gui.request import MODEL, Request, path_of
from kohya_gui.settings import Settings
from trainer.errors import Problem, TrainerError
from trainer.formats import prompts
from trainer.schema import validate
from trainer.tasks.train_network import TrainNetworkConfig

OWN_PRESET = "sd15-lora"
OWN_NAME = "my-lora"
EXAMPLE_NAME = "house"
EXAMPLE_TRIGGER = "sks house"
BY_HAND = "As set below, by hand"
LIVE: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
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

    # events

    def attach(self, demo: gr.Blocks, tabs: gr.Tabs, run_page: RunPage) -> None:
        """Wire the tab, once all tabs are laid."""
        self._attach_browser()
        self._attach_notes()
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
            concurrency_limit=1,
            concurrency_id="start",
            show_progress="hidden",
            api_visibility="private",
        )
        demo.load(self._show_example, None, self._loaded(), **QUIET)

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

    def _attach_notes(self) -> None:
        where = {self.form.components["output_name"], self.form.components["output_dir"]}
        gr.on([self.fields.model.change], self.see_model, self.fields.model, self.fields.badge, **LIVE)
        gr.on(
            [self.fields.pictures.change],
            self.see_pictures,
            self.fields.pictures,
            [self.fields.counts, *self._plain_only()],
            **LIVE,
        )
        gr.on(
            [self.fields.class_pictures.change],
            self.see_classes,
            self.fields.class_pictures,
            self.fields.class_counts,
            **LIVE,
        )
        trigger_from = {self.fields.pictures, self.fields.trigger}
        gr.on([c.change for c in trigger_from], self.see_trigger, trigger_from, self.fields.trigger_note, **LIVE)
        gr.on([c.change for c in where], self.see_name, where, [self.fields.path_note, self.fields.other_name], **LIVE)
        self.fields.other_name.click(
            lambda name: name.split()[-1], self.fields.other_name, self.form.components["output_name"], **QUIET
        )
        self.fields.add_prompt.click(lambda rows: [*rows, BLANK_ROW], self.fields.prompts, self.fields.prompts, **QUIET)
        self.fields.memory_box.input(self.set_memory, {self.fields.memory_box}, self._memory_outputs(), **QUIET)
        patched = {self.form.components[name] for name in self._memory_names()}
        gr.on(
            [c.change for c in patched],
            self.see_memory,
            patched,
            [self.fields.memory_box, self.fields.memory_note],
            **LIVE,
        )
        counted = [self.form.components[n] for n in COUNTED if n in self.form.components]
        planned = [
            *counted,
            self.fields.pictures,
            self.fields.repeats,
            self.fields.class_pictures,
            self.fields.prompts,
            self.fields.model,
        ]
        gr.on([c.change for c in planned], self.see_plan, self.fields.asked, [self.plan, self.problems], **LIVE)

    def _attach_cards(self) -> None:
        self.example_card.click(self._show_example, None, self._loaded(), **QUIET)
        self.own_card.click(self._show_own, None, self._loaded(), **QUIET).then(
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

    def _show_example(self) -> dict[Component, Any]:
        example = self.settings.example
        rows = request.prompt_rows(_example_prompts(example.prompts))
        return self._begin(
            example.preset,
            {MODEL: str(example.model), "output_name": EXAMPLE_NAME},
            {
                self.fields.pictures: str(example.pictures),
                self.fields.class_pictures: str(example.class_pictures) if example.class_pictures.is_dir() else "",
                self.fields.trigger: EXAMPLE_TRIGGER,
                self.fields.repeats: "1",
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
        trigger = {self.fields.pictures: rest[self.fields.pictures], self.fields.trigger: rest[self.fields.trigger]}
        path_note, other = self._see_name(values["output_name"], "")
        return {
            **self.form.show(values),
            **rest,
            **self.presets.begun(loaded, preset),
            self.problems: "",
            self.fields.upload_note: "",
            self.fields.badge: self.see_model(values.get(MODEL, "")),
            self.fields.counts: self.see_pictures(rest[self.fields.pictures])[0],
            self.fields.class_counts: self.see_classes(rest[self.fields.class_pictures]),
            self.fields.trigger_note: self.see_trigger(trigger),
            self.fields.path_note: path_note,
            self.fields.other_name: other,
            **dict(zip([self.fields.memory_box, self.fields.memory_note], self._see_memory(values), strict=True)),
        }

    # what the page sees

    def see_model(self, text: str) -> str:
        """The badge under the base model, or why it cannot be used."""
        return sentences.model(path_of(text, self.settings) if text.strip() else None)

    def see_pictures(self, text: str) -> list[Any]:
        """Counts and thumbnails; a saved data set brings its own repeats, trigger word and class pictures."""
        own = Request({}, pictures=text).is_dataset
        update = gr.update(interactive=not own)
        return [sentences.counts(path_of(text, self.settings) if text.strip() else None), *[update] * 4]

    def _plain_only(self) -> list[Component]:
        return [self.fields.trigger, self.fields.repeats, self.fields.class_pictures, self.fields.class_word]

    def see_classes(self, text: str) -> str:
        """Counts of the class pictures."""
        return sentences.class_counts(path_of(text, self.settings)) if text.strip() else ""

    def see_trigger(self, values: Mapping[Component, Any]) -> str:
        """In how many captions the trigger word stands."""
        folder = values[self.fields.pictures]
        return sentences.trigger(
            path_of(folder, self.settings) if folder.strip() else None, values[self.fields.trigger]
        )

    def see_name(self, values: Mapping[Component, Any]) -> list[Any]:
        """The result's whole path, and another name where one is needed."""
        name, folder = self.form.components["output_name"], self.form.components["output_dir"]
        return self._see_name(values[name] or "", values[folder] or "")

    def _see_name(self, name: str, typed_folder: str) -> list[Any]:
        folder = path_of(typed_folder, self.settings) if typed_folder.strip() else self.settings.outputs
        free = request.free_name(folder, name, self.settings) if name else ""
        note = sentences.result_path(folder, name, is_free=free == name)
        return [note, gr.update(visible=free != name, value=f"Use {free}")]

    def _memory_names(self) -> list[str]:
        names = dict.fromkeys(name for preset in self.memory.values() for name in preset.values)
        return [name for name in names if name in self.form.components]

    def _memory_outputs(self) -> list[Component]:
        return [*[self.form.components[name] for name in self._memory_names()], self.fields.memory_note]

    def set_memory(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Put a memory preset into the form."""
        chosen = values[self.fields.memory_box]
        if chosen not in self.memory:
            return {self.fields.memory_note: ""}
        patch = self.memory[chosen].values
        return {**self.form.show(patch, names=self._memory_names()), self.fields.memory_note: sentences.memory(patch)}

    def see_memory(self, values: Mapping[Component, Any]) -> list[Any]:
        """The memory preset that the form's values amount to."""
        return self._see_memory({name: v.value for name, v in self.form.read(values).items()})

    def _see_memory(self, values: Mapping[str, Any]) -> list[Any]:
        names = self._memory_names()
        now = {name: values.get(name, self.form.specs[name].default) for name in names}
        for title, preset in self.memory.items():
            if now == {name: preset.values.get(name, self.form.specs[name].default) for name in names}:
                return [title, sentences.memory(preset.values)]
        return [BY_HAND, sentences.memory(now)]

    def see_plan(self, values: Mapping[Component, Any]) -> list[str]:
        """The plan's sentence, and what is wrong with single values."""
        asked = self.fields.request(values)
        wrong = list(self._wrong_values(asked))
        text = asked.pictures.strip()
        seen = pictures.look(path_of(text, self.settings)) if text else pictures.Seen()
        classes = asked.class_pictures.strip()
        class_seen = pictures.look(path_of(classes, self.settings)) if classes else pictures.Seen()
        plan = None if wrong else make_plan(asked, seen, class_seen)
        todo = sentences.todo(asked, seen)
        said = sentence(plan, measured_seconds(asked, self.settings)) if plan and not todo else todo
        return [f"<span>{said}</span>", sentences.live_problems(wrong, [*self.form.components, "num_repeats"])]

    def _wrong_values(self, asked: Request) -> Iterator[Problem]:
        """Values that are wrong by themselves; what is missing is only said at Start."""
        for name, sourced in asked.options.items():
            found = validate(self.form.specs[name].owner, {name: sourced.value})[1]
            yield from (p for p in found if p.option == name)
        if asked.num_repeats.strip():
            value = request.spec("num_repeats").parse(asked.num_repeats)
            found = validate(request.spec("num_repeats").owner, {"num_repeats": value})[1]
            yield from (p for p in found if p.option == "num_repeats")

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
                self.plan: "<span>Checking model, pictures and disk on this machine; this takes a few seconds.</span>",
                self.problems: "",
            }
            again = gr.update(value="Start", interactive=True)
            try:
                folder = launch.start(self.fields.request(values), self.settings)
            except TrainerError as error:
                yield {self.start_button: again, **self._refused(error.problems)}
                return
            opened = dict(zip(run_page.outputs, run_page.show(folder.path.name), strict=True))
            done = f"<span>The run <b>{pictures.escaped(folder.path.name)}</b> is under way; see the tab Runs.</span>"
            note, other = self.see_name(values)
            names = {self.fields.path_note: note, self.fields.other_name: other}
            yield {self.start_button: again, self.plan: done, tabs: gr.Tabs(selected=RUNS_TAB), **names, **opened}

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


COUNTED = (
    "train_batch_size",
    "max_train_epochs",
    "max_train_steps",
    "gradient_accumulation_steps",
    "resolution",
    "network_dim",
    "network_alpha",
    "learning_rate",
    "save_every_n_epochs",
    "sample_every_n_epochs",
    "mixed_precision",
    "gradient_checkpointing",
)
EXAMPLE_CARD = (
    "Try the example\nA tiny model and a dozen pictures of one house are loaded. Press Start and watch it learn."
)
OWN_CARD = (
    "Train on my pictures\nChoose a Stable Diffusion 1.5 model and a folder of pictures; the rest is set sensibly."
)


def _example_prompts(path: Path) -> list[prompts.PromptLine]:
    try:
        return prompts.read_prompts(path)[0]
    except TrainerError:
        return []
