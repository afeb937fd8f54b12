"""The fields of the Train tab: what is in sight, what is out of the way, and reading what was typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from kohya_gui import pictures, request
from kohya_gui.folders import Wanted
from kohya_gui.form import Form, info_text
from kohya_gui.request import MODEL, PROMPT_COLUMNS, WRITTEN_BY_PAGE, Request
from trainer.config import specs
from trainer.tasks.train_network import TrainNetworkConfig

BLANK_ROW = [""] * len(PROMPT_COLUMNS)
TRAINING = (
    "resolution",
    "num_repeats",
    "max_train_epochs",
    "train_batch_size",
    "network_dim",
    "network_alpha",
    "learning_rate",
)
BASIC = (
    MODEL,
    "image_dir",
    request.CLASS_DIR,
    "class_word",
    "class_tokens",
    "output_name",
    *TRAINING,
    "sample_prompts",
    "save_every_n_epochs",
)
"""The fields in sight, from top to bottom."""
PAGE_FIELDS = {
    "image_dir": "Pictures",
    request.CLASS_DIR: "Class pictures",
    "class_word": "Class word",
    "class_tokens": "Trigger word",
    "num_repeats": "Repeats",
    "sample_prompts": "Sample prompts",
}
TRIGGER_HELP = "The words that shall call up what you train. Pictures without a caption are trained with these words"
CLASS_HELP = "Pictures of such things in general, so that the model does not forget them"


class TrainFields:
    """The components by what they are for. Lay the basic ones, then all others.

    form: the task's options. browse: name -> (button, box, what it chooses) of paths that are no options.
    """

    def __init__(self, memory: Sequence[str]) -> None:
        self.form = Form(specs(TrainNetworkConfig), left_out=(*WRITTEN_BY_PAGE, "run_dir"))
        self.memory = list(memory)
        self.browse: dict[str, tuple[gr.Button, Any, Wanted]] = {}

    def lay_basic(self) -> None:
        """What everybody needs, from top to bottom."""
        self._lay_model()
        self._lay_pictures()
        self._lay_result()
        self._lay_training()
        self._lay_samples()

    def _lay_model(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(1, "Base model", "what your pictures are taught to"))
            info = f"`{MODEL}` Stable Diffusion 1.x, 2.x or XL: a .safetensors or .ckpt file, or a diffusers folder"
            self.model = self.form.draw(MODEL, label="Base model", info=info)
            self.badge = gr.HTML(elem_classes="note", elem_id="badge")

    def _lay_pictures(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(2, "Pictures", "10 to 50 good ones are enough for a person, a thing or a style"))
            with gr.Row():
                with gr.Column(scale=3, min_width=380):
                    self.pictures = self._path(
                        "image_dir",
                        "Folder of pictures, or a saved data set",
                        "A path on this machine; captions are text files of the same name",
                        "pictures",
                    )
                with gr.Column(scale=2, min_width=220):
                    self.upload = gr.File(
                        label="Drop pictures and captions here",
                        file_count="multiple",
                        file_types=["image", *pictures.CAPTIONS],
                        height=88,
                        elem_classes="drop",
                        elem_id="upload",
                    )
            self.counts = gr.HTML(elem_classes="note", elem_id="counts")
            self.upload_note = gr.HTML(elem_classes="note", elem_id="upload-note")
            with gr.Row():
                self.class_pictures = self._path(
                    request.CLASS_DIR,
                    "Class pictures (optional)",
                    CLASS_HELP,
                    "folder",
                    scale=3,
                )
                self.class_word = _text("class_word", "Class word", "Caption of those without", scale=1)
            self.class_counts = gr.HTML(elem_classes="note", elem_id="class-counts")
            self.trigger = _text("class_tokens", "Trigger word", TRIGGER_HELP)
            self.trigger_note = gr.HTML(elem_classes="note", elem_id="trigger-note")

    def _lay_result(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(3, "Result"))
            with gr.Row():
                with gr.Column(min_width=280):
                    self.form.draw(
                        "output_name",
                        label="Name of the LoRA",
                        info="`output_name` The file's name, without folder or ending",
                    )
                    self.path_note = gr.HTML(elem_classes="note", elem_id="path-note")
                    self.other_name = gr.Button("", visible=False, size="sm", elem_id="other-name")
                with gr.Column(min_width=280):
                    self.memory_box = gr.Dropdown(
                        self.memory,
                        value=self.memory[0],
                        label="Memory",
                        info="What to trade for memory of the graphics card",
                        filterable=False,
                        elem_id="opt-memory",
                        elem_classes="field",
                        interactive=True,
                    )
                    self.memory_note = gr.HTML(elem_classes="note", elem_id="memory-note")

    def _lay_training(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(4, "Training"))
            with gr.Row(elem_classes="option-grid"):
                for name in TRAINING:
                    if name == "num_repeats":
                        self.repeats = _text(name, "Repeats", info_text(request.spec(name)), placeholder="1")
                    else:
                        self.form.draw(name)

    def _lay_samples(self) -> None:
        with gr.Column(elem_classes="section"):
            gr.HTML(_heading(5, "Sample pictures", "drawn before, during and after, so that you see it learn"))
            with gr.Column(elem_id="opt-sample_prompts", elem_classes="field"):
                self.prompts = gr.Dataframe(
                    [BLANK_ROW],
                    headers=list(PROMPT_COLUMNS),
                    datatype="str",
                    type="array",
                    interactive=True,
                    column_count=6,
                    column_widths=["42%", "22%", "9%", "9%", "9%", "9%"],
                    show_label=False,
                    label="Sample prompts",
                    elem_id="prompts",
                    buttons=[],
                    max_height=230,
                    wrap=True,
                )
            self.add_prompt = gr.Button("Add a prompt", size="sm", min_width=120, elem_id="add-prompt")
            with gr.Row(elem_classes="option-grid"):
                self.form.draw("save_every_n_epochs")

    def lay_all_options(self) -> None:
        """Every other option in one place, shown on demand and searched."""
        count = sum(len(group) for group in self.form.groups().values())
        self.show_all = gr.Checkbox(
            False, label=f"Show all other options ({count})", elem_id="show-all", container=False, interactive=True
        )
        with gr.Column(visible=False, elem_classes="section", elem_id="all-options") as self.all_options:
            gr.HTML("<h2>All other options <small>what stands above is not repeated; grey is the default</small></h2>")
            gr.Textbox(
                show_label=False,
                label="Search the options",
                placeholder="Search by name or by what it does…",
                elem_id="search-options",
                container=False,
                max_lines=1,
            )
            gr.HTML('<div id="search-note" aria-live="polite"></div>')
            self.form.draw_rest()

    def _path(self, name: str, label: str, info: str, wanted: Wanted, *, scale: int = 1) -> gr.Textbox:
        button = gr.Button("Browse…", render=False)
        box = _text(name, label, info, buttons=[button], scale=scale)
        self.browse[name] = (button, box, wanted)
        return box

    @property
    def asked(self) -> set[Component]:
        """All inputs of Start."""
        own = {self.pictures, self.trigger, self.repeats, self.class_pictures, self.class_word, self.prompts}
        return self.form.inputs() | own

    def request(self, values: Mapping[Component, Any]) -> Request:
        """The page as typed."""
        return Request(
            options=self.form.read(values),
            pictures=values[self.pictures] or "",
            trigger=values[self.trigger] or "",
            num_repeats=values[self.repeats] or "",
            class_pictures=values[self.class_pictures] or "",
            class_word=values[self.class_word] or "",
            prompts=values[self.prompts] or [],
        )

    def label(self, name: str) -> str:
        """What a field is called on the page."""
        if name in PAGE_FIELDS:
            return PAGE_FIELDS[name]
        return str(self.form.components[name].label)


def _text(name: str, label: str, info: str, **more: Any) -> gr.Textbox:
    return gr.Textbox(
        label=label,
        info=info,
        elem_id=f"opt-{name}",
        elem_classes="field",
        interactive=True,
        max_lines=1,
        min_width=200,
        **more,
    )


def _heading(number: int, title: str, more: str = "") -> str:
    small = f" <small>{more}</small>" if more else ""
    return f"<h2><b>{number}</b>{title}{small}</h2>"
