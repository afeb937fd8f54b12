"""A run's configuration: Options groups, built from files, flags and the form, with every error at once."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from trainer import plugins
from trainer.errors import ConfigError, Problem
from trainer.schema import Options, OptionSpec, nearest, opt, specs_of, validate
from trainer.store import Sourced, Values, render_config

C = TypeVar("C", bound="RunConfig")


class RunFolderOptions(Options):
    """Where a run is written down."""

    title: ClassVar[str] = "Run folder"

    run_dir: Path | None = opt(None, widget="folder")
    """Folder of this run: its configuration, events, log and samples. Unset: runs/<time>-<output_name> under the
    current folder."""


class RunOptions(RunFolderOptions):
    """Where a training is written down, and what is said of it."""

    training_comment: str = opt("", widget="text")
    """A note kept in the saved model's metadata."""


@dataclass(frozen=True)
class RunConfig:
    """The options of one task: a dataclass whose fields are Options groups.

    A field annotated with a `Slot` holds the options of one plug-in, chosen by a flat option (`network_module`).
    sources: flat name -> where its value was set; a name not in it has its default.
    """

    task: ClassVar[str] = ""
    sources: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def problems(self) -> Iterator[Problem]:
        """What is wrong between options of different groups."""
        yield from ()

    def flat(self) -> dict[str, Any]:
        """Every option by its flat name."""
        return {name: value for group in self.groups().values() for name, value in group.items()}

    def groups(self) -> dict[str, dict[str, Any]]:
        """Every option by the title of its group, in the order of declaration."""
        found: dict[str, dict[str, Any]] = {}
        for name in group_fields(type(self)):
            options: Options = getattr(self, name)
            found.setdefault(type(options).title, {}).update(
                {option: getattr(options, option) for option in type(options).model_fields}
            )
        return found

    def toml(self) -> str:
        """The configuration as a TOML that gives it back in a run of its own: run_dir is not a part of it."""
        groups = {title: {**values, "run_dir": None} if "run_dir" in values else values
                  for title, values in self.groups().items()}  # fmt: skip
        return render_config(groups, heading=f"task {self.task}; every option with its value")


@dataclass(frozen=True)
class Slot:
    """Where a plug-in's options stand: `package` is searched for subclasses of `base` (package.base:Base).

    The class of the options is `Plugin.Options`, chosen by the option `key`, which the base's Options declare with an
    explicit default: `adapter: Annotated[AdapterOptions, Slot(...)]`.
    """

    package: str
    base: str
    key: str

    def kinds(self) -> Mapping[str, type[Any]]:
        """kind -> plug-in class."""
        base_module, _, base_name = self.base.partition(":")
        base = getattr(__import__(base_module, fromlist=[base_name]), base_name)
        return plugins.discover(self.package, base)


def group_fields(config: type[RunConfig]) -> dict[str, tuple[type[Options], Slot | None]]:
    """field -> (its Options class, its slot if it is one)."""
    hints = typing.get_type_hints(config, include_extras=True)
    found: dict[str, tuple[type[Options], Slot | None]] = {}
    for name in (f.name for f in dataclasses.fields(config) if f.name != "sources"):
        owner, *extras = typing.get_args(hints[name]) or (hints[name],)
        found[name] = (owner, next((extra for extra in extras if isinstance(extra, Slot)), None))
    return found


def specs(config: type[RunConfig]) -> tuple[OptionSpec, ...]:
    """All options of a task, plug-ins' options included, each flat name once."""
    cached: Any = _specs
    found: tuple[OptionSpec, ...] = cached(config)
    return found


@cache
def _specs(config: type[RunConfig]) -> tuple[OptionSpec, ...]:
    found: dict[str, OptionSpec] = {}
    for name, (base, plug) in group_fields(config).items():
        for spec in specs_of(base, name):
            assert spec.name not in found, f"{spec.name} is declared by {found[spec.name].owner} and {base}"
            found[spec.name] = spec
        if plug is None:
            continue
        for kind, plugin in plug.kinds().items():
            for spec in specs_of(plugin.Options, name):
                if spec.name in base.model_fields:
                    continue
                before = found.get(spec.name)
                kinds = (*before.when[plug.key], kind) if before else (kind,)
                found[spec.name] = dataclasses.replace(spec, when={plug.key: kinds})
    return tuple(found.values())


