"""Draws the options of any task from their declarations, and reads what was typed back without changing it.

A blank box means "unset": the default then counts, and stands in the box in grey.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from trainer.schema import OptionSpec
from trainer.store import Sourced, default_text

SOURCE = "form"
UNSET = ""
PATH_WIDGETS = ("path", "folder", "model")


class Form:
    """The components of a task's options by name. Draw each option once, then `finish()`.

    left_out: options that the page itself writes, so that nobody types them. prefix: of the components' ids; another
    one where a second form of the page has the same options.
    """

    def __init__(self, specs: Sequence[OptionSpec], *, left_out: Collection[str] = (), prefix: str = "opt") -> None:
        self.prefix = prefix
        self.specs = {spec.name: spec for spec in specs if spec.name not in left_out}
        self.components: dict[str, Component] = {}
        self.browse: dict[str, gr.Button] = {}

    def draw(self, name: str, *, label: str = "", info: str = "", value: Any = None) -> Component:
        """One option at the current place of the page."""
        spec = self.specs[name]
        assert name not in self.components, f"{name} is drawn twice"
        if spec.widget in PATH_WIDGETS:
            self.browse[name] = gr.Button("Browse…", render=False)
        info = info or info_text(spec)
        component = _component(spec, label=label or spec.label, info=info, button=self.browse.get(name))
        component.elem_id = f"{self.prefix}-{name}"
        component.visible = all(self.specs[key].default in kinds for key, kinds in spec.when.items())
        if value is not None:
            component.value = shown(spec, value)
        self.components[name] = component
        return component

    def draw_rest(self, *, titles: Mapping[str, str] | None = None) -> None:
        """Every option not drawn yet, under the headings of their groups."""
        for title, specs in self.groups().items():
            heading = (titles or {}).get(title, title)
            with gr.Column(elem_classes="option-group", elem_id=f"group-{_slug(title)}"):
                gr.HTML(f"<h3>{heading}</h3>")
                with gr.Row(elem_classes="option-grid"):
                    for spec in specs:
                        self.draw(spec.name)

    def groups(self) -> dict[str, list[OptionSpec]]:
        """The options not drawn yet by the title of their group, in order of declaration."""
        found: dict[str, list[OptionSpec]] = {}
        for spec in self.specs.values():
            if spec.name not in self.components:
                found.setdefault(spec.owner.title or spec.group, []).append(spec)
        return found

    def follow_kinds(self) -> None:
        """Show an option that only some plug-ins have while one of those is chosen."""
        keys = {key for spec in self.specs.values() for key in spec.when if key in self.components}
        for key in keys:
            governed = [spec for spec in self.specs.values() if key in spec.when]
            self.components[key].change(
                _visibility(self.specs[key], governed),
                self.components[key],
                [self.components[s.name] for s in governed],
                show_progress="hidden",
                api_visibility="private",
            )

    def inputs(self) -> set[Component]:
        """All components, as a handler's inputs."""
        return set(self.components.values())

    def read(self, values: Mapping[Component, Any]) -> dict[str, Sourced]:
        """Options from a handler's dictionary; blank boxes are left out, everything else stays as it was typed."""
        return {
            name: Sourced(value, SOURCE)
            for name, component in self.components.items()
            if component in values
            for value in _typed(self.specs[name], values[component])
        }

    def show(self, values: Mapping[str, Any], *, names: Collection[str] | None = None) -> dict[Component, Any]:
        """Updates that make the form show these values; what is not among them is unset. names: touch only these."""
        return {
            component: gr.update(value=shown(self.specs[name], values.get(name)))
            for name, component in self.components.items()
            if names is None or name in names
        }


def info_text(spec: OptionSpec) -> str:
    """Name, help, range, unit and default, as shown under an option's label. Gradio escapes HTML in it and reads the
    simplest of Markdown; a test sees to it that no help looks like that."""
    facts = [spec.bounds_text, spec.unit, default_text(spec), "one per line" if spec.many else ""]
    text = "; ".join(fact for fact in facts if fact)
    return f"`{spec.name}` {spec.help} [{text}]"


def shown(spec: OptionSpec, value: Any) -> Any:
    """A value as its component shows it; None as unset."""
    if spec.type is bool and not spec.optional:
        return spec.default if value is None else value
    if spec.choices or spec.type is bool:
        return (UNSET if spec.optional or spec.required else spec.default) if value is None else value
    if value is None:
        return UNSET
    if spec.many:
        return "\n".join(_text(item) for item in value)
    return _text(value)


def _text(value: Any) -> str:
    """A number as a person would write it: 16 rather than 16.0."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _typed(spec: OptionSpec, raw: Any) -> Iterator[Any]:
    """What a component holds, as the option's value; nothing when it is unset."""
    if spec.type is bool and not spec.optional:
        if raw != spec.default:
            yield raw
    elif spec.choices or spec.type is bool:
        if raw not in (UNSET, None) and raw != spec.default:
            yield raw
    elif not isinstance(raw, str):
        if raw is not None:
            yield raw
    elif spec.many:
        lines = [spec.parse(line) for line in raw.splitlines() if line.strip()]
        if lines:
            yield lines
    elif raw.strip() if spec.type in (int, float, Path) else raw:
        yield spec.parse(raw)


def _component(spec: OptionSpec, *, label: str, info: str, button: gr.Button | None) -> Component:
    common: dict[str, Any] = {
        "label": label,
        "info": info,
        "elem_id": f"opt-{spec.name}",
        "elem_classes": ["field", f"field-{spec.widget or spec.type.__name__.lower()}"],
        "interactive": True,
        "min_width": 220,
    }
    if spec.type is bool and not spec.optional:
        return gr.Checkbox(value=spec.default, **common)
    if spec.choices or spec.type is bool:
        options = [(_choice_label(c), c) for c in spec.choices or (True, False)]
        unset = [("not set", UNSET)] if spec.optional or spec.required else []
        return gr.Dropdown(unset + options, value=shown(spec, None), filterable=len(options) > 8, **common)
    common["placeholder"] = _placeholder(spec)
    if spec.secret:
        return gr.Textbox(type="password", **common)
    lines = 2 if spec.many else 3 if spec.widget in ("text", "prompts") else 1
    buttons = [button] if button else None
    return gr.Textbox(lines=lines, max_lines=1 if lines == 1 else 8, buttons=buttons, **common)


def _choice_label(choice: Any) -> str:
    return {True: "on", False: "off"}[choice] if isinstance(choice, bool) else str(choice)


def _placeholder(spec: OptionSpec) -> str:
    if spec.required:
        return "needed"
    return shown(spec, spec.default) or "not set"


def _visibility(key: OptionSpec, governed: Sequence[OptionSpec]) -> Callable[[Any], Any]:
    def change(typed: Any) -> Any:
        kind = next(_typed(key, typed), key.default)
        updates = [gr.update(visible=kind in spec.when[key.name]) for spec in governed]
        return updates[0] if len(updates) == 1 else updates

    return change


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())
