"""Tasks: what `python -m trainer NAME` can do, one file each.

A module of this package that holds `COMMAND` is a command; the training tasks among them also hold `TASK`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TypeVar

from trainer.tasks.base import Command, Task

T = TypeVar("T")


KOHYA_NAMES: Mapping[str, tuple[str, str]] = {
    "sdxl_train_network": ("train_network", "--sdxl"),
    "sdxl_train": ("fine_tune", "--sdxl"),
    "sdxl_train_textual_inversion": ("train_textual_inversion", "--sdxl"),
}
"""Scripts of sd-scripts that are another task here with a flag, which the model has to agree with."""


@cache
def commands() -> Mapping[str, Command]:
    """Every command by name."""
    own = {command.name: command for command in _found("COMMAND", Command)}
    return {**own, **{name: _with_flag(name, own[of], flag) for name, (of, flag) in KOHYA_NAMES.items()}}


def _with_flag(name: str, command: Command, flag: str) -> Command:
    return Command(name, f"The same as {command.name} {flag}.", lambda argv: command.main([*argv, flag]))


@cache
def tasks() -> Mapping[str, Task]:
    """The tasks that run as jobs with a configuration and a run folder, by name."""
    return {task.name: task for task in _found("TASK", Task)}


def _found(name: str, kind: type[T]) -> Iterator[T]:
    """What the modules of this package hold under a name."""
    for info in pkgutil.iter_modules(__path__):
        value = vars(importlib.import_module(f"{__name__}.{info.name}")).get(name)
        if isinstance(value, kind):
            yield value
