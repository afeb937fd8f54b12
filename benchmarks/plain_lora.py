"""The bare work to compare with: a hand-written loop over the same PEFT model, and loading it, nothing else.

Run as `python -m benchmarks.plain_lora MODEL steps|load`; prints seconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

BATCH, SIDE, STEPS, RANK = 2, 128, 24, 16


def load(folder: Path) -> tuple:
    """Import torch, diffusers and transformers, and load what training needs."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    return unet, vae, text_encoder, CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def steps(folder: Path) -> list[float]:
    """Seconds of each step of a plain loop: text, noise, prediction, loss, backward, clip, AdamW."""
    import peft
    import torch

    unet, _, text_encoder, tokenizer = load(folder)
    parameters = []
    for module, targets in (
        (unet, r".*attentions.*(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)"),
        (text_encoder, r".*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"),
    ):
        module.requires_grad_(False).train()
        peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets), module)
        parameters += [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    latents_BCHW = torch.randn(BATCH, 4, SIDE // 8, SIDE // 8)
    captions = ["a sks house on a blue background"] * BATCH
    alphas_T = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        tokens_BL = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        states_BLD = text_encoder(tokens_BL.input_ids).last_hidden_state
        noise_BCHW = torch.randn_like(latents_BCHW)
        t_B = torch.randint(0, 1000, (BATCH,))
        a_B111 = alphas_T[t_B].reshape(-1, 1, 1, 1)
        noisy_BCHW = a_B111.sqrt() * latents_BCHW + (1 - a_B111).sqrt() * noise_BCHW
        predicted_BCHW = unet(noisy_BCHW, t_B, encoder_hidden_states=states_BLD).sample
        loss = torch.nn.functional.mse_loss(predicted_BCHW, noise_BCHW)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> int:
    """Print {"seconds": [...]}."""
    folder, what = Path(sys.argv[1]), sys.argv[2]
    if what == "load":
        load(folder)
        print(json.dumps({"seconds": []}))
    else:
        print(json.dumps({"seconds": steps(folder)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
