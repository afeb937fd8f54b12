"""Presets on the page: which there are, what loading one changes, and saving one without paths or secrets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_gui.settings import Settings
from trainer.config import RunConfig, changed, specs
from trainer.errors import ConfigError, Problem
from trainer.run_folder import check_name
from trainer.schema import OptionSpec, nearest, validate
from trainer.store import Preset, read_preset, write_preset

MEMORY = "memory-"
USER = "user/"


@dataclass(frozen=True)
class Loaded:
    """A preset with what is wrong with it: usable values, and a problem for each key that is not."""

    preset: Preset
    values: Mapping[str, Any]
    problems: tuple[Problem, ...]


def names(settings: Settings, task: str) -> list[str]:
    """All presets of a task, shipped ones first; the person's own begin with user/."""
    shipped = [p.stem for p in _files(settings.shipped_presets / task) if not p.stem.startswith(MEMORY)]
    return shipped + [USER + p.stem for p in _files(settings.user_presets / task)]


def memory_presets(settings: Settings, config: type[RunConfig]) -> dict[str, Preset]:
    """The patches of the memory list by their headings, in order of their file names."""
    files = [p for p in _files(settings.shipped_presets / config.task) if p.stem.startswith(MEMORY)]
    presets = [read_preset(path, [config.task]) for path in files]
    return {preset.about: preset for preset in presets}


def load(settings: Settings, config: type[RunConfig], name: str) -> Loaded:
    """A preset by its name in `names`."""
    return check(config, read_preset(path_of(settings, config.task, name), [config.task]))


def load_file(config: type[RunConfig], path: Path) -> Loaded:
    """A preset a person uploaded."""
    return check(config, read_preset(path, [config.task]))


def path_of(settings: Settings, task: str, name: str) -> Path:
    """The file of a preset; a name never leads out of the presets' folders."""
    own = name.startswith(USER)
    folder = (settings.user_presets if own else settings.shipped_presets) / task
    stem = name.removeprefix(USER)
    if name not in names(settings, task) and not stem.startswith(MEMORY) or check_name(stem):
        raise ConfigError([Problem("preset", "there is no such preset", name)])
    return folder / f"{stem}.json"


def check(config: type[RunConfig], preset: Preset) -> Loaded:
    """Split a preset into what can be used and a problem for each key that cannot."""
    known = {spec.name: spec for spec in specs(config)}
    good: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in preset.values.items():
        found = _problems_of(known, name, value)
        problems += [Problem(p.option, p.message, p.value, f"preset {preset.name}", p.remedy) for p in found]
        if not found:
            good[name] = value
    return Loaded(preset, good, tuple(problems))


def _problems_of(known: Mapping[str, OptionSpec], name: str, value: Any) -> list[Problem]:
    if name not in known:
        near = nearest(name, list(known))
        remedy = f"Did you mean {near}? It was left out" if near else "It was left out"
        return [Problem(name, "is not an option of this task", repr(value), "", remedy)]
    spec = known[name]
    if not _belongs(spec):
        return [Problem(name, "is a path or a secret, which a preset does not set", None, "", "It was left out")]
    return [p for p in validate(spec.owner, {name: value})[1] if p.option == name]


def differences(
    options: Sequence[OptionSpec], before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(option, before, after) for all that a preset may set and that it changes; None is unset."""
    found = []
    for spec in options:
        if not _belongs(spec):
            continue
        old, new = (values.get(spec.name, spec.default) for values in (before, after))
        if old != new:
            found.append((spec.name, old, new))
    return found


def patched(config: type[RunConfig], before: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The form's values after a preset: what presets never hold stays, everything else is the patch over defaults."""
    kept = {spec.name for spec in specs(config) if not _belongs(spec)}
    return {name: value for name, value in before.items() if name in kept} | dict(patch)


def save(settings: Settings, config: type[RunConfig], name: str, values: Mapping[str, Any], about: str = "") -> Path:
    """Save the differences from the defaults as the person's own preset, without paths and secrets."""
    problem = check_name(name)
    if problem:
        raise ConfigError([Problem("preset", f"the name {problem}", name)])
    if name.startswith(MEMORY):
        raise ConfigError([Problem("preset", f"names beginning with {MEMORY} are the memory list's", name)])
    by_name = {spec.name: spec for spec in specs(config)}
    kept = {k: v for k, v in changed(config, values).items() if _belongs(by_name[k])}
    path = settings.user_presets / config.task / f"{name}.json"
    write_preset(path, Preset(name, config.task, kept, about))
    return path


def exists(settings: Settings, config: type[RunConfig], name: str) -> bool:
    """Whether saving under this name would replace a preset."""
    return (settings.user_presets / config.task / f"{name}.json").exists()


def _belongs(spec: OptionSpec) -> bool:
    """Whether a preset may hold the option: no paths, no secrets, no names of this one run."""
    return spec.type is not Path and not spec.secret and spec.name not in NOT_IN_PRESETS


NOT_IN_PRESETS: Collection[str] = ("pretrained_model_name_or_path", "output_name")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))
