"""The dialog behind every Browse button: the server's folders within the allowed roots, clicked through to a path."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui.folders import Listing, Wanted, list_folder, list_roots
from kohya_gui.pictures import escaped
from kohya_gui.settings import Settings

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
TITLES: dict[Wanted, str] = {
    "folder": "Choose a folder",
    "model": "Choose a model: a .safetensors file, or a folder in the diffusers layout",
    "pictures": "Choose a folder of pictures, or a saved data set (.toml)",
    "toml": "Choose a file",
}


class FolderBrowser:
    """Lay it once in a tab; `serve` a button and its box each, then `finish`. elem_id: another one for each tab."""

    def __init__(self, settings: Settings, *, elem_id: str = "browser") -> None:
        self.settings = settings
        self.elem_id = elem_id
        self.boxes: dict[str, tuple[gr.Textbox, Wanted]] = {}
        self.target = gr.State("")
        with gr.Column(visible=False, elem_id=elem_id) as self.dialog:
            self.title = gr.HTML()
            self.path = gr.Textbox(label="Folder", elem_id=f"{elem_id}-path", max_lines=1)
            self.entries = gr.Radio([], show_label=False, container=False, elem_id=f"{elem_id}-entries")
            self.note = gr.HTML(elem_classes="note")
            with gr.Row():
                self.up = gr.Button("Up", size="sm", min_width=80)
                self.start = gr.Button("All places", size="sm", min_width=80)
                self.close = gr.Button("Close", size="sm", min_width=80, elem_id=f"{elem_id}-close")
                self.use = gr.Button(
                    "Use this folder", size="sm", variant="primary", min_width=140, elem_id=f"{elem_id}-use"
                )

    def serve(self, name: str, button: gr.Button, box: Any, wanted: Wanted) -> None:
        """Let a button fill a box."""
        self.boxes[name] = (box, wanted)
        shown = button.click(partial(self.open, name), box, self._outputs(), **QUIET)
        shown.then(None, None, None, js=f"() => window.studio.enterDialog('{self.elem_id}')")

    def finish(self) -> None:
        """Wire what the dialog does to all boxes served."""
        boxes = [box for box, _ in self.boxes.values()]
        outputs = [*self._outputs(), *boxes]
        self.entries.input(self.pick, [self.target, self.entries], outputs, **QUIET)
        self.path.submit(self.go, [self.target, self.path], self._outputs(), **QUIET)
        self.up.click(self.go_up, [self.target, self.path], self._outputs(), **QUIET)
        self.start.click(self.go_start, self.target, self._outputs(), **QUIET)
        self.use.click(self.take, [self.target, self.path], outputs, **QUIET)
        self.close.click(lambda: gr.update(visible=False), None, self.dialog, **QUIET)

    def _outputs(self) -> list[Any]:
        return [self.dialog, self.target, self.title, self.path, self.entries, self.note, self.use]

    def open(self, name: str, current: str) -> list[Any]:
        """Show the dialog where the box points to, else at the roots."""
        wanted = self.boxes[name][1]
        path = self.settings.home / Path(current).expanduser() if current.strip() else None
        listing = list_folder(path, self.settings.roots, wanted) if path else list_roots(self.settings.roots)
        return self._show(name, listing)

    def go(self, name: str, typed: str) -> list[Any]:
        """Show a typed folder."""
        return self._show(name, list_folder(Path(typed.strip()).expanduser(), self.settings.roots, self._wanted(name)))

    def go_up(self, name: str, current: str) -> list[Any]:
        """Show the folder above, or the roots."""
        if not current:
            return self.go_start(name)
        here = list_folder(Path(current), self.settings.roots, self._wanted(name))
        return self.go(name, str(here.parent)) if here.parent else self.go_start(name)

    def go_start(self, name: str) -> list[Any]:
        """Show the roots."""
        return self._show(name, list_roots(self.settings.roots))

    def pick(self, name: str, entry: str | None) -> list[Any]:
        """Open a folder of the list, or take a file."""
        path = Path(entry or "")
        if path.is_dir():
            return [*self.go(name, str(path)), *[gr.skip() for _ in self.boxes]]
        return self._taken(name, str(path))

    def take(self, name: str, folder: str) -> list[Any]:
        """Take the folder that is open."""
        if not folder:
            return [*self.go_start(name), *[gr.skip() for _ in self.boxes]]
        return self._taken(name, folder)

    def _taken(self, name: str, path: str) -> list[Any]:
        closed = [gr.update(visible=False), *[gr.skip() for _ in self._outputs()[1:]]]
        return [*closed, *[path if box == name else gr.skip() for box in self.boxes]]

    def _wanted(self, name: str) -> Wanted:
        return self.boxes[name][1] if name in self.boxes else "folder"

    def _show(self, name: str, listing: Listing) -> list[Any]:
        title = f"<h3>{escaped(TITLES[self._wanted(name)])}</h3>"
        more = f"{listing.left_out} more are not shown: type the path. " if listing.left_out else ""
        nothing = "" if listing.entries else "Nothing to choose in here. "
        note = f'<span class="bad">{escaped(listing.problem)}</span>' if listing.problem else escaped(more or nothing)
        return [
            gr.update(visible=True),
            name,
            title,
            str(listing.folder or ""),
            gr.update(choices=[(f"{_mark(path)}{label}", path) for label, path in listing.entries], value=None),
            note,
            gr.update(interactive=listing.folder is not None),
        ]


def _mark(path: str) -> str:
    """Folders that are whole models stand out."""
    return "◆ " if (Path(path) / "model_index.json").is_file() else ""
