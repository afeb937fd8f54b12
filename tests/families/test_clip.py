"""Captions of 75, 150 and 225 tokens, weighted or not, against encoding the chunks by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.families._clip import TextReading

LONG = " ".join(f"word{i % 7}" for i in range(70))


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> Any:
    return CLIPTextModel.from_pretrained(tiny_folder / "text_encoder").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer")


def by_hand(encoder: Any, tokenizer: Any, text: str, chunks: int) -> torch.Tensor:
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    states = []
    for start in range(0, 75 * chunks, 75):
        own = ids[start : start + 75]
        row = [tokenizer.bos_token_id, *own, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (75 - len(own))]
        states.append(encoder(torch.tensor([row])).last_hidden_state)
    return torch.cat([states[0][:, :1], *(chunk[:, 1:-1] for chunk in states), states[-1][:, -1:]], dim=1)


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_long_captions_are_read_in_chunks(encoder: Any, tokenizer: Any, chunks: int) -> None:
    reading = TextReading(max_tokens=75 * chunks)
    captions = [LONG, "a cat", ""]
    states_BLD = reading.states(encoder, tokenizer, captions)
    assert states_BLD.shape == (3, 75 * chunks + 2, 32)
    expected_BLD = torch.cat([by_hand(encoder, tokenizer, caption, chunks) for caption in captions])
    assert torch.allclose(states_BLD, expected_BLD, atol=1e-6)


def test_a_longer_reading_sees_more(encoder: Any, tokenizer: Any) -> None:
    short_BLD, long_BLD = (
        TextReading(max_tokens=n).states(encoder, tokenizer, [LONG, LONG + " end"]) for n in (75, 150)
    )
    assert torch.equal(short_BLD[0], short_BLD[1])  # what differs was cut off
    assert not torch.equal(long_BLD[0], long_BLD[1])


@pytest.mark.parametrize("skip", [1, 2])
def test_weights_multiply_the_states(encoder: Any, tokenizer: Any, skip: int) -> None:
    plain = TextReading(skip, 150).states(encoder, tokenizer, ["a red cat on grass"])
    weighed = TextReading(skip, 150, weighted=True).states(encoder, tokenizer, ["a (red:1.5) cat [on] grass"])
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in ("a", "red", "cat", "on", "grass")]
    weights_L = torch.ones(152)
    at = 1
    for own, weight in zip(ids, (1.0, 1.5, 1.0, 1 / 1.1, 1.0), strict=True):
        weights_L[at : at + len(own)] = weight
        at += len(own)
    assert torch.allclose(weighed, plain * weights_L[:, None], atol=1e-6)


def test_brackets_are_text_unless_asked(encoder: Any, tokenizer: Any) -> None:
    bracketed, bare = TextReading().states(encoder, tokenizer, ["a (red) cat", "a red cat"])
    assert not torch.allclose(bracketed, bare, atol=1e-3)
