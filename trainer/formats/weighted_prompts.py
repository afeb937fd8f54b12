"""Read weighted prompts as A1111 writes them, and turn prompts into token ids of 75, 150 or 225 places.

(text) weighs 1.1 times as much, [text] 1.1 times as little, (text:1.3) 1.3 times as much; nested weights multiply, and
a backslash makes a bracket plain text. https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features

Shapes: K chunks, L places of a chunk (77: a beginning, 75 tokens, an end).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

CHUNK = 75
"""Tokens a CLIP text encoder reads at once, besides the two that mark beginning and end."""

_FACTOR = {"(": 1.1, "[": 1 / 1.1}
_OPENS = {")": "(", "]": "["}
_TOKEN = re.compile(
    r"""
    \\(?P<plain>[()\[\]\\]) | \\            # a backslash with its bracket, or alone
    | (?P<open>[(\[]) | [)\]]
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | [^\\()\[\]:]+ | :
    """,
    re.VERBOSE,
)


class Piece(NamedTuple):
    """Text that has one weight."""

    text: str
    weight: float


def parse_weights(prompt: str) -> list[Piece]:
    """A prompt as pieces of equal weight. A bracket that is never closed weighs to the end; one too many is text."""
    texts: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []

    def close(bracket: str, factor: float) -> bool:
        """Weigh what stands after the last open bracket of this kind; False when there is none."""
        at = next((i for i in reversed(range(len(opened))) if opened[i][0] == bracket), None)
        if at is None:
            return False
        _, start = opened.pop(at)
        weights[start:] = [weight * factor for weight in weights[start:]]
        return True

    for match in _TOKEN.finditer(prompt):
        token = match[0]
        bracket = "(" if match["weight"] else _OPENS.get(token)
        if match["open"]:
            opened.append((token, len(texts)))
        elif token != "\\" and not (bracket and close(bracket, float(match["weight"] or _FACTOR[bracket]))):
            texts.append(match["plain"] or token)
            weights.append(1.0)
    while opened:
        bracket, _ = opened[-1]
        close(bracket, _FACTOR[bracket])
    return _joined([Piece(*piece) for piece in zip(texts, weights, strict=True)]) or [Piece("", 1.0)]


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of the same weight are one piece."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].weight == piece.weight:
            found[-1] = Piece(found[-1].text + piece.text, piece.weight)
        else:
            found.append(piece)
    return found


@dataclass(frozen=True)
class Tokens:
    """ids_KL and weights_KL, each chunk with its beginning and end."""

    ids_KL: tuple[tuple[int, ...], ...]
    weights_KL: tuple[tuple[float, ...], ...]


def tokenize(text: str, tokenizer: Any, *, max_tokens: int = CHUNK, weighted: bool = False) -> Tokens:
    """Token ids of a prompt for max_tokens places, cut off behind them.

    tokenizer: a CLIP tokenizer as transformers has it. weighted: read the prompt as A1111 does; else brackets are text
    and every weight is 1.
    """
    assert max_tokens > 0 and max_tokens % CHUNK == 0
    pieces = parse_weights(text) if weighted else [Piece(text, 1.0)]
    ids: list[int] = []
    weights: list[float] = []
    for piece in pieces:
        found = _ids(piece.text, tokenizer)
        ids += found
        weights += [piece.weight] * len(found)
    starts = range(0, max_tokens, CHUNK)
    return Tokens(
        tuple(_chunk(ids[start : start + CHUNK], tokenizer) for start in starts),
        tuple((1.0, *_filled(weights[start : start + CHUNK]), 1.0) for start in starts),
    )


def _chunk(ids: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    """Beginning, tokens, end, and padding where there is room; a chunk without tokens too has its end."""
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return (begin, *ids, end, *[pad] * (CHUNK - len(ids)))


def _filled(weights: Sequence[float]) -> tuple[float, ...]:
    return (*weights, *[1.0] * (CHUNK - len(weights)))


def count_tokens(text: str, tokenizer: Any, *, weighted: bool = False) -> int:
    """How many tokens a prompt has, without those that mark beginning and end; what does not fit is cut off."""
    pieces = parse_weights(text) if weighted else [Piece(text, 1.0)]
    return sum(len(_ids(piece.text, tokenizer)) for piece in pieces)


def num_chunks(num_tokens: int) -> int:
    """Chunks of 75 that this many tokens need: 1 for at most 75, 2 for 150, 3 for 225."""
    return max(1, math.ceil(num_tokens / CHUNK))


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)
