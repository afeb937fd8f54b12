"""Write the reference page of all options: `python -m trainer options > docs/options.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer import config as run_config
from trainer.store import render_reference
from trainer.tasks.base import Command


def page() -> str:
    """docs/options.md as it should be."""
    from trainer.tasks import commands

    found = {name: command.config for name, command in commands().items()}
    return render_reference({name: run_config.specs(config) for name, config in found.items() if config})


def main(argv: Sequence[str]) -> int:
    """Print the page."""
    sys.stdout.write(page())
    return 0


COMMAND = Command("options", "Print the reference page of all options.", main)
