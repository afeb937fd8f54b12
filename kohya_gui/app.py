"""The whole page: its tabs put together."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import gradio as gr

from kohya_gui.look import StudioBlocks
from kohya_gui.pages import dataset, run
from kohya_gui.pages.train import TrainPage
from kohya_gui.settings import Settings

TITLE = "Image Training Studio"
TRAIN_TAB = "train"


class Placed(Protocol):
    """Whatever knows the folder in which runs, outputs and presets are kept."""

    @property
    def home(self) -> Path: ...


def build(placed: Placed) -> gr.Blocks:
    """The page for one home folder; launch it to serve it."""
    settings = placed if isinstance(placed, Settings) else Settings.of(placed.home)
    with StudioBlocks(title=TITLE, analytics_enabled=False, fill_width=True) as demo:
        gr.HTML(f"<h1>{TITLE} <small>teach an image model what is in your pictures</small></h1>", elem_id="masthead")
        with gr.Tabs(selected=TRAIN_TAB) as tabs:
            with gr.Tab("Dataset", id=dataset.TAB):
                dataset_page = dataset.DatasetPage(settings)
            with gr.Tab("Train (LoRA)", id=TRAIN_TAB):
                train_page = TrainPage(settings)
            with gr.Tab("Runs", id=run.TAB):
                run_page = run.build(settings)
        train_page.attach(demo, tabs, run_page)
        dataset_page.attach(demo, tabs, TRAIN_TAB, train_page.fields.pictures, run_page)
        run_page.attach(demo, tabs)
    return demo
