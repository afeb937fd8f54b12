"""Opens the studio's page: `python gui.py --help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kohya_gui import server

if TYPE_CHECKING:
    import gradio as gr


def build(settings: server.ServerSettings) -> gr.Blocks:
    """The page; imported here because Gradio reads its environment variables at import."""
    from kohya_gui import app

    return app.build(settings)


if __name__ == "__main__":
    sys.exit(server.main(sys.argv[1:], home=Path.cwd(), build=build))
