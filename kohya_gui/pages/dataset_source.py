"""The top of the Dataset tab: where the pictures are, what was found there, and how they are described."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import dataset_files, dataset_findings, dataset_toml, datasets, pictures, sentences, tokens
from kohya_gui import dataset_views as views
from kohya_gui.background import Work
from kohya_gui.datasets import Found, Kind
from kohya_gui.folders import within
from kohya_gui.pages.browser import QUIET
from kohya_gui.pages.dataset_parts import LIVE, Shared, hidden, html, session
from kohya_gui.request import path_of
from trainer.errors import TrainerError

KINDS: tuple[tuple[str, Kind], ...] = (
    ("Identifier and class: quick, no captions; all that the pictures share is learned", "class"),
    ("Captions: a text file for each picture; what is named there stays changeable", "captions"),
    ("Fine-tuning metadata: one JSON file for a large collection; no class pictures", "metadata"),
)


class SourcePart:
    """The box, the drop zone, what was found, and the chooser of the three kinds."""

    def __init__(self) -> None:
        self.browse = gr.Button("Browse…", render=False)
        self.browse_metadata = gr.Button("Browse…", render=False)

    def lay(self) -> None:
        with gr.Row(equal_height=False, elem_id="ds-top"):
            with gr.Column(scale=1, min_width=460, elem_classes="section"):
                gr.HTML("<h2><b>1</b>Pictures</h2>")
                with gr.Row():
                    self.box = gr.Textbox(
                        "",
                        label="Folder or dataset file",
                        info="Pictures, training folders (10_shs dog), or .toml",
                        elem_id="ds-source",
                        elem_classes="field",
                        buttons=[self.browse],
                        max_lines=1,
                        scale=3,
                        min_width=280,
                    )
                    self.upload = gr.File(
                        label="Drop pictures, captions or a zip",
                        file_count="multiple",
                        file_types=["image", *pictures.CAPTIONS, ".zip"],
                        height=88,
                        elem_classes="drop",
                        elem_id="ds-upload",
                        scale=2,
                        min_width=180,
                    )
                self.found = html("ds-found", classes="note", value=views.found(None))
                self.upload_note = gr.HTML(elem_classes="note", elem_id="ds-upload-note")
                self.cancel = gr.Button("Cancel", size="sm", visible=False, elem_id="ds-upload-cancel", scale=0)
            with gr.Column(scale=1, min_width=460, elem_classes="section"):
                gr.HTML("<h2><b>2</b>How they are described</h2>")
                self.kind = gr.Radio(list(KINDS), value="class", show_label=False, container=False, elem_id="ds-kind")
                self.words = gr.Textbox(
                    "",
                    label="Identifier and class",
                    elem_id="ds-words",
                    elem_classes="field",
                    placeholder="shs dog",
                    max_lines=1,
                )
                self.words_note = html("ds-words-note", classes="note", value=views.identifier("", {}, 0))
                self.metadata = gr.Textbox(
                    "",
                    label="Metadata file",
                    elem_id="ds-metadata",
                    elem_classes="field",
                    buttons=[self.browse_metadata],
                    max_lines=1,
                    visible=False,
                )
                self.kind_note = gr.HTML(elem_classes="note", elem_id="ds-kind-note")
        self.described = hidden("ds-described")

    def attach(self, demo: gr.Blocks, shared: Shared, save_path: gr.Textbox) -> None:
        """Wire the part. save_path: where the data set would be saved."""
        self.shared = shared
        self.save_path = save_path
        chosen = [shared.text, shared.base, shared.origin, shared.made]
        self.begun: list[Any] = [*chosen, self.kind, self.words, self.metadata, save_path]
        current = [self.box, shared.text, shared.made]
        self.box.change(self.see, current, [self.found, *self.begun], **LIVE)
        self.found.click(self.act, [*current, shared.base], [self.box, self.found, *self.begun], **QUIET)
        shared.text.change(self.see_words, [shared.text, shared.base, self.words], self.words_note, **LIVE)
        self.words.change(self.see_words, [shared.text, shared.base, self.words], self.words_note, **LIVE)
        self.words.input(self.set_words, [shared.text, self.words], shared.text, **LIVE)
        self.words_note.click(self.pick_word, [shared.text, self.words], [self.words, shared.text], **QUIET)
        described = [shared.text, shared.base, self.kind, self.metadata]
        self.kind.input(self.set_kind, described, shared.text, **QUIET)
        self.metadata.change(self.set_metadata, described, shared.text, **LIVE)
        seen = [self.kind_note, self.words, self.words_note, self.metadata]
        for changed in (shared.text.change, self.kind.change):
            changed(self.see_kind, [shared.text, shared.base, self.kind], seen, **LIVE)
        self.upload.upload(self.take, self.upload, [self.box, self.upload, self.upload_note, self.cancel], **QUIET)
        self.cancel.click(self.stop, None, None, **QUIET)
        # the description stays in the browser: a reload and a restarted server find it again, saved or not
        kept = [self.box, *self.begun]
        keep = "(...values) => { window.studio.describe(values); }"
        gr.on([component.change for component in kept], None, kept, None, js=keep)
        # the path comes last: what it holds is looked at then, and must not be taken for all there is
        demo.load(
            self.restore, self.described, [self.described, *self.begun], js="() => window.studio.described()", **QUIET
        ).then(lambda path: path or gr.skip(), self.described, self.box, **QUIET)

    def restore(self, text: str) -> list[Any]:
        """The path and the rest of what the browser kept; nothing where it does not fit this page."""
        try:
            kept = json.loads(text) if text else []
        except json.JSONDecodeError:
            kept = []
        kinds = [kind for _, kind in KINDS]
        fits = isinstance(kept, list) and len(kept) == 1 + len(self.begun) and all(isinstance(v, str) for v in kept)
        if not fits or kept[1 + self.begun.index(self.kind)] not in kinds:
            return ["", *[gr.skip() for _ in self.begun]]
        return list(kept)

    # what was found

    def see(self, typed: str, text: str, made: str) -> list[Any]:
        """Say what the path holds; describe it at once unless that would throw a person's work away."""
        skip = [gr.skip() for _ in self.begun]
        if not typed.strip():
            return [views.found(None), *skip]
        found = datasets.recognise(path_of(typed, self.shared.settings))
        other_work = bool(text.strip()) and text != made
        said = views.found(found, has_other_work=other_work)
        if other_work:
            return [said, *skip]
        return [said, *(self.nothing() if found.what == "unusable" else self.begin(found))]

    @staticmethod
    def nothing() -> list[Any]:
        """The page without a data set: the one of before does not stay behind a path that cannot be used."""
        return ["", "", "", "", gr.skip(), "", "", ""]

    def begin(self, found: Found) -> list[Any]:
        """The page for what was found."""
        settings = self.shared.settings
        try:
            text = datasets.describe(found, kind=found.kind)
        except TrainerError:
            return [gr.skip() for _ in self.begun]
        is_file = found.what == "toml"
        subsets = [subset for subset in dataset_toml.subsets(text) if not subset.is_reg]
        kind: Kind = found.kind
        if is_file:
            kind = "metadata" if any(s.metadata_file for s in subsets) else "captions"
            kind = "class" if all(s.words and "caption_extension" not in s.all for s in subsets) else kind
        words = subsets[0].words if len(subsets) == 1 else ""
        metadata = next((s.metadata_file for s in subsets if s.metadata_file), str(next(iter(found.metadata), "")))
        writable = is_file and within(found.path, settings.roots)
        path = found.path if writable else settings.datasets / f"{self._name(found)}.toml"
        base = found.path.parent if is_file else settings.home
        origin = str(found.path) if is_file else ""
        return [text, str(base), origin, text, kind, words, metadata, settings.short(path)]

    @staticmethod
    def _name(found: Found) -> str:
        words = found.concepts[0].words if len(found.concepts) == 1 else ""
        return pictures.safe_stem(words or found.path.stem).replace(" ", "-")

    def act(self, typed: str, text: str, made: str, base: str, event: gr.EventData) -> list[Any]:
        """A button beside what was found."""
        if str(event.act) == "use":
            return [str(event.value), gr.skip(), *[gr.skip() for _ in self.begun]]
        found = datasets.recognise(path_of(typed, self.shared.settings))
        said = views.found(found)
        if str(event.act) == "start-found":
            return [gr.skip(), said, *self.begin(found)]
        for subset in dataset_toml.subsets(datasets.describe(found, kind=found.kind)):
            text = dataset_toml.add_subset(text, subset.own)
        return [gr.skip(), said, text, *[gr.skip() for _ in self.begun[1:]]]

    # how they are described

    def see_words(self, text: str, base: str, words: str) -> str:
        """Tokens of the identifier, and captions that use its words."""
        entries = self.shared.counted(text, base)
        captions = list(dataset_findings.captions_of(entries)) if words.strip() else []
        return views.identifier(words, tokens.uses(words, captions), len(captions))

    def set_words(self, text: str, words: str) -> Any:
        """Put the identifier into the one training folder."""
        try:
            return dataset_findings.set_words(text, words)
        except TrainerError:
            return gr.skip()

    def pick_word(self, text: str, words: str, event: gr.EventData) -> list[Any]:
        """Take a rare word as identifier; the class stays."""
        rest = words.split()[1:]
        words = " ".join([str(event.value), *rest])
        return [words, self.set_words(text, words)]

    def set_kind(self, text: str, base: str, kind: Kind, metadata: str) -> Any:
        """Describe the training folders in another way."""
        try:
            return dataset_findings.set_kind(text, self.shared.counted(text, base), kind, metadata)
        except TrainerError:
            return gr.skip()

    def set_metadata(self, text: str, base: str, kind: Kind, metadata: str) -> Any:
        """Another metadata file, where there is to be one."""
        return self.set_kind(text, base, kind, metadata) if kind == "metadata" else gr.skip()

    def see_kind(self, text: str, base: str, kind: Kind) -> list[Any]:
        """What the chosen way needs, and whether it is there."""
        entries = [entry for entry in self.shared.counted(text, base) if not entry.subset.is_reg]
        shows_words = kind != "metadata"
        single = len(entries) <= 1
        label = "Identifier and class" if kind == "class" else "Words for pictures without a caption"
        words = gr.update(visible=shows_words and single, label=label)
        note = gr.update(visible=shows_words and single and kind == "class")
        return [_kind_words(kind, entries), words, note, gr.update(visible=kind == "metadata")]

    # files dropped

    def take(self, files: Sequence[str] | None, request: gr.Request) -> Iterator[list[Any]]:
        """Copy what was dropped into a folder of ours and choose it."""
        if not files:
            return
        folder = self.shared.settings.datasets
        work = Work(lambda go: dataset_files.take([Path(file) for file in files], folder, go))
        for now in self.shared.works.run(session(request), work):
            yield [gr.skip(), gr.skip(), views.copying(now.done, now.total), gr.update(visible=True)]
        hide = gr.update(visible=False)
        try:
            taken = work.result
        except dataset_files.Cancelled:
            yield [gr.skip(), None, views.good("Cancelled; nothing was taken."), hide]
            return
        except TrainerError as error:
            yield [gr.skip(), None, views.bad(str(error)), hide]
            return
        note = sentences.refused(taken.refused[:8])
        if len(taken.refused) > 8:
            note += sentences.refused([f"and {len(taken.refused) - 8} more that were not taken"])
        if taken.folder is None:
            yield [gr.skip(), None, note or views.bad("there was no picture among these files"), hide]
            return
        yield [self.shared.settings.short(taken.folder), None, note, hide]

    def stop(self, request: gr.Request) -> None:
        self.shared.works.cancel(session(request))


def _kind_words(kind: Kind, entries: Sequence[dataset_findings.Counted]) -> str:
    if not entries:
        return ""
    captions, total = sum(e.captions for e in entries), sum(e.pictures for e in entries)
    if kind == "metadata":
        missing = [e for e in entries if e.metadata is None or not e.metadata.is_file()]
        return views.bad("no metadata file is chosen, or it is not there") if missing else ""
    if kind == "captions":
        endings: Mapping[str, None] = dict.fromkeys(e.subset.extension for e in entries)
        said = f"{captions} of {total} pictures have a caption ({', '.join(endings)})."
        return said if captions else f'<span class="warn">{said}</span>'
    if captions:
        said = f"{captions} of {total} pictures have captions, and a caption wins over these words."
        return f'<span class="warn">{said}</span>'
    if len(entries) > 1:
        return "Each folder has its own words, from its name: see Folders and settings."
    return ""
