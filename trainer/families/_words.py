"""A new word for a CLIP text encoder: vectors of its own beside the table of tokens, and a tokenizer that knows it.

Shape letters: B rows, L places, N vectors, D width of a token's state.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.formats.embedding import word_pattern
from trainer.lazy import torch, transformers

if TYPE_CHECKING:
    from torch import Tensor


class WordTokenizer:
    """Reads the word, wherever it stands in a text, as the ids of its vectors; all else as the tokenizer does."""

    def __init__(self, tokenizer: Any, word: str, ids: range) -> None:
        self._tokenizer = tokenizer
        self._pattern = word_pattern(word)
        self._ids = ids

    def __call__(self, text: str, **options: Any) -> SimpleNamespace:
        """As a tokenizer of transformers answers for one text."""
        first, *others = self._pattern.split(text)
        ids = list(self._tokenizer(first, **options).input_ids)
        for other in others:
            ids += [*self._ids, *self._tokenizer(other, **options).input_ids]
        return SimpleNamespace(input_ids=ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class WordEmbedding(nn.Module):
    """The table of tokens with vectors behind its last row; the table is only read."""

    def __init__(self, table: nn.Embedding, num_vectors: int) -> None:
        super().__init__()
        self.table = table
        self.added = nn.Embedding(num_vectors, table.embedding_dim, dtype=torch.float32, device=table.weight.device)

    def forward(self, ids_BL: Tensor) -> Tensor:
        first = self.table.num_embeddings
        is_added_BL = ids_BL >= first
        known_BLD = self.table(ids_BL.masked_fill(is_added_BL, 0))
        added_BLD = self.added((ids_BL - first).clamp(min=0)).to(known_BLD.dtype)
        return torch.where(is_added_BL[..., None], added_BLD, known_BLD)


class NewWord:
    """A word's vectors in one text encoder. key: what embedding files call them; tokenizer: one that knows the word."""

    def __init__(self, encoder: Any, tokenizer: Any, word: str, *, num_vectors: int, key: str) -> None:
        self.key = key
        self._known = tokenizer
        self._embedding = WordEmbedding(encoder.get_input_embeddings(), num_vectors)
        first = self._embedding.table.num_embeddings
        self.tokenizer = WordTokenizer(tokenizer, word, range(first, first + num_vectors))
        encoder.set_input_embeddings(self._embedding)
        for part in encoder.modules():
            if isinstance(part, transformers.CLIPTextModel):
                # many models' configs say 2, which stands for the highest id: the new ones are higher than the end's
                part.eos_token_id = tokenizer.eos_token_id

    @property
    def vectors_ND(self) -> Any:
        """What trains."""
        return self._embedding.added.weight

    def rows_of(self, text: str) -> Tensor:
        """[tokens, D]: the table's rows for a text of known words, in float32."""
        ids = self._known(text, add_special_tokens=False).input_ids
        return self._embedding.table.weight.detach()[ids].float()
