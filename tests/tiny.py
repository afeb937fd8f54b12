"""A Stable Diffusion 1.x pipeline of the real topology with few channels and random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.families.sd1 import BUILT_IN

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
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=64,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=TEXT_LAYERS,
                num_attention_heads=4,
                bos_token_id=49406,
                eos_token_id=49407,
            )
        )
        for parameter in text_encoder.parameters():  # transformers starts so small that prompts hardly differ
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(BUILT_IN / "tokenizer", folder / "tokenizer")
    shutil.copy(BUILT_IN / "model_index.json", folder / "model_index.json")
    return folder