def build(config: type[C], values: Values) -> C:
    """A configuration from flat values; ConfigError holds every problem, each with where its value was set."""
    known = {spec.name: spec for spec in specs(config)}
    values, problems = _known_values(values, known)
    groups: dict[str, Options] = {}
    for name, (base, plug) in group_fields(config).items():
        owner = _owner(base, plug, values, known)
        given = {k: values[k].value for k in owner.model_fields if k in values}
        options, found = validate(owner, given)
        problems += [dataclasses.replace(p, source=_source(values, p.option)) for p in found]
        if options is None:
            problems += _unknown_kind(plug, values, known)
        else:
            groups[name] = options
            problems += [
                dataclasses.replace(p, source=p.source or _source(values, p.option)) for p in options.problems()
            ]
    if len(groups) == len(group_fields(config)):
        built = config(**groups, sources={k: v.source for k, v in values.items()})
        problems += [dataclasses.replace(p, source=p.source or _source(values, p.option)) for p in built.problems()]
        if not any(p.severity == "error" for p in problems):
            return built
    raise ConfigError([p for p in problems if p.severity == "error"])


def warnings_of(config: RunConfig) -> list[Problem]:
    """Problems of severity "warning" of a built configuration, and options set that have no meaning here."""
    found = [p for name in group_fields(type(config)) for p in getattr(config, name).problems()]
    found += list(config.problems())
    flat = config.flat()
    for spec in specs(type(config)):
        if spec.name in config.sources and any(flat[key] not in kinds for key, kinds in spec.when.items()):
            said = ", ".join(f"{key} {flat[key]}" for key in spec.when)
            found.append(Problem(spec.name, f"has no effect with {said}", severity="warning"))
    return [p for p in found if p.severity == "warning"]


def layered(*layers: Values) -> dict[str, Sourced]:
    """Later layers win: config file, then flags."""
    return {name: value for layer in layers for name, value in layer.items()}


def _known_values(values: Values, known: Mapping[str, OptionSpec]) -> tuple[dict[str, Sourced], list[Problem]]:
    aliases = {alias: spec.name for spec in known.values() for alias in spec.aliases}
    found: dict[str, Sourced] = {}
    problems: list[Problem] = []
    for name, sourced in values.items():
        if name in known or name in aliases:
            found[aliases.get(name, name)] = sourced
            continue
        near = nearest(name, list(known))
        remedy = f"Did you mean {near}?" if near else "Remove it, or see docs/options.md for all names"
        problems.append(Problem(name, "is not an option of this task", repr(sourced.value), sourced.source, remedy))
    return found, problems


def _owner(base: type[Options], plug: Slot | None, values: Values, known: Mapping[str, OptionSpec]) -> type[Options]:
    if plug is None:
        return base
    kind = values[plug.key].value if plug.key in values else known[plug.key].default
    plugin = plug.kinds().get(kind)
    # an unknown kind is reported by the base's own check of its choices
    owner: type[Options] = plugin.Options if plugin else base
    return owner


def _unknown_kind(plug: Slot | None, values: Values, known: Mapping[str, OptionSpec]) -> list[Problem]:
    """A plug-in that does not exist, where other errors keep the group's own check from saying so."""
    if plug is None or plug.key not in values or values[plug.key].value in plug.kinds():
        return []
    given = values[plug.key]
    return [Problem(plug.key, f"should be one of {', '.join(plug.kinds())}", repr(given.value), given.source)]


def _source(values: Values, name: str) -> str:
    return values[name].source if name in values else ""


def changed(config: type[RunConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Only what differs from the defaults, for presets; a slot's key is always kept."""
    keys = {plug.key for _, plug in group_fields(config).values() if plug}
    by_name = {spec.name: spec for spec in specs(config)}
    return {k: v for k, v in values.items() if k in by_name and (k in keys or v != by_name[k].default)}


def option_names(config: type[RunConfig]) -> Sequence[str]:
    """All flat names of a task."""
    return [spec.name for spec in specs(config)]
