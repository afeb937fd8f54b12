"""How the page looks: colours for light and dark, and our own style sheet and script, which travel with the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import colors, sizes

ASSETS = Path(__file__).parent / "assets"
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


class StudioBlocks(gr.Blocks):
    """A page that brings its look along, whoever launches it."""

    def launch(self, *args: Any, **kwargs: Any) -> Any:
        return super().launch(*args, **{**look(), **kwargs})


def look() -> dict[str, Any]:
    """Arguments of `launch`."""
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    return {
        "theme": theme(),
        "css": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>{script}</script>",
    }


def theme() -> gr.themes.Base:
    """Warm paper and pine green by day, the same by night; system fonts only, so nothing is fetched."""
    base = gr.themes.Base(
        primary_hue=colors.teal,
        secondary_hue=colors.amber,
        neutral_hue=colors.stone,
        text_size=sizes.text_md,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_lg,
        font=FONT,
        font_mono=MONO,
    )
    return base.set(
        body_background_fill="#f7f5f0",
        body_background_fill_dark="#171614",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#211f1c",
        background_fill_secondary="#f2efe8",
        background_fill_secondary_dark="#1b1a17",
        block_background_fill="#ffffff",
        block_background_fill_dark="#211f1c",
        body_text_color_subdued="#6b655c",
        body_text_color_subdued_dark="#a8a196",
        block_label_text_color="*body_text_color",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_border_width="0px",
        block_shadow="none",
        block_label_text_weight="600",
        block_title_text_weight="600",
        block_title_text_size="0.9rem",
        block_info_text_size="0.78rem",
        block_info_text_color="#6f6960",
        block_info_text_color_dark="#a8a196",
        block_padding="0.5rem 0.25rem",
        input_background_fill="#fdfcfa",
        input_background_fill_dark="#191815",
        input_border_width="1px",
        input_border_color="#d9d3c7",
        input_border_color_dark="#3d3a34",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_500",
        input_shadow_focus="0 0 0 3px rgba(15, 118, 110, 0.18)",
        input_placeholder_color="#a49d91",
        input_placeholder_color_dark="#6e685f",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ece8df",
        button_secondary_background_fill_hover="#e2dccf",
        button_secondary_background_fill_dark="#34312c",
        button_secondary_background_fill_hover_dark="#423e38",
        button_large_radius="*radius_md",
        checkbox_background_color_selected="*primary_700",
        checkbox_border_color_selected="*primary_700",
        border_color_primary="#e4dfd4",
        border_color_primary_dark="#35322d",
        layout_gap="0.75rem",
    )
