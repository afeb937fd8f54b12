"""What the browser kept comes back as it was typed, and what does not fit is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from kohya_gui.pages.train import EXAMPLE_NAME, OWN_NAME, TrainPage
from kohya_gui.request import MODEL
from kohya_gui.settings import Settings

ROW = ["a red ball", "", "128", "1", "", "7"]


@pytest.fixture
def page(tmp_path: Path) -> TrainPage:
    with gr.Blocks():
        return TrainPage(Settings.of(tmp_path))


def kept(card: str = "", version: int = 1, **values: Any) -> str:
    return json.dumps({"version": version, "card": card, "values": values})


def opened(page: TrainPage, text: str) -> dict[str, Any]:
    """What stands in the fields after opening the page, by name."""
    updates = page._open(text)
    by_component = {component: name for name, component in page.typed.components.items()}
    return {by_component[c]: v["value"] if isinstance(v, dict) else v for c, v in updates.items() if c in by_component}


def test_typed_values_come_back_with_what_the_page_says_of_them(page: TrainPage, tmp_path: Path) -> None:
    typed = {"network_dim": "seven", "flip_aug": True, "mixed_precision": "bf16", "image_dir": "/nowhere"}
    text = kept("own", **typed, class_tokens="sks cat", sample_prompts=[ROW], output_name="cat")
    found = opened(page, text)
    # a wrong number stays as it was typed, too
    assert {name: found[name] for name in typed} == typed
    assert (found["class_tokens"], found["sample_prompts"], found["num_repeats"]) == ("sks cat", [ROW], "10")
    updates = page._open(text)
    assert "cat.safetensors" in updates[page.fields.path_note] and "does not exist" in updates[page.fields.counts]
    assert updates[page.own_card]["elem_classes"] == "chosen"


def test_a_card_alone_is_the_way_that_was_taken(page: TrainPage) -> None:
    assert opened(page, "")["output_name"] == EXAMPLE_NAME
    assert opened(page, kept())["output_name"] == EXAMPLE_NAME
    assert opened(page, json.dumps({"version": 1, "card": "own", "values": None}))["output_name"] == OWN_NAME


@pytest.mark.parametrize("text", ["{", "[1]", "null", "7", '{"version": 1}', '{"version": 1, "values": [1]}'])
def test_what_is_no_form_opens_the_example(page: TrainPage, text: str) -> None:
    assert opened(page, text) == opened(page, "")


@pytest.mark.parametrize(
    "values",
    [
        {"no_such_option": "1"},
        {"network_dim": 7},
        {"flip_aug": "yes"},
        {"mixed_precision": "fp8"},
        {"sample_prompts": []},
        {"sample_prompts": [["too", "short"]]},
        {"sample_prompts": [[1, 2, 3, 4, 5, 6]]},
        {MODEL: None},
    ],
)
def test_what_does_not_fit_is_left_out(page: TrainPage, values: dict[str, Any]) -> None:
    assert opened(page, kept(**values)) == opened(page, "")
    assert opened(page, kept(**values, caption_prefix="x"))["caption_prefix"] == "x"


def test_another_version_is_not_read(page: TrainPage) -> None:
    assert opened(page, kept(version=2, network_dim="7")) == opened(page, "")


def test_no_secret_is_kept(page: TrainPage) -> None:
    secret = {name for name, spec in page.form.specs.items() if spec.secret}
    assert not secret & set(page.typed.components)
    assert set(page.form.components) - secret < set(page.typed.components)
