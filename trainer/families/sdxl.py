"""Stable Diffusion XL (Podell et al., 2023, https://arxiv.org/abs/2307.01952).

Shape letters: B batch, C channels, H height, W width, L tokens, D width of a token's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.families._clip import TextReading
from trainer.families._stable_diffusion import BANG, END, UNET_BLOCKS, StableDiffusion, paths_below, pipeline_class
from trainer.families.base import Conditioning, ModelOptions
from trainer.formats.key_names import UNET, key_map
from trainer.formats.kohya import AdapterTarget, lora_name
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class StableDiffusionXL(StableDiffusion):
    """Two text encoders side by side, the layer before each one's last, not normed; the second one's whole-caption
    state, the picture's size before it was scaled, where it was cut and the size it has now go in beside them."""

    kind = "sdxl"
    base_model_version = "sdxl_base_v1-0"
    default_resolution = 1024
    npz_suffix = "sdxl"

    paddings = (END, BANG)
    text_prefixes = ("lora_te1", "lora_te2")
    embedding_keys = ("clip_l", "clip_g")
    pipeline = "StableDiffusionXLPipeline"

    @classmethod
    def reading_of(cls, options: ModelOptions, networks: Mapping[str, Any]) -> TextReading:
        return TextReading(2, options.max_token_length or 75, options.weighted_captions, normed=False)

    def encode_prompts(self, text_encoders: Sequence[nn.Module], captions: Sequence[str]) -> Conditioning:
        (first, second), (tokenizer, tokenizer_2) = text_encoders, self.tokenizers
        states_BLD = self._reading.states(first, tokenizer, captions)
        states_2_BLD, pooled_BD = self._reading.states_and_pooled(second, tokenizer_2, captions)
        return Conditioning(torch.cat([states_BLD, states_2_BLD], dim=-1), pooled_BD)

    def _added(
        self, noisy_BCHW: Tensor, conditioning: Conditioning, frames_B4: Tensor | None
    ) -> dict[str, Tensor] | None:
        assert conditioning.pooled_BD is not None
        batch, _, height, width = noisy_BCHW.shape
        target_2 = torch.tensor([height, width], dtype=torch.float32) * self.latent_factor
        target_B2 = target_2.expand(batch, 2)
        if frames_B4 is None:
            frames_B4 = torch.cat([target_B2, torch.zeros(batch, 2)], dim=1)
        sizes_B6 = torch.cat([frames_B4.float().cpu(), target_B2], dim=1)
        return {
            "text_embeds": conditioning.pooled_BD.to(self.dtype),
            "time_ids": sizes_B6.to(noisy_BCHW.device, self.dtype),
        }

    def _pipeline(self, unet: Any, scheduler: Any) -> Any:
        nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        return pipeline_class(self.pipeline)(
            vae=self.vae, unet=unet, scheduler=scheduler, add_watermarker=False, **nothing
        )

    def _prompt_arguments(self, wanted: Conditioning, unwanted: Conditioning) -> dict[str, Any]:
        return {
            **super()._prompt_arguments(wanted, unwanted),
            "pooled_prompt_embeds": wanted.pooled_BD,
            "negative_pooled_prompt_embeds": unwanted.pooled_BD,
        }

    def idle_parameters(self) -> tuple[nn.Parameter, ...]:
        """The second encoder's last layer makes the whole-caption state; the first one's norm makes nothing."""
        return (*super().idle_parameters(), *self.text_encoders[0].final_layer_norm.parameters())

    def _denoiser_target(self) -> AdapterTarget:
        """Adapter files of this family name the U-Net's layers as single files do."""
        places = key_map(self.kind, "unet", self.denoiser.state_dict())
        layers = {place.keys[0]: place.name.removeprefix(UNET).removesuffix(".weight") for place in places}
        paths = paths_below(self.denoiser, UNET_BLOCKS)
        names = {path: lora_name("lora_unet", layers[f"{path}.weight"]) for path in paths}
        return AdapterTarget("denoiser", self.denoiser, names)
