"""Tasks: what `python -m trainer NAME` can do, one file each.

A module of this package that holds `COMMAND` is a command; the training tasks among them also hold `TASK`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from trainer.tasks.base import Command, Task


@cache
def commands() -> Mapping[str, Command]:
    """Every command by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if isinstance(command := vars(module).get("COMMAND"), Command):
            found[command.name] = command
    return found


@cache
def tasks() -> Mapping[str, Task]:
    """The tasks that run as jobs with a configuration and a run folder, by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if isinstance(task := vars(module).get("TASK"), Task):
            found[task.name] = task
    return found
