"""Prompt lines and files, against sd-scripts' answers where those are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import ConfigError
from trainer.formats.prompts import NAMES, PromptLine, format_prompt, parse_line, parse_text, read_prompts

VECTORS: dict[str, Any] = json.loads(Path("tests/vectors/sample_prompts.json").read_text())

OURS: dict[str, dict[str, Any]] = {
    # the prompt itself is never an option
    "n something --w 3": {"prompt": "n something"},  # and 3 pixels are too few
    "s 4": {"prompt": "s 4"},
    "l 5 cats": {"prompt": "l 5 cats"},
    # belongs to other model families: said, not stored
    "a cat --g 3.5": {"prompt": "a cat"},
    "a cat --cn /x/y z.png": {"prompt": "a cat"},
    # half a number is an error
    "a cat --s 20abc": {"prompt": "a cat"},
    # sizes that cannot be drawn are errors
    "a --w 1 --w 2": {"prompt": "a"},
}


def as_kohya(line: PromptLine) -> dict[str, Any]:
    back = {ours: kohya for kohya, ours in NAMES.items()}
    return {back[name]: value for name, value in line.given().items()}


@pytest.mark.parametrize("case", VECTORS["lines"], ids=lambda case: case["line"])
def test_lines(case: dict[str, Any]) -> None:
    line, problems = parse_line(case["line"])
    expected = OURS.get(case["line"], case["expected"])
    assert as_kohya(line) == expected
    if expected != case["expected"] and len(expected) < len(case["expected"]) and " --" in case["line"]:
        assert problems, "what is left out is said"


def test_numbers() -> None:
    line, problems = parse_line("a --l -1.5 --d 7 --S 12 --h 64 --ss euler_a --n bad, worse")
    assert not problems
    assert line == PromptLine(
        "a", negative_prompt="bad, worse", height=64, seed=7, steps=12, scale=-1.5, sampler="euler_a"
    )
    assert parse_line("a --l 1e1")[0].scale == 10.0
    assert parse_line("a --n")[0].negative_prompt == ""


@pytest.mark.parametrize(
    ("line", "message", "severity"),
    [
        ("a --w wide", "width should be a whole number", "error"),
        ("a --w 512.5", "width should be a whole number", "error"),
        ("a --l", "scale should be a number", "error"),
        ("a --l nan", "scale should be -1000 to 1000", "error"),
        ("a --s 0", "steps should be 1 to 1000", "error"),
        ("a --w512", "is no option of a prompt", "warning"),
        ("a --g 3", "is not used", "warning"),
    ],
)
def test_what_is_wrong_is_said(line: str, message: str, severity: str) -> None:
    _, (problem,) = parse_line(line, source="p.txt line 1")
    assert message in problem.message
    assert (problem.severity, problem.source) == (severity, "p.txt line 1")


def test_text_file_leaves_comments_out() -> None:
    lines, problems = parse_text("# comment\n\n a cat --w 64\n#x\n  # comment too \na dog --n bad\n", source="p.txt")
    assert not problems
    assert [(line.prompt, line.source) for line in lines] == [("a cat", "p.txt line 3"), ("a dog", "p.txt line 6")]


@pytest.mark.parametrize("case", VECTORS["files"][1:], ids=lambda case: case["name"])
def test_files(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / case["name"]
    path.write_text(case["text"])
    lines, warnings = read_prompts(path)
    expected = [{k: v for k, v in entry.items() if k != "enum"} for entry in case["expected"]]
    assert [as_kohya(line) for line in lines] == expected
    assert not warnings


def test_subset_overrides_shared_values(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a"\nwidth = 128\nscale = 5\n')
    (line,), _ = read_prompts(tmp_path / "p.toml")
    assert (line.width, line.scale) == (128, 5.0)


def test_json_of_lines(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('["a --w 64", {"prompt": "b"}]')
    lines, _ = read_prompts(tmp_path / "p.json")
    assert [(line.prompt, line.width) for line in lines] == [("a", 64), ("b", None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.md", "a", "should be a .txt, .toml or .json file"),
        ("p.json", "{", "no valid JSON"),
        ("p.json", "{}", "a list"),
        ("p.json", '[{"seed": 1}]', "needs a prompt"),
        ("p.json", '[{"prompt": "a", "width": "512"}]', "width should be a whole number"),
        ("p.json", '[{"prompt": "a", "seed": true}]', "seed should be a whole number"),
        ("p.toml", "x", "no valid TOML"),
        ("p.toml", "x = 1", r"\[prompt\]"),
        ("p.txt", "a --w x\nb --h y", "p.txt line 2"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "prompt",
    [
        PromptLine("a cat"),
        PromptLine("s 20 people", negative_prompt="", width=64, height=128, seed=0, steps=1, scale=0.0, sampler="ddim"),
        PromptLine("a", negative_prompt="x, y", scale=-7.25),
    ],
)
def test_round_trip(prompt: PromptLine) -> None:
    assert parse_line(format_prompt(prompt)) == (prompt, [])
