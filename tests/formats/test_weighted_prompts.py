"""Weighted prompts against recorded answers of sd-scripts, with the real CLIP tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from trainer.formats.weighted_prompts import CHUNK, Piece, count_tokens, num_chunks, parse_weights, tokenize

ROOT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = json.loads((ROOT / "tests" / "vectors" / "weighted_prompts.json").read_text("utf-8"))
GOOD = [case for case in CASES if "error" not in case]


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Any]:
    yield CLIPTokenizer.from_pretrained(ROOT / "examples" / "model" / "tokenizer")


def test_recorded_weights() -> None:
    assert len(GOOD) == len(CASES) - 1 == 24
    for case in GOOD:
        found = parse_weights(case["prompt"])
        assert [piece.text for piece in found] == [text for text, _ in case["parsed"]], case["prompt"]
        assert [piece.weight for piece in found] == pytest.approx([w for _, w in case["parsed"]], abs=1e-12)


@pytest.mark.parametrize("max_tokens", [75, 150, 225])
def test_recorded_tokens(tokenizer: Any, max_tokens: int) -> None:
    for case in GOOD:
        recorded = case[f"max{max_tokens}"]
        found = tokenize(case["prompt"], tokenizer, max_tokens=max_tokens, weighted=True)
        assert [list(chunk) for chunk in found.ids_KL] == recorded["ids"], case["prompt"]
        for ours, theirs in zip(found.weights_KL, recorded["weights"], strict=True):
            assert list(ours) == pytest.approx(theirs, abs=1e-6)
        plain = tokenize(case["prompt"], tokenizer, max_tokens=max_tokens)
        assert [list(chunk) for chunk in plain.ids_KL] == recorded["plain_ids"], case["prompt"]
        assert {weight for chunk in plain.weights_KL for weight in chunk} == {1.0}


def test_a_number_that_is_none_is_text() -> None:
    """sd-scripts ends with a ValueError."""
    assert parse_weights("(a:..)") == [Piece("a:..", 1.1)]
    assert parse_weights("(a:1.2.3)") == [Piece("a:1.2.3", 1.1)]


def test_brackets_that_cross() -> None:
    pieces = {piece.text: piece.weight for piece in parse_weights("(a[b)c]d")}
    assert pieces == pytest.approx({"a": 1.1, "b": 1.0, "c": 1 / 1.1, "d": 1.0})


@pytest.mark.parametrize("count", [0, 1, 74, 75, 76, 150, 224, 225, 300])
def test_chunks_of_long_prompts(tokenizer: Any, count: int) -> None:
    text = " ".join(["cat"] * count)
    assert count_tokens(text, tokenizer) == count and num_chunks(count) == max(1, -(-count // CHUNK))
    (cat,) = tokenizer("cat", add_special_tokens=False).input_ids
    found = tokenize(f"({text}:1.5)", tokenizer, max_tokens=225, weighted=True)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for index, (ids, weights) in enumerate(zip(found.ids_KL, found.weights_KL, strict=True)):
        here = min(max(count - index * CHUNK, 0), CHUNK)
        assert ids == (begin, *[cat] * here, *[end] * (76 - here))
        assert weights == (1.0, *[1.5] * here, *[1.0] * (76 - here))


def test_every_chunk_ends_where_padding_is_another_token(tokenizer: Any) -> None:
    """As in SD 2, whose padding is "!"."""
    padded = CLIPTokenizer.from_pretrained(ROOT / "examples" / "model" / "tokenizer", pad_token="!")
    assert padded.pad_token_id == 0
    text = " ".join(["cat"] * 80)
    end, (cat,) = padded.eos_token_id, tokenizer("cat", add_special_tokens=False).input_ids
    full, partly, empty = tokenize(text, padded, max_tokens=225).ids_KL
    assert full[1:] == (*[cat] * 75, end)
    assert partly[1:] == (*[cat] * 5, end, *[0] * 70)
    assert empty[1:] == (end, *[0] * 75)


def test_counting_leaves_the_grammar_out(tokenizer: Any) -> None:
    assert count_tokens("an (important:1.3) word", tokenizer, weighted=True) == 3
    assert count_tokens("an (important:1.3) word", tokenizer) > 3
