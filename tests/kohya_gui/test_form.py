"""The form is drawn from the options' declarations and gives back exactly what was typed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from kohya_gui.form import Form, info_text, shown
from kohya_gui.request import WRITTEN_BY_PAGE
from trainer.config import specs
from trainer.schema import OptionSpec, specs_of, validate
from trainer.tasks.train_network import TrainNetworkConfig

ALL = specs(TrainNetworkConfig)


@pytest.fixture(scope="module")
def form() -> Form:
    with gr.Blocks():
        built = Form(ALL)
        built.draw("learning_rate", label="Rate")
        built.draw_rest()
        built.follow_kinds()
    return built


def example(spec: OptionSpec) -> Any:
    """A value of the option that is not its default, in its range."""
    if spec.type is bool:
        return not spec.default
    if spec.choices:
        return next(c for c in spec.choices if c != spec.default)
    one: Any = {str: "some text", Path: "/some/where"}.get(spec.type)
    if one is None:
        low = spec.ge if spec.ge is not None else (spec.gt if spec.gt is not None else 0)
        high = spec.le if spec.le is not None else (spec.lt if spec.lt is not None else low + 4)
        between = [low + (high - low) * part for part in (0.5, 0.25, 0.75)]
        one = next(spec.type(n) for n in between if spec.type(n) != spec.default)
    return [one, one] if spec.many else one


def held(component: Any, update: dict[str, Any]) -> Any:
    """What the browser would send back after an update."""
    return update["value"]


def test_whole_form_is_drawn(form: Form) -> None:
    assert set(form.components) == {spec.name for spec in ALL}
    for name, component in form.components.items():
        assert component.elem_id == f"opt-{name}"
        assert component.label
        assert name in component.info


def test_every_option_twice_is_refused(form: Form) -> None:
    with pytest.raises(AssertionError, match="twice"):
        form.draw("learning_rate")


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_values_come_back_as_they_were(form: Form, spec: OptionSpec) -> None:
    value = example(spec)
    component = form.components[spec.name]
    update = form.show({spec.name: value})[component]
    read = form.read({component: held(component, update)})
    assert read[spec.name].value == value
    assert read[spec.name].source == "form"


def test_blank_is_unset_and_defaults_are_not_stated(form: Form) -> None:
    blank = {component: update["value"] for component, update in form.show({}).items()}
    assert form.read(blank) == {}


@pytest.mark.parametrize(
    "spec", [s for s in ALL if s.type in (int, float) and not s.choices and not s.many], ids=lambda s: s.name
)
def test_zero_is_zero(form: Form, spec: OptionSpec) -> None:
    assert form.read({form.components[spec.name]: "0"})[spec.name].value == 0


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("network_dim", "1.5", 1.5),
        ("network_dim", "abc", "abc"),
        ("learning_rate", "1e-4", 1e-4),
        ("max_train_epochs", "-3", -3),
    ],
)
def test_nothing_is_corrected(form: Form, name: str, typed: str, value: Any) -> None:
    read = form.read({form.components[name]: typed})[name].value
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "typed"), [("network_dim", "1.5"), ("network_dim", "abc"), ("max_train_epochs", "-3")]
)
def test_wrong_values_are_reported_by_the_declaration(form: Form, name: str, typed: str) -> None:
    value = form.read({form.components[name]: typed})[name].value
    problems = validate(form.specs[name].owner, {name: value})[1]
    assert [p.option for p in problems if p.option == name] == [name]


@pytest.mark.parametrize("raw", ["yes", 1, None, {"a": 1}])
def test_a_crafted_checkbox_value_is_not_taken_as_true(form: Form, raw: Any) -> None:
    name = "gradient_checkpointing"
    read = form.read({form.components[name]: raw})
    problems = validate(form.specs[name].owner, {name: read[name].value})[1]
    assert problems


def test_info_says_range_unit_and_default() -> None:
    by_name = {spec.name: spec for spec in ALL}
    text = info_text(by_name["train_batch_size"])
    assert "at least 1" in text and "pictures" in text and "default 1" in text
    assert "unset" in info_text(by_name["max_train_epochs"])


def test_help_is_shown_letter_by_letter() -> None:
    """Gradio escapes what is HTML by itself, and then reads these; entities would be seen as they are written."""
    read = r"`[^`]+`|\[[^\]]+\]\([^)]+\)|\*\*.+?\*\*|__.+?__|\*.+?\*|(?<!\w)_.+?_(?!\w)"
    texts = [info_text(spec).removeprefix(f"`{spec.name}` ") for spec in ALL if spec.name not in WRITTEN_BY_PAGE]
    assert len(texts) > 50 and not [text for text in texts if re.search(read, text) or "&#" in text]


def test_only_choices_get_lists_and_only_booleans_boxes(form: Form) -> None:
    for spec in ALL:
        kind = type(form.components[spec.name])
        wanted = gr.Dropdown if spec.choices or (spec.type is bool and spec.optional) else gr.Textbox
        assert kind is (gr.Checkbox if spec.type is bool and not spec.optional else wanted)


def test_options_of_another_kind_are_hidden() -> None:
    by_name = {spec.name: spec for spec in ALL}
    key = by_name["lr_scheduler"]
    only = {
        "optimizer_args": dataclasses.replace(by_name["optimizer_args"], when={"lr_scheduler": ("cosine",)}),
        "min_snr_gamma": dataclasses.replace(by_name["min_snr_gamma"], when={"lr_scheduler": ("constant", "linear")}),
    }
    with gr.Blocks() as demo:
        form = Form([key, *only.values()])
        form.draw_rest()
        form.follow_kinds()
    change = next(fn.fn for fn in demo.fns.values())
    assert [u["visible"] for u in change("cosine")] == [True, False]
    assert [u["visible"] for u in change("linear")] == [False, True]
    assert [u["visible"] for u in change("")] == [False, True], "blank is the default, which is constant"
    assert [form.components[name].visible for name in only] == [False, True]


def test_shown_never_prints_what_parse_would_not_read() -> None:
    rate = next(spec for spec in specs_of(ALL[0].owner) if spec.name == ALL[0].name)
    assert shown(rate, None) == ""
    by_name = {spec.name: spec for spec in ALL}
    for value in (1e-4, 0.1 + 0.2, 16.0, 5e-324):
        assert by_name["learning_rate"].parse(shown(by_name["learning_rate"], value)) == value
