"""Teach the text encoders a new word and leave the model as it is (Gal et al., 2022, https://arxiv.org/abs/2208.01618).

Only the word's vectors train, in float32 whatever the model is loaded in: they stand in the forward pass behind the
table of tokens, so that no weight decay or momentum ever sees the table.

Shapes: N vectors, D width of a token's state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trainer.errors import ModelError, Problem, RunError
from trainer.families.components import VOCABULARY
from trainer.formats.embedding import read_embedding, save_embedding
from trainer.lazy import torch
from trainer.maths.rng import generator
from trainer.methods.base import Method, log_name
from trainer.methods.templates import OBJECT_TEMPLATES, STYLE_TEMPLATES
from trainer.optim.optimizers import OptimizerOptions, ParamGroup
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.families._words import NewWord
    from trainer.families.base import Family

SPREAD = 0.02
"""Standard deviation of numbers that begin from nothing: CLIP's own tokens began so."""


class TextualInversionOptions(Options):
    """The new word and where it begins."""

    title: ClassVar[str] = "New word"

    token_string: str = opt(..., level="basic", label="New word", min_length=1)
    """The word to teach, as captions and prompts have it: one that the model does not know, without spaces and commas,
    such as my-cat-7."""

    init_word: str | None = opt(None, level="basic", label="Begin as", min_length=1)
    """What the new word means at first, such as cat: its tokens' vectors, over and over where there are fewer than
    num_vectors_per_token. Unset: random numbers."""

    num_vectors_per_token: int = opt(1, ge=1, le=75, level="basic", unit="vectors", label="Vectors")
    """Vectors of the word: more hold more of a picture, and take as many of a prompt's 75 tokens; 1 to 8 are usual."""

    weights: Path | None = opt(None, widget="path", label="Embedding to go on from")
    """An embedding file (.safetensors or .pt) of as many vectors to begin with, instead of init_word."""

    use_object_template: bool = opt(False, label="Captions for a thing")
    """In place of every caption, draw one of 27 such as "a photo of a my-cat-7"; regularisation pictures keep their
    captions."""

    use_style_template: bool = opt(False, label="Captions for a style")
    """In place of every caption, draw one of 19 such as "a painting in the style of my-cat-7"; regularisation pictures
    keep their captions."""

    def problems(self) -> Iterator[Problem]:
        """A word that cannot be one, and what excludes each other."""
        word = self.token_string
        if any(character.isspace() or character == "," for character in word):
            said, remedy = "is cut where captions have spaces and commas", "Write it without, as in my-cat-7"
            yield Problem("token_string", said, repr(word), remedy=remedy)
        elif f"{word.lower()}</w>" in _vocabulary():
            said, remedy = "is a word that the model knows already", "Make one up, as in my-cat-7"
            yield Problem("token_string", said, word, remedy=remedy)
        if self.use_object_template and self.use_style_template:
            remedy = "Leave one of them unset"
            yield Problem("use_style_template", "goes against use_object_template", "true", remedy=remedy)
        if self.weights is not None and self.init_word is not None:
            said = f"is not used: the word begins with {self.weights}"
            yield Problem("init_word", said, self.init_word, severity="warning")
        if self.weights is not None and not self.weights.is_file():
            yield Problem("weights", "no such file", str(self.weights))

    @property
    def templates(self) -> tuple[str, ...]:
        """The captions to draw from in place of the pictures' own; none to leave those."""
        chosen = OBJECT_TEMPLATES if self.use_object_template else STYLE_TEMPLATES if self.use_style_template else ()
        return tuple(template.format(self.token_string) for template in chosen)


@cache
def _vocabulary() -> frozenset[str]:
    """CLIP's tokens; those that end a word end in </w>."""
    return frozenset(json.loads((VOCABULARY / "vocab.json").read_text(encoding="utf-8")))


class TextualInversionMethod(Method):
    """The vectors of a new word train, in every text encoder; all weights of the model are frozen."""

    kind = "textual_inversion"
    architecture_suffix = "/textual-inversion"

    def __init__(self, family: Family, options: TextualInversionOptions, rates: OptimizerOptions, *, seed: int) -> None:
        self._options = options
        self._rates = rates
        self._words = family.add_word(options.token_string, num_vectors=options.num_vectors_per_token)
        self._modules = family.components()
        for module in self._modules.values():
            module.requires_grad_(False)
        if options.weights is None:
            self.notes = tuple(self._begin(seed))
        else:
            self._go_on_from(options.weights)
        for word in self._words.values():
            word.vectors_ND.requires_grad_(True)
        self.train()

    def _begin(self, seed: int) -> Iterator[str]:
        """Put the first numbers into the vectors; says where init_word does not fit them."""
        text, count = self._options.init_word, self._options.num_vectors_per_token
        for index, word in enumerate(self._words.values()):
            if text is None:
                start_ND = torch.randn(word.vectors_ND.shape, generator=generator(seed, "new word", index)) * SPREAD
            else:
                rows = word.rows_of(text)
                start_ND = rows[[row % len(rows) for row in range(count)]]
                if index == 0 and len(rows) not in (1, count):
                    done = "the rest is left out" if len(rows) > count else "they are used over and over"
                    yield f"init_word {text} has {len(rows)} tokens for {count} vectors: {done}"
            _assign(word, start_ND)

    def _go_on_from(self, path: Path) -> None:
        tensors = read_embedding(path, [word.key for word in self._words.values()])
        for word in self._words.values():
            given, wanted = tuple(tensors[word.key].shape), tuple(word.vectors_ND.shape)
            if given != wanted:
                said = f"{path} has {given[0]} vectors of {given[-1]} numbers; the word has {wanted[0]} of {wanted[1]}"
                remedy = "Set num_vectors_per_token, or give an embedding trained for this kind of model"
                raise ModelError(said, option="weights", remedy=remedy)
            _assign(word, tensors[word.key])

    def trainable_components(self) -> tuple[str, ...]:
        return tuple(self._words)

    def groups(self) -> list[ParamGroup]:
        return [
            ParamGroup(log_name(name), name, (word.vectors_ND,), self._rates.rate(name))
            for name, word in self._words.items()
        ]

    def modules(self) -> dict[str, nn.Module]:
        return {name: self._modules[name] for name in self._words}

    def train(self) -> None:
        for name, module in self._modules.items():
            module.train(name in self._words)

    def state_dict(self) -> dict[str, Tensor]:
        return {word.key: word.vectors_ND.detach() for word in self._words.values()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        wanted = {key: tensor.shape for key, tensor in self.state_dict().items()}
        if wanted != {key: tensor.shape for key, tensor in tensors.items()}:
            raise RunError("the resume point does not fit this word: it has other vectors", option="resume")
        for word in self._words.values():
            _assign(word, tensors[word.key])

    def metadata(self, run: Mapping[str, str]) -> dict[str, str]:
        """sd-scripts gives embeddings modelspec alone; what the word is and how far it was trained is ours."""
        kept = ("ss_base_model_version", "ss_sd_model_name", "ss_epoch", "ss_steps", "ss_training_comment")
        return {
            **{key: value for key, value in run.items() if key in kept},
            "modelspec.trigger_phrase": self._options.token_string,
        }

    def export(self, path: Path, *, precision: str, metadata: Mapping[str, str]) -> Path:
        return save_embedding(self.state_dict(), path, precision=precision, metadata=metadata)


def _assign(word: NewWord, numbers_ND: Tensor) -> None:
    with torch.no_grad():
        word.vectors_ND.copy_(numbers_ND)
