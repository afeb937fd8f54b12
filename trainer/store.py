"""Read and write options outside Python: TOML files, flags, presets and the reference page, all from OptionSpecs."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from trainer.errors import ConfigError, Problem
from trainer.run_folder import write_atomically
from trainer.schema import OptionSpec, nearest

CONFIG_VERSION = 1
PRESET_VERSION = 1


@dataclass(frozen=True)
class Sourced:
    """A value and where it was set: "--seed", "run.toml line 4", "form", "preset house"."""

    value: Any
    source: str


Values = Mapping[str, Sourced]


# TOML


def parse_toml(path: Path, option: str) -> dict[str, Any]:
    """A TOML file as a dictionary; `option` is the one that named the file, for messages."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        problem = Problem(option, "no such file", str(path), remedy="Check the path")
    except IsADirectoryError:
        problem = Problem(option, "is a folder; a .toml file is wanted", str(path))
    except UnicodeDecodeError as error:
        problem = Problem(option, f"is not UTF-8 text (byte {error.start})", str(path))
    except tomllib.TOMLDecodeError as error:
        problem = Problem(
            option, f"is not valid TOML: {error}", str(path), remedy="Paths with \\ belong between 'single quotes'"
        )
    raise ConfigError([problem])


def line_of(text: str, key: str) -> int:
    """The first line that sets a key in a TOML text, 0 when none does."""
    match = re.search(rf"^[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*=", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 0


def read_config(path: Path, option: str = "config_file") -> dict[str, Sourced]:
    """A run's TOML as flat values; section headers are for people only. kohya's habit of leaving ".toml" off works."""
    if not path.exists() and path.with_suffix(path.suffix + ".toml").exists():
        path = path.with_suffix(path.suffix + ".toml")
    data = parse_toml(path, option)
    text = path.read_text(encoding="utf-8-sig")
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    flat.pop("config_version", None)
    return {key: Sourced(value, f"{path.name} line {line_of(text, key)}") for key, value in flat.items()}


def render_config(groups: Mapping[str, Mapping[str, Any]], *, heading: str) -> str:
    """A run's TOML: a section per group, unset options as comments, so that the file shows all there is."""
    document = tomlkit.document()
    document.add(tomlkit.comment(heading))
    document["config_version"] = CONFIG_VERSION
    for title, values in groups.items():
        table = tomlkit.table()
        for name, value in values.items():
            if value is None or (isinstance(value, list) and not value):
                table.add(tomlkit.comment(f"{name} = (unset)"))
            else:
                table[name] = str(value) if isinstance(value, Path) else value
        document[title.lower().replace(" ", "_")] = table
    return tomlkit.dumps(document)


# flags


def make_parser(specs: Sequence[OptionSpec], *, prog: str, description: str) -> argparse.ArgumentParser:
    """The command line of a task: a flag per option, grouped as the form is; values stay text until validation."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --config_file FILE [options]",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config_file", metavar="FILE", help="A TOML file of options; flags win over it.")
    groups: dict[str, Any] = {}
    for spec in specs:
        title = spec.owner.title
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        names = [f"--{spec.name}", *(f"--{alias}" for alias in spec.aliases)]
        help_text = _flag_help(spec).replace("%", "%%")
        if spec.type is bool:
            group.add_argument(*names, action=argparse.BooleanOptionalAction, dest=spec.name, help=help_text)
        elif spec.many:
            group.add_argument(*names, nargs="*", action="extend", dest=spec.name, metavar="VALUE", help=help_text)
        else:
            group.add_argument(*names, dest=spec.name, metavar=_metavar(spec), help=help_text)
    return parser


def read_flags(specs: Sequence[OptionSpec], parsed: argparse.Namespace) -> dict[str, Sourced]:
    """Parsed flags as values, each text read once as its option's type."""
    by_name = {spec.name: spec for spec in specs}
    values: dict[str, Sourced] = {}
    for name, given in vars(parsed).items():
        spec = by_name.get(name)
        if spec is None:
            continue
        value = [spec.parse(t) for t in given] if spec.many else spec.parse(given) if isinstance(given, str) else given
        values[name] = Sourced(value, f"--{name}")
    return values


def unknown_flags(unknown: Sequence[str], specs: Sequence[OptionSpec]) -> list[Problem]:
    """Problems for the words argparse could not place."""
    names = [f"--{spec.name}" for spec in specs]
    problems = []
    for word in unknown:
        if word.startswith("--"):
            near = nearest(word.split("=")[0], names)
            remedy = f"Did you mean {near}?" if near else "See --help for all options"
            problems.append(Problem(word.split("=")[0].lstrip("-"), "is not an option of this task", remedy=remedy))
    return problems or [Problem("", "does not belong to any option", " ".join(unknown))]


def _metavar(spec: OptionSpec) -> str:
    if spec.choices:
        return "{" + ",".join(map(str, spec.choices)) + "}"
    return {int: "N", float: "X", str: "TEXT", Path: "PATH"}[spec.type]


def _flag_help(spec: OptionSpec) -> str:
    facts = [spec.bounds_text, spec.unit, default_text(spec)]
    return f"{spec.help} [{'; '.join(f for f in facts if f)}]"


def default_text(spec: OptionSpec) -> str:
    """ "required", "unset" or "default 0.1"."""
    if spec.required:
        return "required"
    if spec.default is None or spec.default == [] or spec.default == "":
        return "unset"
    return f"default {str(spec.default).lower() if spec.type is bool else spec.default}"


# presets


@dataclass(frozen=True)
class Preset:
    """A patch over the defaults: it always states its task, and holds only what it changes."""

    name: str
    task: str
    values: Mapping[str, Any]
    about: str = ""


def read_preset(path: Path, tasks: Iterable[str]) -> Preset:
    """A preset file; ConfigError says what makes it unreadable."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError([Problem("", f"cannot be read as JSON: {error}", path.name, remedy="")]) from error
    return preset_of(data, path.stem, tasks)


def preset_of(data: Any, name: str, tasks: Iterable[str]) -> Preset:
    """A preset from parsed JSON."""
    wanted = 'A preset looks like {"preset_version": 1, "task": "train_network", "values": {...}}'
    if not isinstance(data, dict) or not isinstance(data.get("values"), dict):
        raise ConfigError([Problem("", "is not a preset", name, remedy=wanted)])
    if data.get("preset_version") != PRESET_VERSION:
        message = f"is of version {data.get('preset_version')}; this program reads version {PRESET_VERSION}"
        raise ConfigError([Problem("", message, name)])
    known = list(tasks)
    if data.get("task") not in known:
        raise ConfigError([Problem("task", f"should be one of {', '.join(known)}", repr(data.get("task")), name)])
    return Preset(name, data["task"], data["values"], str(data.get("about", "")))


def write_preset(path: Path, preset: Preset) -> None:
    """Write a preset file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, preset_json(preset))


