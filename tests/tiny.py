"""Pipelines of Stable Diffusion 1.x, 2.x and XL of the real topology with few channels and random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

CONFIGS = Path(__file__).parents[1] / "trainer" / "families" / "configs"
TEXT_LAYERS = 3


def tiny_sd1(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Save the pipeline as a diffusers folder: 4 levels, 4 heads, 8 norm groups, VAE of factor 8, CLIP of width 32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64, 96, 96),
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=32,
        )
        vae = _vae()
        text_encoder = _text_encoder(CLIPTextModel, 32)
    scheduler = PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False, prediction_type=prediction_type)
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "scheduler": scheduler}
    return _saved(folder, parts, index="sd1", pad_tokens={"tokenizer": "<|endoftext|>"})


def tiny_sd2(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Like the first, with linear projections, heads by level and an OpenCLIP encoder of width 48."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64, 96, 96),
            norm_num_groups=8,
            attention_head_dim=(2, 4, 6, 6),
            cross_attention_dim=48,
            use_linear_projection=True,
        )
        vae = _vae()
        text_encoder = _text_encoder(CLIPTextModel, 48, hidden_act="gelu", projection_dim=16)
    scheduler = PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False, prediction_type=prediction_type)
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "scheduler": scheduler}
    return _saved(folder, parts, index="sd2", pad_tokens={"tokenizer": "!"})


def tiny_sdxl(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """3 levels with 0, 1 and 2 transformer layers, size and crop conditioning, encoders of width 32 and 48."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),  # the first level has no attention at all
            norm_num_groups=8,
            attention_head_dim=(2, 4, 6),
            cross_attention_dim=32 + 48,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
        )
        vae = _vae(scaling_factor=0.13025, force_upcast=True)
        text_encoder = _text_encoder(CLIPTextModel, 32)
        text_encoder_2 = _text_encoder(CLIPTextModelWithProjection, 48, hidden_act="gelu", projection_dim=48)
    parts = {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
        "scheduler": EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading", prediction_type=prediction_type),
    }
    return _saved(folder, parts, index="sdxl", pad_tokens={"tokenizer": "<|endoftext|>", "tokenizer_2": "!"})


_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def _vae(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        **more,
    )


def _text_encoder(model_class: Any, width: int, **more: Any) -> Any:
    encoder = model_class(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            bos_token_id=49406,
            eos_token_id=49407,
            **more,
        )
    )
    for parameter in encoder.parameters():  # transformers starts so small that prompts hardly differ
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return encoder


def _saved(folder: Path, parts: dict[str, Any], *, index: str, pad_tokens: dict[str, str]) -> Path:
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    for name, pad_token in pad_tokens.items():
        shutil.copytree(CONFIGS / "sd1" / "tokenizer", folder / name)
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            content = json.loads((folder / name / file).read_text())
            (folder / name / file).write_text(json.dumps({**content, "pad_token": pad_token}))
    shutil.copy(CONFIGS / index / "model_index.json", folder / "model_index.json")
    return folder
