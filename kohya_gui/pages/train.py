"""The Train tab: from a model and a folder of pictures to a started LoRA training, most options out of the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from kohya_gui import launch, pictures, presets, request, sentences
from kohya_gui.form import PATH_WIDGETS, Form, info_text
from kohya_gui.folders import Wanted
from kohya_gui.pages.browser import QUIET, FolderBrowser
from kohya_gui.pages.run import TAB as RUNS_TAB
from kohya_gui.pages.run import RunPage
from kohya_gui.plan import make_plan, measured_seconds, sentence
from kohya_gui.request import MODEL, PROMPT_COLUMNS, WRITTEN_BY_PAGE, Request, path_of
from kohya_gui.settings import Settings
from trainer.config import specs
from trainer.errors import ConfigError, Problem, TrainerError
from trainer.formats import prompts
from trainer.schema import validate
from trainer.tasks.train_network import TrainNetworkConfig

OWN_PRESET = "sd15-lora"
OWN_NAME = "my-lora"
EXAMPLE_NAME = "house"
EXAMPLE_TRIGGER = "sks house"
NO_MEMORY = "As set below, by hand"
BLANK_ROW = [""] * len(PROMPT_COLUMNS)
LIVE: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
TRAINING = (
    "resolution", "num_repeats", "max_train_epochs", "train_batch_size", "network_dim", "network_alpha", "learning_rate",
)  # fmt: skip


class TrainPage:
    """The tab's components and what they do. Handlers get dictionaries keyed by component."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.form = Form(specs(TrainNetworkConfig), left_out=(*WRITTEN_BY_PAGE, "run_dir"))
        self.memory = presets.memory_presets(settings, TrainNetworkConfig)
        self.browser: FolderBrowser
        self.browse: dict[str, tuple[gr.Button, Any, Wanted]] = {}
        self._lay()

    # layout

    def _lay(self) -> None:
        with gr.Row(elem_id="cards", equal_height=True):
            self.example_card = gr.Button(EXAMPLE_CARD, elem_id="card-example", elem_classes="chosen")
            self.own_card = gr.Button(OWN_CARD, elem_id="card-own")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=600, elem_id="basic"):
                self._lay_model()
                self._lay_pictures()
                self._lay_result()
                self._lay_training()
                self._lay_samples()
            with gr.Column(scale=1, min_width=270, elem_id="side"):
                self._lay_presets()
        self._lay_all_options()
        with gr.Row(elem_id="plan-bar"):
            self.plan = gr.HTML(elem_classes="plan", elem_id="plan")
            self.start_button = gr.Button("Start", variant="primary", scale=0, min_width=170, elem_id="start")
        self.problems = gr.Textbox(visible="hidden", elem_id="problems", show_label=False, container=False)
        self.browser = FolderBrowser(self.settings)

    def _lay_model(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(1, "Base model", "what your pictures are taught to"))
            info = f"`{MODEL}` Stable Diffusion 1.x: a .safetensors file, or a folder in the diffusers layout"
            self.model = self.form.draw(MODEL, label="Base model", info=info)
            self.badge = gr.HTML(elem_classes="note", elem_id="badge")

    def _lay_pictures(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(2, "Pictures", "10 to 50 good ones are enough for a person, a thing or a style"))
            with gr.Row():
                with gr.Column(scale=3, min_width=380):
                    self.pictures = self._path(
                        "image_dir", "Folder of pictures, or a saved data set", "A path on this machine; captions are text "
                        "files of the same name", "pictures",
                    )  # fmt: skip
                    self.counts = gr.HTML(elem_classes="note", elem_id="counts")
                with gr.Column(scale=2, min_width=220):
                    self.upload = gr.File(
                        label="Drop pictures and captions here", file_count="multiple",
                        file_types=["image", *pictures.CAPTIONS], height=88, elem_classes="drop", elem_id="upload",
                    )  # fmt: skip
            with gr.Row():
                self.class_pictures = self._path(
                    request.CLASS_DIR, "Class pictures (optional)", "Pictures of such things in general, so that the model "
                    "does not forget them", "folder", scale=3,
                )  # fmt: skip
                self.class_word = _text("class_word", "Class word", "Their caption, where they have none", scale=1)
            self.class_counts = gr.HTML(elem_classes="note", elem_id="class-counts")
            self.trigger = _text("class_tokens", "Trigger word", TRIGGER_HELP)
            self.trigger_note = gr.HTML(elem_classes="note", elem_id="trigger-note")

    def _lay_result(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(3, "Result"))
            with gr.Row():
                with gr.Column(min_width=280):
                    self.form.draw(
                        "output_name",
                        label="Name of the LoRA",
                        info="`output_name` The file's name, without folder or ending",
                    )
                    self.path_note = gr.HTML(elem_classes="note", elem_id="path-note")
                    self.other_name = gr.Button("", visible=False, size="sm", elem_id="other-name")
                with gr.Column(min_width=280):
                    self.memory_box = gr.Dropdown(
                        [*self.memory, NO_MEMORY], value=next(iter(self.memory), NO_MEMORY), label="Memory",
                        info="How much of the graphics card's memory to trade for speed and exactness", filterable=False,
                        elem_id="opt-memory", elem_classes="field", interactive=True,
                    )  # fmt: skip
                    self.memory_note = gr.HTML(elem_classes="note", elem_id="memory-note")

    def _lay_training(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(4, "Training"))
            with gr.Row(elem_classes="option-grid"):
                for name in TRAINING:
                    if name == "num_repeats":
                        self.repeats = _text(name, "Repeats", info_text(request.spec(name)), placeholder="1")
                    else:
                        self.form.draw(name)

    def _lay_samples(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(5, "Sample pictures", "drawn before, during and after, so that you see it learn"))
            with gr.Column(elem_id="opt-sample_prompts", elem_classes="field"):
                self.prompts = gr.Dataframe(
                    [BLANK_ROW], headers=list(PROMPT_COLUMNS), datatype="str", type="array", interactive=True,
                    column_count=6, column_widths=["42%", "22%", "9%", "9%", "9%", "9%"],
                    show_label=False, label="Sample prompts", elem_id="prompts", buttons=[], max_height=230, wrap=True,
                )  # fmt: skip
            self.add_prompt = gr.Button("Add a prompt", size="sm", min_width=120, elem_id="add-prompt")
            with gr.Row(elem_classes="option-grid"):
                self.form.draw("save_every_n_epochs")

    def _lay_presets(self) -> None:
        with gr.Column(elem_classes="section", elem_id="presets"):
            gr.HTML("<h2>Presets</h2>")
            self.preset_note = gr.HTML(elem_classes="note", elem_id="preset-note")
            choices = presets.names(self.settings, TrainNetworkConfig.task)
            self.preset_box = gr.Dropdown(
                choices, value=self.settings.example.preset, label="Preset", filterable=False, elem_id="preset-box"
            )
            with gr.Row():
                self.load_button = gr.Button("Load", size="sm", min_width=70, elem_id="preset-load")
                self.preset_upload = gr.UploadButton(
                    "From a file…", file_types=[".json"], size="sm", min_width=110, elem_id="preset-upload"
                )
            self.changes = gr.HTML(elem_classes="changes", elem_id="preset-changes")
            self.preset_name = gr.Textbox(
                label="Save the settings as", info="What differs from the defaults, without paths", elem_id="preset-name",
                placeholder="a name", max_lines=1,
            )  # fmt: skip
            self.save_button = gr.Button("Save preset", size="sm", elem_id="preset-save")
            self.saved_note = gr.HTML(elem_classes="note", elem_id="preset-saved")

    def _lay_all_options(self) -> None:
        count = sum(len(group) for group in self.form.groups().values())
        self.show_all = gr.Checkbox(
            False, label=f"Show all other options ({count})", elem_id="show-all", container=False, interactive=True
        )
        with gr.Column(visible=False, elem_classes="section", elem_id="all-options") as self.all_options:
            gr.HTML("<h2>All other options <small>what stands above is not repeated; grey is the default</small></h2>")
            gr.Textbox(
                show_label=False, label="Search the options", placeholder="Search by name or by what it does…",
                elem_id="search-options", container=False, max_lines=1,
            )  # fmt: skip
            gr.HTML('<div id="search-note" aria-live="polite"></div>')
            self.form.draw_rest()

    def _path(self, name: str, label: str, info: str, wanted: Wanted, *, scale: int = 1) -> gr.Textbox:
        button = gr.Button("Browse…", render=False)
        box = _text(name, label, info, buttons=[button], scale=scale)
        self.browse[name] = (button, box, wanted)
        return box

    # what the person typed

    @property
    def asked(self) -> set[Component]:
        """All inputs of Start."""
        own = {self.pictures, self.trigger, self.repeats, self.class_pictures, self.class_word, self.prompts}
        return self.form.inputs() | own

    def request(self, values: Mapping[Component, Any]) -> Request:
        """The page as typed."""
        return Request(
            options=self.form.read(values),
            pictures=values[self.pictures] or "",
            trigger=values[self.trigger] or "",
            num_repeats=values[self.repeats] or "",
            class_pictures=values[self.class_pictures] or "",
            class_word=values[self.class_word] or "",
            prompts=values[self.prompts] or [],
        )

    # events

    def attach(self, demo: gr.Blocks, tabs: gr.Tabs, run_page: RunPage) -> None:
        """Wire the tab, once all tabs are laid."""
        self._attach_browser()
        self._attach_notes()
        self._attach_presets()
        self.form.follow_kinds()
        self.show_all.change(lambda on: gr.update(visible=on), self.show_all, self.all_options, **QUIET)
        self.problems.change(None, self.problems, None, js="(text) => { window.studio.showProblems(text); }")
        outputs = [self.plan, self.start_button, self.problems, self.show_all, tabs, *run_page.outputs]
        self.start_button.click(
            self._starter(tabs, run_page), self.asked, outputs,
            concurrency_limit=1, concurrency_id="start", show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        demo.load(self._show_example, None, self._loaded(), **QUIET)

    def _attach_browser(self) -> None:
        for name, (button, box, wanted) in self.browse.items():
            self.browser.serve(name, button, box, wanted)
        for name, button in self.form.browse.items():
            widget = self.form.specs[name].widget
            assert widget in PATH_WIDGETS
            wanted = {"model": "model", "folder": "folder"}.get(widget, "toml")
            self.browser.serve(name, button, self.form.components[name], wanted)  # type: ignore[arg-type]
        self.browser.finish()
        self.upload.upload(self.take_upload, self.upload, [self.pictures, self.upload, self.counts], **QUIET)

    def _attach_notes(self) -> None:
        where = {self.form.components["output_name"], self.form.components["output_dir"]}
        gr.on([self.model.change], self.see_model, self.model, self.badge, **LIVE)
        gr.on([self.pictures.change], self.see_pictures, self.pictures, [self.counts, *self._plain_only()], **LIVE)
        gr.on([self.class_pictures.change], self.see_classes, self.class_pictures, self.class_counts, **LIVE)
        trigger_from = {self.pictures, self.trigger}
        gr.on([c.change for c in trigger_from], self.see_trigger, trigger_from, self.trigger_note, **LIVE)
        gr.on([c.change for c in where], self.see_name, where, [self.path_note, self.other_name], **LIVE)
        self.other_name.click(
            lambda name: name.split()[-1], self.other_name, self.form.components["output_name"], **QUIET
        )
        self.add_prompt.click(lambda rows: [*rows, BLANK_ROW], self.prompts, self.prompts, **QUIET)
        self.memory_box.input(self.set_memory, {self.memory_box}, self._memory_outputs(), **QUIET)
        patched = {self.form.components[name] for name in self._memory_names()}
        gr.on([c.change for c in patched], self.see_memory, patched, [self.memory_box, self.memory_note], **LIVE)
        counted = [self.form.components[n] for n in COUNTED if n in self.form.components]
        planned = [*counted, self.pictures, self.repeats, self.class_pictures, self.prompts, self.model]
        gr.on([c.change for c in planned], self.see_plan, self.asked, [self.plan, self.problems], **LIVE)

    def _attach_presets(self) -> None:
        form = self.form.inputs()
        shown = [*self.form.components.values(), self.preset_note, self.changes]
        self.load_button.click(self.load_preset, {*form, self.preset_box}, shown, **QUIET)
        self.preset_upload.upload(self.upload_preset, {*form, self.preset_upload}, shown, **QUIET)
        self.save_button.click(self.save_preset, {*form, self.preset_name}, [self.saved_note, self.preset_box], **QUIET)
        self.example_card.click(self._show_example, None, self._loaded(), **QUIET)
        self.own_card.click(self._show_own, None, self._loaded(), **QUIET).then(
            None, None, None, js=f"() => window.studio.reveal('{MODEL}')"
        )

    # the two ways in

    def _loaded(self) -> list[Component]:
        mine = [self.pictures, self.trigger, self.repeats, self.class_pictures, self.class_word, self.prompts]
        notes = [self.preset_note, self.changes, self.preset_box, self.example_card, self.own_card, self.problems]
        looks = [self.badge, self.counts, self.class_counts, self.trigger_note, self.path_note, self.other_name]
        return [*self.form.components.values(), *mine, *notes, *looks, self.memory_box, self.memory_note]

    def _show_example(self) -> dict[Component, Any]:
        example = self.settings.example
        rows = request.prompt_rows(_example_prompts(example.prompts))
        return self._begin(
            example.preset,
            {MODEL: str(example.model), "output_name": EXAMPLE_NAME},
            {
                self.pictures: str(example.pictures),
                self.class_pictures: str(example.class_pictures) if example.class_pictures.is_dir() else "",
                self.trigger: EXAMPLE_TRIGGER,
                self.repeats: "1",
                self.class_word: "",
                self.prompts: rows or [BLANK_ROW],
                self.example_card: gr.update(elem_classes="chosen"),
                self.own_card: gr.update(elem_classes=""),
            },
        )

    def _show_own(self) -> dict[Component, Any]:
        return self._begin(
            OWN_PRESET,
            {"output_name": OWN_NAME},
            {
                self.pictures: "",
                self.class_pictures: "",
                self.trigger: "",
                self.repeats: "10",
                self.class_word: "",
                self.prompts: [BLANK_ROW],
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
        trigger = {self.pictures: rest[self.pictures], self.trigger: rest[self.trigger]}
        path_note, other = self._see_name(values["output_name"], "")
        choices = presets.names(self.settings, TrainNetworkConfig.task)
        return {
            **self.form.show(values),
            **rest,
            self.preset_note: sentences.preset_note(loaded.preset),
            self.changes: sentences.problems_list(loaded.problems),
            self.preset_box: gr.update(choices=choices, value=preset),
            self.problems: "",
            self.badge: self.see_model(values.get(MODEL, "")),
            self.counts: self.see_pictures(rest[self.pictures])[0],
            self.class_counts: self.see_classes(rest[self.class_pictures]),
            self.trigger_note: self.see_trigger(trigger),
            self.path_note: path_note,
            self.other_name: other,
            **dict(zip([self.memory_box, self.memory_note], self._see_memory(values), strict=True)),
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
        return [self.trigger, self.repeats, self.class_pictures, self.class_word]

    def see_classes(self, text: str) -> str:
        """Counts of the class pictures."""
        return sentences.class_counts(path_of(text, self.settings)) if text.strip() else ""

    def see_trigger(self, values: Mapping[Component, Any]) -> str:
        """In how many captions the trigger word stands."""
        folder = values[self.pictures]
        return sentences.trigger(path_of(folder, self.settings) if folder.strip() else None, values[self.trigger])

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
        return [*[self.form.components[name] for name in self._memory_names()], self.memory_note]

    def set_memory(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Put a memory preset into the form."""
        chosen = values[self.memory_box]
        if chosen not in self.memory:
            return {self.memory_note: ""}
        patch = self.memory[chosen].values
        return {**self.form.show(patch, names=self._memory_names()), self.memory_note: sentences.memory(patch)}

    def see_memory(self, values: Mapping[Component, Any]) -> list[Any]:
        """The memory preset that the form's values amount to."""
        return self._see_memory({name: v.value for name, v in self.form.read(values).items()})

    def _see_memory(self, values: Mapping[str, Any]) -> list[Any]:
        names = self._memory_names()
        now = {name: values.get(name, self.form.specs[name].default) for name in names}
        for title, preset in self.memory.items():
            if now == {name: preset.values.get(name, self.form.specs[name].default) for name in names}:
                return [title, sentences.memory(preset.values)]
        return [NO_MEMORY, sentences.memory(now)]

    def see_plan(self, values: Mapping[Component, Any]) -> list[str]:
        """The plan's sentence, and what is wrong with single values."""
        asked = self.request(values)
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
        return [str(taken.folder), None, note + sentences.counts(taken.folder)]

    # presets

    def _plain(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        return {name: sourced.value for name, sourced in self.form.read(values).items()}

    def load_preset(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """A preset of the list into the form."""
        try:
            loaded = presets.load(self.settings, TrainNetworkConfig, str(values[self.preset_box]))
        except ConfigError as error:
            return {self.changes: sentences.problems_list(error.problems)}
        return self._put(loaded, values)

    def upload_preset(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """A preset from a person's own file into the form."""
        try:
            loaded = presets.load_file(TrainNetworkConfig, Path(str(values[self.preset_upload])))
        except ConfigError as error:
            return {self.changes: sentences.problems_list(error.problems)}
        return self._put(loaded, values)

    def _put(self, loaded: presets.Loaded, values: Mapping[Component, Any]) -> dict[Component, Any]:
        before = self._plain(values)
        after = presets.patched(TrainNetworkConfig, before, loaded.values)
        differences = presets.differences(list(self.form.specs.values()), before, after)
        return {
            **self.form.show(after),
            self.preset_note: sentences.preset_note(loaded.preset),
            self.changes: sentences.changes(differences) + sentences.problems_list(loaded.problems),
        }

    def save_preset(self, values: Mapping[Component, Any]) -> list[Any]:
        """Save the form as the person's own preset; an existing one of that name is said to be replaced."""
        name = str(values[self.preset_name] or "").strip()
        replaced = presets.exists(self.settings, TrainNetworkConfig, name)
        try:
            path = presets.save(self.settings, TrainNetworkConfig, name, self._plain(values))
        except TrainerError as error:
            return [sentences.problems_list(error.problems), gr.skip()]
        choices = presets.names(self.settings, TrainNetworkConfig.task)
        return [sentences.saved(path, replaced=replaced), gr.update(choices=choices, value=f"{presets.USER}{name}")]

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
                folder = launch.start(self.request(values), self.settings)
            except TrainerError as error:
                yield {self.start_button: again, **self._refused(error.problems)}
                return
            opened = dict(zip(run_page.outputs, run_page.show(folder.path.name), strict=True))
            done = f"<span>The run <b>{pictures.escaped(folder.path.name)}</b> is under way; see the tab Runs.</span>"
            yield {self.start_button: again, self.plan: done, tabs: gr.Tabs(selected=RUNS_TAB), **opened}

        return start

    def _label(self, name: str) -> str:
        """What a field is called on the page."""
        if name in PAGE_FIELDS:
            return PAGE_FIELDS[name]
        return str(self.form.components[name].label)

    def _refused(self, problems: Sequence[Problem]) -> dict[Component, Any]:
        """Every problem beside its field, and a list of links by the Start button."""
        fields = [*BASIC, *(name for name in self.form.components if name not in BASIC)]
        problems = sorted(problems, key=lambda p: fields.index(p.option) if p.option in fields else len(fields))
        hidden = any(p.option in fields and p.option not in BASIC for p in problems)
        return {
            self.problems: sentences.problems_json(problems),
            self.plan: sentences.refusal(problems, {name: self._label(name) for name in fields}),
            **({self.show_all: True} if hidden else {}),
        }


COUNTED = (
    "train_batch_size", "max_train_epochs", "max_train_steps", "gradient_accumulation_steps", "resolution", "network_dim",
    "network_alpha", "learning_rate", "save_every_n_epochs", "sample_every_n_epochs", "mixed_precision",
    "gradient_checkpointing",
)  # fmt: skip
BASIC = (
    MODEL, "image_dir", request.CLASS_DIR, "class_word", "class_tokens", "output_name", *TRAINING, "sample_prompts",
    "save_every_n_epochs",
)  # fmt: skip
"""The fields in sight, from top to bottom."""
PAGE_FIELDS = {
    "image_dir": "Pictures",
    request.CLASS_DIR: "Class pictures",
    "class_word": "Class word",
    "class_tokens": "Trigger word",
    "num_repeats": "Repeats",
    "sample_prompts": "Sample prompts",
}
TRIGGER_HELP = "The words that shall call up what you train. Pictures without a caption are trained with these words"
EXAMPLE_CARD = (
    "Try the example\nA tiny model and a dozen pictures of one house are loaded. Press Start and watch it learn."
)
OWN_CARD = (
    "Train on my pictures\nChoose a Stable Diffusion 1.5 model and a folder of pictures; the rest is set sensibly."
)


def _text(name: str, label: str, info: str, **more: Any) -> gr.Textbox:
    return gr.Textbox(
        label=label, info=info, elem_id=f"opt-{name}", elem_classes="field", interactive=True, max_lines=1, min_width=200,
        **more,
    )  # fmt: skip


def _heading(number: int, title: str, more: str = "") -> str:
    small = f" <small>{more}</small>" if more else ""
    return f"<h2><b>{number}</b>{title}{small}</h2>"


def _example_prompts(path: Path) -> list[prompts.PromptLine]:
    try:
        return prompts.read_prompts(path)[0]
    except TrainerError:
        return []
