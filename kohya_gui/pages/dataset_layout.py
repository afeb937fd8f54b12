"""Make kohya's folder layout from the data set's folders: img/10_shs dog and reg/1_dog, by copying."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from kohya_gui import dataset_files, dataset_toml, pictures
from kohya_gui import dataset_views as views
from kohya_gui.background import Work
from kohya_gui.dataset_files import Copy
from kohya_gui.datasets import count
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.dataset_parts import LIVE, Shared, session
from trainer.errors import DataError, TrainerError


class LayoutPart:
    """What would be made, a name, and the button that makes it."""

    def lay(self) -> None:
        with gr.Column(elem_classes="section", elem_id="ds-layout"):
            gr.HTML(
                "<h2>Copy into training folders <small>for tools that read repeats and words from folder names"
                "</small></h2><p class='note'>The folders of this data set are copied to img/10_shs dog and reg/1_dog, "
                "named by their repeats and words. Your own files are neither moved nor changed.</p>"
            )
            self.plan = gr.HTML(elem_id="ds-layout-plan", elem_classes="note")
            with gr.Row():
                self.name = gr.Textbox(
                    "",
                    label="Name of the new folder",
                    info="It is made under datasets/",
                    elem_id="ds-layout-name",
                    elem_classes="field",
                    max_lines=1,
                    placeholder="my-dog",
                )
                self.button = gr.Button(
                    "Copy", variant="primary", size="sm", scale=0, min_width=120, elem_id="ds-layout-copy"
                )
                self.cancel = gr.Button("Cancel", size="sm", visible=False, scale=0, elem_id="ds-layout-cancel")
            self.said = gr.HTML(elem_id="ds-layout-said", elem_classes="note")

    def attach(self, shared: Shared) -> None:
        """Wire the part."""
        self.shared = shared
        shared.text.change(self.see, [shared.text, shared.base], self.plan, **LIVE)
        self.button.click(self.make, [shared.text, shared.base, self.name], [self.said, self.cancel], **QUIET)
        self.cancel.click(self.stop, None, None, **QUIET)

    def see(self, text: str, base: str) -> str:
        """The folders that would be made."""
        try:
            copies = self._copies(text, base)
        except TrainerError as error:
            return views.bad(str(error))
        lines = [f"<li><code>{pictures.escaped(c.name)}</code> {count(len(c.files), 'file')}</li>" for c in copies]
        return f"<ul>{''.join(lines)}</ul>" if lines else "There are no folders in this data set yet."

    def _copies(self, text: str, base: str) -> list[Copy]:
        entries = self.shared.counted(text, base)
        if described := [e for e in entries if e.subset.metadata_file]:
            remedy = "This layout has no place for captions of metadata files"
            raise DataError(f"{described[0].folder.name} is described by a metadata file", remedy=remedy)
        return dataset_files.layout(
            [(e.folder, e.subset.repeats, e.subset.words, e.subset.extension, e.subset.is_reg) for e in entries]
        )

    def make(self, text: str, base: str, name: str, request: gr.Request) -> Iterator[list[Any]]:
        """Copy, with progress."""
        hide = gr.update(visible=False)
        if not name.strip():
            yield [views.bad("the new folder needs a name"), hide]
            return
        target = self.shared.settings.datasets / name.strip()
        try:
            copies = self._copies(text, base)
            work = Work(lambda go: dataset_files.copy_into(target, copies, go))
            for now in self.shared.works.run(session(request), work):
                yield [views.copying(now.done, now.total), gr.update(visible=True)]
            said = f"{count(work.result, 'file')} copied to {target}. To train from it by hand: "
        except dataset_files.Cancelled:
            yield [views.good("Cancelled; nothing was left behind."), hide]
            return
        except TrainerError as error:
            yield [views.bad(str(error)), hide]
            return
        flags = f"--train_data_dir {target / 'img'}" + (f" --reg_data_dir {target / 'reg'}" if _has_reg(text) else "")
        yield [f"{views.good(said)}<code>{pictures.escaped(flags)}</code>", hide]

    def stop(self, request: gr.Request) -> None:
        """Cancel was pressed."""
        self.shared.works.cancel(session(request))


def _has_reg(text: str) -> bool:
    return any(subset.is_reg for subset in dataset_toml.subsets(text))
