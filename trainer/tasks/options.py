"""Write the reference page of all options: `python -m trainer options > docs/options.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer import config as run_config
from trainer.data.config import DatasetTableOptions, SubsetDefaults, SubsetOptions
from trainer.schema import OptionSpec, specs_of
from trainer.store import render_reference
from trainer.tasks.base import Command


def page() -> str:
    """docs/options.md as it should be."""
    from trainer.tasks import commands

    configs = {name: command.config for name, command in commands().items()}
    of_commands = {name: run_config.specs(config) for name, config in configs.items() if config}
    return render_reference({**of_commands, "dataset file": dataset_file_keys()})


def dataset_file_keys() -> tuple[OptionSpec, ...]:
    """Every key of a dataset file once, the ones that every table can hold first."""
    everywhere = specs_of(SubsetDefaults)
    names = {spec.name for spec in everywhere}
    more = (*specs_of(DatasetTableOptions), *specs_of(SubsetOptions))
    return (*everywhere, *(spec for spec in more if spec.name not in names))


def main(argv: Sequence[str]) -> int:
    """Print the page."""
    sys.stdout.write(page())
    return 0


COMMAND = Command("options", "Print the reference page of all options.", main)
