"""What is typed on the Train tab stays in the browser, so that a reload and a restarted server find it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from kohya_gui import request
from kohya_gui.pages.train_fields import TrainFields
from kohya_gui.request import PROMPT_COLUMNS

VERSION = 1
OWN = "own"


@dataclass(frozen=True)
class Typed:
    """What the browser kept. card: which of the two ways in was taken; values: what stood in the components, by name,
    once somebody changed anything after that."""

    card: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class TypedValues:
    """Lay it with the page; the script keeps the values under the names given here (page.js: keep, kept)."""

    def __init__(self, fields: TrainFields) -> None:
        self.box = gr.Textbox(visible="hidden", elem_id="typed", show_label=False, container=False)
        form = fields.form
        # a password is the one thing that does not outlive the page
        self.components: dict[str, Component] = {
            **{name: component for name, component in form.components.items() if not form.specs[name].secret},
            "image_dir": fields.pictures,
            "class_tokens": fields.trigger,
            "num_repeats": fields.repeats,
            request.CLASS_DIR: fields.class_pictures,
            "class_word": fields.class_word,
            "sample_prompts": fields.prompts,
        }

    def attach(self) -> None:
        """Keep the values whenever one changes; all of that happens in the browser."""
        script = f"(...values) => {{ window.studio.keep({json.dumps(list(self.components))}, values); }}"
        components = list(self.components.values())
        gr.on([c.change for c in components], None, components, None, js=script)

    def read(self, text: str) -> Typed:
        """What the browser kept; whatever does not fit this page (any more) is left out."""
        try:
            kept = json.loads(text) if text else {}
        except json.JSONDecodeError:
            return Typed()
        if not isinstance(kept, dict) or kept.get("version") != VERSION:
            return Typed()
        given = kept.get("values")
        values = given.items() if isinstance(given, dict) else ()
        card = OWN if kept.get("card") == OWN else ""
        return Typed(card, {n: v for n, v in values if n in self.components and _fits(self.components[n], v)})


def _fits(component: Component, value: Any) -> bool:
    match component:
        case gr.Checkbox():
            return isinstance(value, bool)
        case gr.Dropdown():
            return any(value == choice and type(value) is type(choice) for _, choice in component.choices)
        case gr.Dataframe():
            return isinstance(value, list) and bool(value) and all(_is_row(row) for row in value)
    return isinstance(value, str)


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) == len(PROMPT_COLUMNS) and all(isinstance(cell, str) for cell in row)
