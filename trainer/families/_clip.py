"""Captions through a CLIP text encoder (https://arxiv.org/abs/2103.00020): long ones in chunks, weighted ones weighed.

Shape letters: B captions, K chunks of one caption, L places (77 of a chunk: a beginning, 75 tokens, an end), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.formats.weighted_prompts import CHUNK, tokenize
from trainer.lazy import accelerate, torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class TextReading:
    """How captions are read. skip: the n-th layer from the end gives the states, 1 is the last; max_tokens: 75, 150 or
    225; weighted: (brackets) weigh words, as in A1111; normed: the encoder's last norm is laid over the states."""

    skip: int = 1
    max_tokens: int = CHUNK
    weighted: bool = False
    normed: bool = True

    def states(self, encoder: nn.Module, tokenizer: Any, captions: Sequence[str]) -> Tensor:
        """[B, max_tokens + 2, D]: the beginning, every token's state, the end. The encoder may be wrapped (DDP)."""
        return self._read(encoder, tokenizer, captions)[0]

    def states_and_pooled(self, encoder: nn.Module, tokenizer: Any, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The states, and [B, D]: what an encoder with a projection makes of each caption's first 75 tokens in one."""
        states_BLD, output = self._read(encoder, tokenizer, captions)
        return states_BLD, output.text_embeds.unflatten(0, (len(captions), -1))[:, 0]

    def _read(self, encoder: nn.Module, tokenizer: Any, captions: Sequence[str]) -> tuple[Tensor, Any]:
        read = [tokenize(text, tokenizer, max_tokens=self.max_tokens, weighted=self.weighted) for text in captions]
        model = unwrap(encoder)
        ids_RL = torch.tensor([row for tokens in read for row in tokens.ids_KL], device=model.device)
        output = encoder(ids_RL, output_hidden_states=self.skip > 1)
        states_BLD = _joined(self._layer(model, output), len(captions))
        if self.weighted:
            weights_RL = torch.tensor([row for tokens in read for row in tokens.weights_KL]).to(states_BLD)
            states_BLD = states_BLD * _joined(weights_RL[..., None], len(captions))
        return states_BLD, output

    def _layer(self, model: Any, output: Any) -> Tensor:
        states_RLD: Tensor
        if self.skip == 1:
            states_RLD = output.last_hidden_state
            return states_RLD
        states_RLD = output.hidden_states[-self.skip]
        if self.normed:
            states_RLD = model.final_layer_norm(states_RLD)
        if torch.is_grad_enabled():
            # the skipped layers' adapters get a gradient of 0: DDP waits for every parameter's
            states_RLD = states_RLD + 0.0 * output.last_hidden_state
        return states_RLD


def _joined(rows_RLX: Tensor, num_captions: int) -> Tensor:
    """Chunks of a caption behind each other, with the first one's beginning and the last one's end."""
    rows_BKLX = rows_RLX.unflatten(0, (num_captions, -1))
    inner_BLX = rows_BKLX[:, :, 1:-1].flatten(1, 2)
    return torch.cat([rows_BKLX[:, 0, :1], inner_BLX, rows_BKLX[:, -1, -1:]], dim=1)


def unwrap(module: nn.Module) -> Any:
    """The model inside DDP and the like."""
    return accelerate.utils.extract_model_from_parallel(module, keep_fp32_wrapper=True)
