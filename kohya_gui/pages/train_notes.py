"""What the Train tab says under its fields while a person types: badge, counts, path, memory, plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from kohya_gui import pictures, request, sentences
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.train_fields import BLANK_ROW, TrainFields
from kohya_gui.plan import make_plan, measured_seconds, sentence
from kohya_gui.request import Request, path_of
from kohya_gui.settings import Settings
from trainer.errors import Problem
from trainer.schema import validate
from trainer.store import Preset

BY_HAND = "As set below, by hand"
LIVE: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
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


class TrainNotes:
    """The looks at what is typed. plan: the sentence by the Start button."""

    def __init__(self, settings: Settings, fields: TrainFields, memory: Mapping[str, Preset], plan: gr.HTML) -> None:
        self.settings = settings
        self.fields = fields
        self.memory = memory
        self.plan = plan

    def attach(self, problems: gr.Textbox) -> Dependency:
        """Look again whenever something is typed. problems: where what is wrong with single values goes.

        Returns the look for the plan, which Start cancels: a late plan must not stand where Start's answer belongs.
        """
        fields = self.fields
        where = {fields.form.components["output_name"], fields.form.components["output_dir"]}
        gr.on([fields.model.change], self.see_model, fields.model, fields.badge, **LIVE)
        gr.on(
            [fields.pictures.change],
            self.see_pictures,
            fields.pictures,
            [fields.counts, *self._plain_only()],
            **LIVE,
        )
        gr.on(
            [fields.class_pictures.change],
            self.see_classes,
            fields.class_pictures,
            fields.class_counts,
            **LIVE,
        )
        trigger_from = {fields.pictures, fields.trigger}
        gr.on([c.change for c in trigger_from], self.see_trigger, trigger_from, fields.trigger_note, **LIVE)
        gr.on([c.change for c in where], self.see_name, where, [fields.path_note, fields.other_name], **LIVE)
        fields.other_name.click(
            lambda said: said.removeprefix("Use "), fields.other_name, fields.form.components["output_name"], **QUIET
        )
        fields.add_prompt.click(lambda rows: [*rows, BLANK_ROW], fields.prompts, fields.prompts, **QUIET)
        fields.memory_box.input(self.set_memory, {fields.memory_box}, self._memory_outputs(), **QUIET)
        patched = {fields.form.components[name] for name in self._memory_names()}
        gr.on(
            [c.change for c in patched],
            self.see_memory,
            patched,
            [fields.memory_box, fields.memory_note],
            **LIVE,
        )
        counted = [fields.form.components[n] for n in COUNTED if n in fields.form.components]
        planned = [
            *counted,
            fields.pictures,
            fields.repeats,
            fields.class_pictures,
            fields.prompts,
            fields.model,
            fields.trigger,
        ]
        return gr.on([c.change for c in planned], self.see_plan, fields.asked, [self.plan, problems], **LIVE)

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
        name, folder = self.fields.form.components["output_name"], self.fields.form.components["output_dir"]
        return self.see_name_of(values[name] or "", values[folder] or "")

    def see_name_of(self, name: str, typed_folder: str) -> list[Any]:
        folder = path_of(typed_folder, self.settings) if typed_folder.strip() else self.settings.outputs
        free = request.free_name(folder, name, self.settings) if name else ""
        note = sentences.result_path(folder, name, is_free=free == name)
        return [note, gr.update(visible=free != name, value=f"Use {free}")]

    def _memory_names(self) -> list[str]:
        names = dict.fromkeys(name for preset in self.memory.values() for name in preset.values)
        return [name for name in names if name in self.fields.form.components]

    def _memory_outputs(self) -> list[Component]:
        return [*[self.fields.form.components[name] for name in self._memory_names()], self.fields.memory_note]

    def set_memory(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Put a memory preset into the form."""
        chosen = values[self.fields.memory_box]
        if chosen not in self.memory:
            return {self.fields.memory_note: ""}
        patch = self.memory[chosen].values
        return {
            **self.fields.form.show(patch, names=self._memory_names()),
            self.fields.memory_note: sentences.memory(patch),
        }

    def see_memory(self, values: Mapping[Component, Any]) -> list[Any]:
        """The memory preset that the form's values amount to."""
        return self.see_memory_of({name: v.value for name, v in self.fields.form.read(values).items()})

    def see_memory_of(self, values: Mapping[str, Any]) -> list[Any]:
        names = self._memory_names()
        now = {name: values.get(name, self.fields.form.specs[name].default) for name in names}
        for title, preset in self.memory.items():
            if now == {name: preset.values.get(name, self.fields.form.specs[name].default) for name in names}:
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
        return [
            f'<span role="status">{said}</span>',
            sentences.live_problems(wrong, [*self.fields.form.components, "num_repeats"]),
        ]

    def _wrong_values(self, asked: Request) -> Iterator[Problem]:
        """Values that are wrong by themselves; what is missing is only said at Start."""
        for name, sourced in asked.options.items():
            found = validate(self.fields.form.specs[name].owner, {name: sourced.value})[1]
            yield from (p for p in found if p.option == name)
        if asked.num_repeats.strip():
            value = request.spec("num_repeats").parse(asked.num_repeats)
            found = validate(request.spec("num_repeats").owner, {"num_repeats": value})[1]
            yield from (p for p in found if p.option == "num_repeats")
