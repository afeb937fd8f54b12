"""How many tokens a text is for Stable Diffusion's CLIP, and which words are good identifiers; without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from kohya_gui.settings import PROJECT

RARE_WORDS = (
    "shs", "sts", "scs", "cpc", "coc", "cic", "msm", "usu", "ici", "lvl",
    "dii", "muk", "ori", "hru", "rik", "koo", "yos", "wny",
)  # fmt: skip
"""Words of few letters that mean little to the model yet, as kohya's guide to training names them."""
VOCABULARY = PROJECT / "examples" / "model" / "tokenizer"
LIMIT = 75
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Steps

    files = str(VOCABULARY / "vocab.json"), str(VOCABULARY / "merges.txt")
    tokenizer = Tokenizer(BPE.from_file(*files, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    split = Split(Regex(_PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = Steps([split, ByteLevel(add_prefix_space=False)])
    return tokenizer


def split(text: str) -> list[str]:
    """The tokens of a text, start and end not counted."""
    return [token.removesuffix("</w>") for token in _tokenizer().encode(text).tokens]


def count(text: str) -> int:
    """How many tokens a text is, start and end not counted."""
    return len(_tokenizer().encode(text).ids)


def room(num_tokens: int) -> int:
    """The max_token_length that holds so many tokens: 75, 150 or 225; 0 when even that is too short."""
    return next((limit for limit in (75, 150, 225) if num_tokens <= limit), 0)


def uses(words: str, captions: Iterable[str]) -> dict[str, int]:
    """word -> number of captions that hold it as a whole word, for the words that any holds."""
    wanted = {word: re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in words.split()}
    found = dict.fromkeys(wanted, 0)
    for caption in captions:
        for word, pattern in wanted.items():
            found[word] += bool(pattern.search(caption))
    return {word: number for word, number in found.items() if number}