def preset_json(preset: Preset) -> str:
    """A preset as the text of its file."""
    body = {
        "preset_version": PRESET_VERSION,
        "task": preset.task,
        "about": preset.about,
        "values": {k: str(v) if isinstance(v, Path) else v for k, v in preset.values.items()},
    }
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


# the reference page

_BAR = "\\|"  # as a table of Markdown wants it


def render_reference(tasks: Mapping[str, Sequence[OptionSpec]]) -> str:
    """docs/options.md: every option of every task, in the order of the form."""
    lines = ["# Options", "", "Made from the code by `python -m trainer options`; a test compares.", ""]
    for task, specs in tasks.items():
        lines += [f"## {task}", ""]
        title = ""
        for spec in specs:
            if spec.owner.title != title:
                title = spec.owner.title
                lines += [f"### {title}", "", "| option | what it does | values | default |", "|---|---|---|---|"]
            values = ", ".join(map(str, spec.choices)) or " ".join(
                t for t in (spec.type.__name__.lower().replace("path", "path"), spec.bounds_text, spec.unit) if t
            )
            values += " (list)" if spec.many else ""
            default = default_text(spec).removeprefix("default ")
            lines.append(f"| `{spec.name}` | {spec.help.replace('|', _BAR)} | {values} | {default} |")
        lines.append("")
    return "\n".join(lines)
