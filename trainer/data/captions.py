"""Turn the text of a caption file into the caption a picture is trained with, drawn anew each time.

What happens to a text, in sd-scripts' order: prefix and suffix; dropout of the whole caption; one line and one choice
of each wildcard; then, on its parts, keeping, warm-up, shuffle and dropout of parts; at last the secondary separator.
"""

from __future__ import annotations

import math
import random
import re
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
    """How many parts at the start of the caption keep their place when it is shuffled, and are never dropped. 1 keeps
    a trigger word first."""

    keep_tokens_separator: str = opt("")
    """A mark written in the captions, such as |||: the parts before it keep their place and are never dropped, and so
    do the parts after a second one. It wins over keep_tokens in captions that have it, and is never trained itself."""

    secondary_separator: str = opt("")
    """A mark that holds several parts together when they are shuffled or dropped, as ;;; in "red hair;;;long hair"; it
    becomes the caption_separator at the end."""

    enable_wildcard: bool = opt(False)
    """Draw one line of a caption with several lines, and one of the words of each {red|green|blue}, each time a
    picture is used. {{ and }} are plain braces. Off: the first line counts, braces are text."""

    caption_prefix: str = opt("")
    """Text put before every caption, with a space between; it counts for keep_tokens."""

    caption_suffix: str = opt("")
    """Text put after every caption, with a space between."""

    caption_dropout_rate: float = opt(0.0, ge=0, le=1, step=0.05)
    """How often a picture is trained with no caption at all, from 0 to 1. 0.05 to 0.1 strengthens guidance (CFG)."""

    caption_dropout_every_n_epochs: int = opt(0, ge=0, step=1, unit="epochs")
    """Train every n-th epoch, counted from 1, without any captions. 0 turns it off."""

    caption_tag_dropout_rate: float = opt(0.0, ge=0, le=1, step=0.05)
    """How often each part of a caption is left out, from 0 to 1; parts that are kept in place never are. 0.1 is usual
    for tags."""

    token_warmup_min: int = opt(1, ge=0, step=1, unit="parts")
    """With token_warmup_step: how many parts captions have at the first step, besides those kept in place."""

    token_warmup_step: int | float = opt(0, ge=0)
    """Captions begin with token_warmup_min parts and grow until this step, when they are whole. A number below 1 is a
    share of all steps. 0 turns it off."""


def draw_caption(
    text: str, options: CaptionOptions, rng: random.Random, *, epoch: int, step: int, total_steps: int = 0
) -> str:
    """The caption for one use of a picture in this epoch (from 0) at this optimizer step (from 0).

    total_steps: of the whole run, for a token_warmup_step that is a share of them.
    """
    lines = [with_affixes(line, options) for line in (text.split("\n") if options.enable_wildcard else [text])]
    if _is_dropped(options, rng, epoch):
        return ""
    if options.enable_wildcard:
        text = _draw_choices(rng.choice(lines) if len(lines) > 1 else lines[0], rng)
    else:
        text = lines[0].split("\n")[0]
    text = _arrange(text, options, rng, step=step, total_steps=total_steps)
    if options.secondary_separator:
        text = text.replace(options.secondary_separator, options.caption_separator)
    return text


def caption_lines(text: str, options: CaptionOptions) -> str:
    """What of a caption file or record captions are drawn from: its lines with anything on them when one of them is
    drawn, else the first of those."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines if options.enable_wildcard else lines[:1])


def plain_options(options: CaptionOptions) -> CaptionOptions:
    """The same without what is dropped, shuffled or warmed up: the caption as it stands, for validation."""
    off = {"shuffle_caption": False, "caption_dropout_rate": 0.0, "caption_dropout_every_n_epochs": 0}
    off |= {"caption_tag_dropout_rate": 0.0, "token_warmup_step": 0}
    return options.model_copy(update=off)


def with_affixes(text: str, options: CaptionOptions) -> str:
    """The text between caption_prefix and caption_suffix."""
    text = f"{options.caption_prefix} {text}" if options.caption_prefix else text
    return f"{text} {options.caption_suffix}" if options.caption_suffix else text


def _is_dropped(options: CaptionOptions, rng: random.Random, epoch: int) -> bool:
    by_chance = options.caption_dropout_rate > 0 and rng.random() < options.caption_dropout_rate
    every = options.caption_dropout_every_n_epochs
    return by_chance or (every > 0 and (epoch + 1) % every == 0)


_WILDCARD = re.compile(r"\{\{|\}\}|\{((?:\}\}|[^}])++)\}")


def _draw_choices(line: str, rng: random.Random) -> str:
    def drawn(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][:1]
        choice: str = rng.choice(match[1].split("|"))
        return choice.replace("{{", "{").replace("}}", "}")

    return _WILDCARD.sub(drawn, line)


def _arrange(text: str, options: CaptionOptions, rng: random.Random, *, step: int, total_steps: int) -> str:
    """The parts of a caption in their order for this use; the text as it is when nothing is done to parts."""
    mark = options.keep_tokens_separator
    is_marked = bool(mark) and mark in text
    if not (is_marked or options.shuffle_caption or options.token_warmup_step or options.caption_tag_dropout_rate):
        return text
    first, flexible, last = _marked_parts(text, options) if is_marked else _counted_parts(text, options)
    flexible = flexible[: _num_warmed_up(len(flexible), options, step=step, total_steps=total_steps)]
    if options.shuffle_caption:
        rng.shuffle(flexible)
    if options.caption_tag_dropout_rate:
        flexible = [part for part in flexible if rng.random() >= options.caption_tag_dropout_rate]
    return _glue(options.caption_separator).join(first + flexible + last)


def _marked_parts(text: str, options: CaptionOptions) -> tuple[list[str], list[str], list[str]]:
    """(kept in front, flexible, kept at the end) around keep_tokens_separator; further marks part the end only."""
    left, middle, *right = text.split(options.keep_tokens_separator)
    separator = options.caption_separator
    first, flexible, last = (
        [part.strip() for part in piece.split(separator) if part.strip()]
        for piece in (left, middle, separator.join(right))
    )
    return first, flexible, last


def _counted_parts(text: str, options: CaptionOptions) -> tuple[list[str], list[str], list[str]]:
    parts = [part.strip() for part in text.strip().split(options.caption_separator)]
    return parts[: options.keep_tokens], parts[options.keep_tokens :], []


def _num_warmed_up(num_parts: int, options: CaptionOptions, *, step: int, total_steps: int) -> int:
    """How many flexible parts there are at this step."""
    steps = options.token_warmup_step
    steps = math.floor(steps * total_steps) if steps < 1 else steps
    if step >= steps:
        return num_parts
    return math.floor(step * (num_parts - options.token_warmup_min) / steps) + options.token_warmup_min


def _glue(separator: str) -> str:
    """What joins the parts again: the separator and one space, as people write it."""
    return separator.rstrip() + " "
