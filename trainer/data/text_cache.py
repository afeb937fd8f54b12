"""Keep what the text encoders make of captions, for text encoders that do not train.

Captions are drawn from seed, epoch and slot, so all that will ever be drawn can be encoded before training: shuffled,
dropped and drawn from wildcards, training is the same to the bit as without. Shapes: B captions; the rest is the
encoder's own business. Every caption is encoded alone, cached or not, since last bits depend on what is beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trainer.data.disk_cache import DamagedEntry, TensorStore, content_key
from trainer.data.scan import Progress
from trainer.errors import ConfigError, DataError, Problem

EncodeText = Callable[[str], Mapping[str, Tensor]]
"""One caption -> named tensors, each [1, ...]."""


def stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Encoded captions [1, ...] as one batch [B, ...]."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


class TextCache:
    """What was made of each caption, in memory on the CPU or, with a store, on disk. notes: for people."""

    def __init__(self, *, store: TensorStore | None, encoder: str) -> None:
        self._store = store
        self._encoder = encoder
        self._rows: dict[str, Mapping[str, Tensor]] = {}
        self.notes: list[str] = []

    @classmethod
    def build(
        cls,
        captions: Iterable[str],
        encode: EncodeText,
        *,
        limit_gb: float,
        store: TensorStore | None = None,
        encoder: str = "",
        progress: Progress | None = None,
    ) -> TextCache:
        """Encode each different caption once, but those in the store; refuses more than limit_gb after the first.

        encoder: identity of the text encoders and of how they are used. progress(done, total) counts captions.
        """
        cache = cls(store=store, encoder=encoder)
        different = list(dict.fromkeys(captions))
        damaged = 0
        for done, caption in enumerate(different, start=1):
            found, is_damaged = cache._find(caption)
            damaged += is_damaged
            if found is None:
                found = {name: value.detach().cpu().clone() for name, value in encode(caption).items()}
                cache._keep(caption, found)
            if done == 1:
                _refuse_too_many(len(different), found, limit_gb)
            if progress:
                progress(done, len(different))
        if damaged:
            cache.notes.append(f"{damaged} cached captions were damaged and are made anew")
        return cache

    def batch(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The named tensors [B, ...] of one micro-batch's captions."""
        return stack([self._get(caption) for caption in captions])

    def _find(self, caption: str) -> tuple[Mapping[str, Tensor] | None, bool]:
        """(what the store has, whether it was damaged)."""
        if self._store is None:
            return None, False
        try:
            return self._store.read(self._key(caption)), False
        except DamagedEntry:
            return None, True

    def _keep(self, caption: str, row: Mapping[str, Tensor]) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in row.values()):
            raise DataError(f"the text encoder turned this caption into values that are not finite: {caption}")
        if self._store is None:
            self._rows[caption] = row
        else:
            self._store.write(self._key(caption), row)

    def _get(self, caption: str) -> Mapping[str, Tensor]:
        if self._store is None:
            return self._rows[caption]
        found, _ = self._find(caption)
        if found is None:
            remedy = "Start the run again: they are made anew"
            raise DataError(
                f"{self._store.folder}: cached captions were deleted or damaged while in use", remedy=remedy
            )
        return found

    def _key(self, caption: str) -> str:
        return content_key("text", self._encoder, caption)


def _refuse_too_many(count: int, row: Mapping[str, Tensor], limit_gb: float) -> None:
    size = sum(value.numel() * value.element_size() for value in row.values())
    if count * size > limit_gb * 1e9:
        said = f"{count} different captions will be drawn, {count * size / 1e9:.3g} GB when encoded"
        remedy = "Raise it, train fewer epochs, shuffle and drop less, or turn cache_text_encoder_outputs off"
        raise ConfigError([Problem("text_cache_limit_gb", said, f"{limit_gb:g}", remedy=remedy)])
