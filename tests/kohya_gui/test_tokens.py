"""Token counts without torch are those of the tokenizer that training uses."""

from __future__ import annotations

import sys

import pytest

from kohya_gui import tokens

TEXTS = (
    "a photo of sks dog",
    "shs dog",
    "1girl, solo, it's  raining,\tlong_hair -- (masterpiece:1.2)",
    "Ein Hündchen in Köln, 犬 🐕",
    "don't we'll I'm 12345 !!!???",
    "",
    "   ",
)


def test_counts_are_those_of_training() -> None:
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(str(tokens.VOCABULARY))
    for text in (*TEXTS, ", ".join(f"tag number {n}" for n in range(60))):
        assert tokens.count(text) == len(reference(text, add_special_tokens=False).input_ids), text


def test_what_an_identifier_becomes() -> None:
    assert tokens.split("shs dog") == ["shs", "dog"]
    assert len(tokens.split("mycharactername")) > 2
    short = [word for word in tokens.RARE_WORDS if tokens.count(word) == 1]
    assert len(short) >= 12 and len(set(tokens.RARE_WORDS)) == len(tokens.RARE_WORDS)


@pytest.mark.parametrize(("count", "limit"), [(0, 75), (75, 75), (76, 150), (225, 225), (226, 0)])
def test_room(count: int, limit: int) -> None:
    assert tokens.room(count) == limit


def test_words_that_captions_use() -> None:
    captions = ["a dog, shs", "Dogs in a park", "SHS", "a c++ (book)"]
    assert tokens.uses("shs dog", captions) == {"shs": 2, "dog": 1}
    assert tokens.uses("wny", captions) == {}
    assert tokens.uses("(book) .*", captions) == {"(book)": 1}


def test_tokenizers_brings_no_torch() -> None:
    import subprocess

    script = "import sys; from kohya_gui import tokens; tokens.count('x'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
