"""Prompt files for sample pictures in kohya's forms: lines with `--n --w --h --d --l --s --ss`, TOML and JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, Problem
from trainer.schema import nearest

OPTION = "sample_prompts"
LETTERS: Mapping[str, str] = {
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "steps",
    "l": "scale",
    "ss": "sampler",
}
"""Option of a line -> field of PromptLine."""
NAMES: Mapping[str, str] = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "sample_steps": "steps",
    "scale": "scale",
    "sample_sampler": "sampler",
}
"""Key of a TOML or JSON entry -> field of PromptLine."""
OTHER_FAMILIES = ("g", "cn", "ctr", "rcfg", "fs", "guidance_scale", "controlnet_image", "enum")
"""Options that mean something for models this version does not train."""
RANGES: Mapping[str, tuple[float, float]] = {
    "width": (8, 65536),
    "height": (8, 65536),
    "seed": (0, 2**64 - 1),
    "steps": (1, 1000),
    "scale": (-1000, 1000),
}


@dataclass(frozen=True)
class PromptLine:
    """One sample picture as written; None where nothing is said. source: "prompts.txt line 3"."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    scale: float | None = None
    sampler: str | None = None
    source: str = ""

    def given(self) -> dict[str, Any]:
        """The fields that say something, as keyword arguments of a SampleRequest."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}
        return {name: value for name, value in values.items() if value is not None}


def parse_line(line: str, *, source: str = "") -> tuple[PromptLine, list[Problem]]:
    """A line's prompt and options. What stands before the first " --" is the prompt, whatever it looks like.

    Problems are errors for values that cannot be read, warnings for options that are not used.
    """
    text, *options = line.rstrip("\r\n").split(" --")
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for option in options:
        letter, _, value = option.strip().partition(" ")
        name = LETTERS.get(letter.lower())
        if name is None:
            problems.append(_unused(letter, f"--{option.strip()}", source, tuple(LETTERS)))
            continue
        read, problem = _read(name, value.strip(), f"--{option.strip()}", source)
        values |= {} if problem else {name: read}
        problems += [problem] if problem else []
    return PromptLine(prompt=text.strip(), source=source, **values), problems


def parse_text(text: str, *, source: str = "") -> tuple[list[PromptLine], list[Problem]]:
    """A .txt file's prompts; blank lines and lines that begin with "#" are left out."""
    lines: list[PromptLine] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        prompt, found = parse_line(line, source=f"{source or 'prompts'} line {number}")
        lines.append(prompt)
        problems += found
    return lines, problems


def read_prompts(path: Path) -> tuple[list[PromptLine], list[Problem]]:
    """The prompts of a .txt, .toml or .json file. Raises ConfigError when any of it is wrong; returns warnings."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(OPTION, f"cannot be read: {error}", str(path))]) from error
    readers = {".txt": parse_text, ".toml": _parse_toml, ".json": _parse_json}
    if path.suffix.lower() not in readers:
        raise ConfigError([Problem(OPTION, "should be a .txt, .toml or .json file", str(path))])
    lines, problems = readers[path.suffix.lower()](text, source=path.name)
    if errors := [p for p in problems if p.severity == "error"]:
        raise ConfigError(errors)
    return lines, problems


def format_prompt(prompt: PromptLine) -> str:
    """The prompt as a line that `parse_line` reads back."""
    words = [" ".join(prompt.prompt.split())]
    for letter, name in LETTERS.items():
        value = getattr(prompt, name)
        if value is None:
            continue
        shown = f"{value:.12g}" if isinstance(value, float) else " ".join(str(value).split())
        words.append(f"--{letter} {shown}".rstrip())
    return " ".join(words)


# ---------------------------------------------------------------- values


def _read(name: str, text: str, given: str, source: str) -> tuple[Any, Problem | None]:
    """One option's text as its value."""
    if name in ("negative_prompt", "sampler"):
        return text, None
    try:
        value: int | float = float(text) if name == "scale" else int(text)
    except ValueError:
        kind = "a number" if name == "scale" else "a whole number"
        return None, Problem(OPTION, f"the {name} should be {kind}", given, source)
    return value, _out_of_range(name, value, given, source)


def _out_of_range(name: str, value: float, given: str, source: str) -> Problem | None:
    low, high = RANGES[name]
    if low <= value <= high:
        return None
    return Problem(OPTION, f"the {name} should be {low:g} to {high:g}", given, source)


def _unused(name: str, given: str, source: str, known: tuple[str, ...]) -> Problem:
    if name.lower() in OTHER_FAMILIES:
        message, remedy = "is not used by this kind of model", ""
    else:
        near = nearest(re.sub(r"\W", "", name.lower()), known)
        message = "is no option of a prompt and is left out"
        remedy = f"Did you mean {near}?" if near and len(near) > 1 else f"Known: {', '.join(known)}"
    return Problem(OPTION, message, given, source, remedy, severity="warning")


# ---------------------------------------------------------------- TOML and JSON


def _parse_toml(text: str, *, source: str = "") -> tuple[list[PromptLine], list[Problem]]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return [], [Problem(OPTION, f"is no valid TOML: {error}", source=source)]
    shared = content.get("prompt")
    if not isinstance(shared, dict):
        return [], [Problem(OPTION, "should have a [prompt] table with [[prompt.subset]] entries", source=source)]
    subsets = shared.get("subset", [{}])
    common = {key: value for key, value in shared.items() if key != "subset"}
    return _parse_entries([{**common, **subset} for subset in subsets], source)


def _parse_json(text: str, *, source: str = "") -> tuple[list[PromptLine], list[Problem]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        return [], [Problem(OPTION, f"is no valid JSON: {error}", source=source)]
    if not isinstance(content, list):
        return [], [Problem(OPTION, "should be a list of prompts", source=source)]
    return _parse_entries(content, source)


def _parse_entries(entries: list[Any], source: str) -> tuple[list[PromptLine], list[Problem]]:
    lines: list[PromptLine] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries, start=1):
        place = f"{source} entry {number}"
        line, found = parse_line(entry, source=place) if isinstance(entry, str) else _parse_entry(entry, place)
        lines += [line] if line is not None else []
        problems += found
    return lines, problems


def _parse_entry(entry: Any, source: str) -> tuple[PromptLine | None, list[Problem]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        return None, [Problem(OPTION, "each entry needs a prompt", str(entry), source)]
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in entry.items():
        name = NAMES.get(key)
        if name is None:
            problems.append(_unused(key, f"{key} = {value}", source, tuple(NAMES)))
            continue
        problem = _wrong_entry(name, value, f"{key} = {value!r}", source)
        problems += [problem] if problem else []
        values |= {} if problem else {name: float(value) if name == "scale" else value}
    return PromptLine(source=source, **values), problems


def _wrong_entry(name: str, value: Any, given: str, source: str) -> Problem | None:
    if name in ("prompt", "negative_prompt", "sampler"):
        return None if isinstance(value, str) else Problem(OPTION, f"the {name} should be text", given, source)
    allowed = (int, float) if name == "scale" else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        kind = "a number" if name == "scale" else "a whole number"
        return Problem(OPTION, f"the {name} should be {kind}", given, source)
    return _out_of_range(name, value, given, source)
