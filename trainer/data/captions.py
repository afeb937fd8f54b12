"""Turn the text of a caption file into the caption a picture is trained with, drawn anew each time."""

from __future__ import annotations

import random
from typing import ClassVar

from trainer.schema import Options, opt


class CaptionOptions(Options):
    """How captions are drawn, for all folders or one."""

    title: ClassVar[str] = "Captions"

    shuffle_caption: bool = opt(False, level="basic")
    """Shuffle the parts of the caption between separators each time a picture is used, so that no part leans on its
    place. Usual for tags (1girl, solo, ...), not for sentences."""

    caption_separator: str = opt(",", min_length=1)
    """What stands between the parts of a caption. A comma is usual."""

    keep_tokens: int = opt(0, ge=0, step=1, unit="parts")
    """How many parts at the start of the caption keep their place when it is shuffled. 1 keeps a trigger word first."""

    caption_prefix: str = opt("")
    """Text put before every caption, with a space between; it counts for keep_tokens."""

    caption_suffix: str = opt("")
    """Text put after every caption, with a space between."""


def draw_caption(caption: str, options: CaptionOptions, rng: random.Random) -> str:
    """The caption for one use of a picture: its first line with prefix and suffix, shuffled when asked for."""
    text = first_line(caption)
    text = f"{options.caption_prefix} {text}" if options.caption_prefix else text
    text = f"{text} {options.caption_suffix}" if options.caption_suffix else text
    if not options.shuffle_caption:
        return text
    parts = [part.strip() for part in text.split(options.caption_separator)]
    parts = [part for part in parts if part]
    fixed, flexible = parts[: options.keep_tokens], parts[options.keep_tokens :]
    rng.shuffle(flexible)
    return _glue(options.caption_separator).join(fixed + flexible)


def first_line(text: str) -> str:
    """The first line with anything on it, "" when there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _glue(separator: str) -> str:
    """What joins the parts again: the separator and one space, as people write it."""
    return separator.rstrip() + " "
