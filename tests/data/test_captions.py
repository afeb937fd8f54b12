"""Caption drawing against recorded answers of sd-scripts, and where we differ on purpose."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trainer.data.captions import CaptionOptions, draw_caption

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "captions.json").read_text())["cases"]


def draw(caption: str, seed: int = 0, **options: Any) -> str:
    return draw_caption(caption, CaptionOptions(**options), random.Random(seed))


def test_recorded_captions() -> None:
    """Left out: blanks around and between parts (we drop them), a suffix on several lines (we keep it), and a
    shuffle with another separator than a comma (we join with that separator again)."""
    compared = 0
    for case in CASES:
        options = case["subset"]
        differs = case["caption"] != case["caption"].strip() or "\n" in case["caption"]
        differs |= bool(options.get("shuffle_caption")) and options.get("caption_separator", ",") != ","
        if set(options) <= set(CaptionOptions.model_fields) and "replacements" not in case and not differs:
            assert draw(case["caption"], case.get("seed", 0), **options) == case["expected"], case
            compared += 1
    assert compared > 80


def test_suffix_is_kept_when_the_file_has_more_lines() -> None:
    assert draw("first\nsecond", caption_suffix="end") == "first end"


def test_shuffle_keeps_the_first_parts_and_loses_nothing() -> None:
    for seed in range(20):
        parts = draw(" k1, k2 ,a,, b , c", seed, shuffle_caption=True, keep_tokens=2).split(", ")
        assert parts[:2] == ["k1", "k2"] and sorted(parts[2:]) == ["a", "b", "c"]


def test_parts_are_joined_with_their_own_separator() -> None:
    assert draw("a;b", shuffle_caption=True, keep_tokens=2, caption_separator=";") == "a; b"
    assert draw("a b", shuffle_caption=True, keep_tokens=2, caption_separator=" ") == "a b"


def test_draw_depends_on_the_generator_only() -> None:
    drawn = {draw("a,b,c,d,e,f", seed, shuffle_caption=True) for seed in range(50)}
    assert len(drawn) > 30
    assert draw("a,b,c,d", 3, shuffle_caption=True) == draw("a,b,c,d", 3, shuffle_caption=True)


def test_nothing_stays_nothing() -> None:
    assert draw("", shuffle_caption=True) == "" and draw("\n  \n") == ""
