"""Stable Diffusion 1.x (https://arxiv.org/abs/2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.families._clip import TextReading
from trainer.families._stable_diffusion import END, StableDiffusion, skip_of
from trainer.families.base import Conditioning, ModelOptions

if TYPE_CHECKING:
    from torch import nn


class StableDiffusion1(StableDiffusion):
    """77 tokens of OpenAI's CLIP, the last layer's states, normed."""

    kind = "sd1"
    base_model_version = "sd_v1"
    default_resolution = 512
    npz_suffix = "sd"

    paddings = (END,)
    text_prefixes = ("lora_te",)
    pipeline = "StableDiffusionPipeline"

    @classmethod
    def reading_of(cls, options: ModelOptions, networks: Mapping[str, Any]) -> TextReading:
        skip = skip_of(options, networks["text_encoder"], usual=1)
        return TextReading(skip, options.max_token_length or 75, options.weighted_captions)

    def encode_prompts(self, text_encoders: Sequence[nn.Module], captions: Sequence[str]) -> Conditioning:
        (encoder,), (tokenizer,) = text_encoders, self.tokenizers
        return Conditioning(states_BLD=self._reading.states(encoder, tokenizer, captions))
