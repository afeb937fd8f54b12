"""Caption drawing against recorded answers of sd-scripts, and where we differ on purpose."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from trainer.data.captions import CaptionOptions, caption_lines, draw_caption, plain_options

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "captions.json").read_text())


def draw(caption: str, seed: int = 0, *, epoch: int = 0, step: int = 0, total_steps: int = 0, **options: Any) -> str:
    rng = random.Random(seed)
    return draw_caption(caption, CaptionOptions(**options), rng, epoch=epoch, step=step, total_steps=total_steps)


def test_recorded_captions() -> None:
    """Every recorded caption but the one with replacements, which belong to textual inversion."""
    compared = 0
    for case in RECORDED["cases"]:
        if "replacements" in case:
            continue
        options = {
            name: "" if value is None else value for name, value in {**RECORDED["defaults"], **case["subset"]}.items()
        }
        place = {"epoch": case["epoch"] - 1, "step": case["step"], "total_steps": 100}
        assert draw(case["caption"], case.get("seed", 0), **place, **options) == case["expected"], case
        compared += 1
    assert compared == 299


MARKED = {"keep_tokens_separator": "|||", "secondary_separator": ";;;"}


def test_the_order_of_what_happens() -> None:
    text = "a, b ||| c, d;;;e, f ||| g"
    options = {**MARKED, "caption_prefix": "P,", "caption_suffix": ", S", "shuffle_caption": True}
    drawn = {draw(text, seed, **options) for seed in range(40)}
    assert "P, a, b, c, f, d,e, g, S" in drawn and len(drawn) == 6
    assert all(caption.startswith("P, a, b, ") and caption.endswith(", g, S") for caption in drawn)


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        ("a, b ||| c", "a, b, c"),
        ("a ||| b ||| c ||| d", "a, b, c, d"),
        ("|||a|||", "a"),
        ("a | b", "a | b"),
    ],
)
def test_the_mark_of_kept_parts_is_never_trained(text: str, trained: str) -> None:
    """sd-scripts leaves it in the text when nothing is shuffled, and a third one always."""
    assert draw(text, keep_tokens_separator="|||") == trained
    assert "|||" not in draw(text, keep_tokens_separator="|||", shuffle_caption=True)


def test_warm_up_counts() -> None:
    options = {"keep_tokens": 1, "token_warmup_min": 1, "token_warmup_step": 0.5}
    grown = [draw("k,a,b,c,d,e", step=step, total_steps=100, **options) for step in (0, 25, 49, 50, 99)]
    assert grown == ["k, a", "k, a, b, c", "k, a, b, c, d", "k, a, b, c, d, e", "k, a, b, c, d, e"]


def test_dropout_of_captions_and_parts() -> None:
    dropped = sum(draw("a, b", seed, caption_dropout_rate=0.3) == "" for seed in range(1000))
    assert 240 < dropped < 360
    assert [draw("a", epoch=epoch, caption_dropout_every_n_epochs=3) for epoch in range(6)] == [
        "a",
        "a",
        "",
        "a",
        "a",
        "",
    ]
    kept = [draw("k, a, b, c", seed, caption_tag_dropout_rate=0.25, keep_tokens=1).split(", ") for seed in range(1000)]
    assert all(parts[0] == "k" for parts in kept)
    assert 2.1 < sum(len(parts) - 1 for parts in kept) / 1000 < 2.4
    assert draw("a, b", caption_dropout_rate=1.0) == draw("a, b", caption_tag_dropout_rate=1.0) == ""


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("{a|b}", {"a", "b"}),
        ("{{a|b}}", {"{a|b}"}),
        ("{a|{{b}}}", {"a", "{b}"}),
        ("{a|}{c}", {"ac", "c"}),
        ("{} {a", {"{} {a"}),
        ("one {x|y}\ntwo", {"one x", "one y", "two"}),
    ],
)
def test_wildcards_and_lines(text: str, drawn: set[str]) -> None:
    assert {draw(text, seed, enable_wildcard=True) for seed in range(60)} == drawn


def test_prefix_and_suffix_are_on_every_line_that_can_be_drawn() -> None:
    drawn = {draw("a\nb", seed, enable_wildcard=True, caption_prefix="p", caption_suffix="s") for seed in range(20)}
    assert drawn == {"p a s", "p b s"}


def test_lines_of_a_file() -> None:
    text = "\n first \r\n\n second\n"
    assert caption_lines(text, CaptionOptions()) == "first"
    assert caption_lines(text, CaptionOptions(enable_wildcard=True)) == "first\nsecond"
    assert caption_lines("", CaptionOptions()) == ""


def test_parts_are_joined_with_their_own_separator() -> None:
    assert draw("a;b", shuffle_caption=True, keep_tokens=2, caption_separator=";") == "a; b"
    assert draw("a b", shuffle_caption=True, keep_tokens=2, caption_separator=" ") == "a b"
    assert (
        draw("a.b+c", shuffle_caption=True, keep_tokens=9, caption_separator=".", secondary_separator="+") == "a. b.c"
    )


def test_shuffling_loses_nothing_and_depends_on_the_generator_only() -> None:
    drawn = [draw("k, a,b,c,d,e,f", seed, shuffle_caption=True, keep_tokens=1) for seed in range(50)]
    assert all(caption.split(", ")[0] == "k" and sorted(caption.split(", ")[1:]) == [*"abcdef"] for caption in drawn)
    assert len(set(drawn)) > 30
    assert drawn == [draw("k, a,b,c,d,e,f", seed, shuffle_caption=True, keep_tokens=1) for seed in range(50)]


def test_plain_options_leave_the_text_alone() -> None:
    options = CaptionOptions(
        shuffle_caption=True, caption_dropout_rate=1.0, caption_tag_dropout_rate=1.0, token_warmup_step=10,
        caption_dropout_every_n_epochs=1, caption_prefix="p",
    )  # fmt: skip
    assert draw_caption("a,b", plain_options(options), random.Random(0), epoch=0, step=0) == "p a,b"
