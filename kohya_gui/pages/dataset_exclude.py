"""Leave pictures out: their files stay, and the data set goes on with a copy of the others under datasets/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import dataset_files, dataset_toml, report_views
from kohya_gui import dataset_views as views
from kohya_gui.background import Work
from kohya_gui.dataset_files import Copy
from kohya_gui.dataset_findings import Counted
from kohya_gui.dataset_report import Report
from kohya_gui.datasets import count
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.dataset_parts import Shared, html, read_view, session
from kohya_gui.pictures import safe_stem
from kohya_gui.report_views import View
from trainer.errors import DataError, TrainerError


class ExcludePart:
    """A line on what is left out, and the button that copies the rest."""

    def lay(self) -> None:
        with gr.Row(visible=False, elem_id="ds-exclude-row") as self.row:
            self.note = html("ds-excluded", classes="note")
            self.name = gr.Textbox(
                "",
                label="Name of the copy",
                max_lines=1,
                elem_id="ds-exclude-name",
                elem_classes="field",
                min_width=180,
            )
            self.copy = gr.Button("Copy the others", size="sm", scale=0, min_width=140, elem_id="ds-exclude-copy")
            self.cancel = gr.Button("Cancel", size="sm", visible=False, scale=0, elem_id="ds-exclude-cancel")
        self.said = gr.HTML(elem_classes="note", elem_id="ds-exclude-said")

    @property
    def outputs(self) -> list[Any]:
        """What `show` gives values for."""
        return [self.row, self.note]

    def show(self, report: Report, view: View) -> list[Any]:
        """The line, when anything is excluded."""
        return [gr.update(visible=bool(view.excluded)), report_views.exclusions(report, view)]

    def attach(self, shared: Shared) -> None:
        """Wire the part."""
        self.shared = shared
        asked = [shared.text, shared.base, shared.view, self.name]
        outputs = [shared.text, shared.view, self.said, self.cancel, self.row]
        self.copy.click(self.make, asked, outputs, **QUIET)
        self.cancel.click(self.stop, None, None, **QUIET)

    def make(self, text: str, base: str, view: str, name: str, request: gr.Request) -> Iterator[list[Any]]:
        """Copy what is kept of every folder with excluded pictures, and use the copies."""
        excluded = read_view(view).excluded
        entries = [e for e in self.shared.counted(text, base) if _holds(e, excluded)]
        target = self.shared.settings.datasets / (safe_stem(name) if name.strip() else "kept")
        hide = gr.update(visible=False)
        try:
            copies = _copies(entries, excluded)
            work = Work(lambda go: dataset_files.copy_into(target, copies, go))
            for now in self.shared.works.run(session(request), work):
                yield [gr.skip(), gr.skip(), views.copying(now.done, now.total), gr.update(visible=True), gr.skip()]
            number = work.result
        except dataset_files.Cancelled:
            yield [gr.skip(), gr.skip(), views.good("Cancelled; nothing was left behind."), hide, gr.skip()]
            return
        except TrainerError as error:
            yield [gr.skip(), gr.skip(), views.bad(str(error)), hide, gr.skip()]
            return
        for entry, copy in zip(entries, copies, strict=True):
            text = dataset_toml.change(text, entry.subset.place, {"image_dir": str(target / copy.name)})
        said = f"{count(number, 'file')} copied to {target}; the data set uses the copy now. Check it again."
        yield [text, "", views.good(said), hide, hide]

    def stop(self, request: gr.Request) -> None:
        """Cancel was pressed."""
        self.shared.works.cancel(session(request))


def _holds(entry: Counted, excluded: frozenset[str]) -> bool:
    return any(Path(path).parent == entry.folder for path in excluded)


def _copies(entries: list[Counted], excluded: frozenset[str]) -> list[Copy]:
    """A folder for each, under its own name."""
    if not entries:
        raise DataError("none of the excluded pictures lies in a folder of this data set any more")
    if described := [e for e in entries if e.subset.metadata_file]:
        name = described[0].subset.metadata_file
        raise DataError(f"these pictures are named in {name}", remedy="Take their entries out of that file")
    names: list[str] = []
    for entry in entries:
        name, number = entry.folder.name, 2
        while name in names:
            name, number = f"{entry.folder.name}-{number}", number + 1
        names.append(name)
    pairs = zip(names, entries, strict=True)
    kept = [(n, dataset_files.with_captions(e.folder, e.subset.extension, without=excluded)) for n, e in pairs]
    if empty := [name for name, files in kept if not files]:
        raise DataError(f"nothing would be left of {empty[0]}", remedy="Remove the folder from the data set instead")
    return [Copy(name, tuple(files)) for name, files in kept]
