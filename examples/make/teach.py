"""Teaches the house to the embedded model with a LoRA, to find the settings and to measure what comes out."""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import Tensor, nn

from examples.make import evaluate
from examples.make.train_vae import to_tensor

UNET_PARTS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
TEXT_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def load_pairs(folder: Path, pipe: StableDiffusionPipeline) -> list[tuple[Tensor, Tensor]]:
    """Latents and caption ids of a folder."""
    pairs = []
    for path in sorted(folder.glob("*.png")):
        words = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        pixels_BCHW = to_tensor(np.asarray(Image.open(path).convert("RGB"))[None])
        with torch.no_grad():
            latents_BCHW = pipe.vae.encode(pixels_BCHW).latent_dist.mode() * pipe.vae.config.scaling_factor
        ids = pipe.tokenizer(words, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        pairs.append((latents_BCHW[0], ids[0]))
    return pairs


def batch_of(pairs: list[tuple[Tensor, Tensor]], count: int, rng: random.Random) -> list[tuple[Tensor, Tensor]]:
    """Pictures of one size, as a bucket gives them."""
    shape = rng.choice(pairs)[0].shape
    return rng.choices([p for p in pairs if p[0].shape == shape], k=count)


def teach(pipe: StableDiffusionPipeline, examples: Path, args: argparse.Namespace) -> None:
    """Trains in place."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    for part, names, lr in ((pipe.unet, UNET_PARTS, args.lr), (pipe.text_encoder, TEXT_PARTS, args.text_lr)):
        part.requires_grad_(False)
        if lr > 0:
            inject_adapter_in_model(LoraConfig(r=args.rank, lora_alpha=args.alpha, target_modules=list(names)), part)
    house, other = load_pairs(examples / "dataset", pipe), load_pairs(examples / "regularisation", pipe)
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "lr": lr}
        for part, lr in ((pipe.unet, args.lr), (pipe.text_encoder, args.text_lr))
    ]
    groups = [g for g in groups if g["params"]]
    opt = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min(1.0, (s + 1) / 10) * (1 - s / args.steps if args.decay else 1.0)
    )
    noiser = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    for step in range(args.steps):
        chosen = batch_of(other if args.reg and step % 2 else house, args.batch, rng)
        clean_BCHW, ids_BS = (torch.stack(x) for x in zip(*chosen, strict=True))
        noise_BCHW = torch.randn_like(clean_BCHW)
        times_B = torch.randint(0, 1000, (args.batch,))
        noisy_BCHW = noiser.add_noise(clean_BCHW, noise_BCHW, times_B)
        context_BSD = pipe.text_encoder(ids_BS)[0]
        guess_BCHW = pipe.unet(noisy_BCHW, times_B, context_BSD).sample
        loss = nn.functional.mse_loss(guess_BCHW, noise_BCHW)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        opt.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("examples/model"))
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--text-lr", type=float, default=4e-3)
    parser.add_argument("--decay", action="store_true")
    parser.add_argument("--reg", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--before", action="store_true", help="measure the untaught model as well")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(args.model, safety_checker=None).to(torch.float32)
    concept, old = evaluate.concept_prompts(args.n, 2001), evaluate.old_prompts(args.n, 2002)
    for when in ("before", "after") if args.before else ("after",):
        if when == "after":
            start = time.process_time()
            teach(pipe, args.examples, args)
            print(f"taught in {time.process_time() - start:.0f} CPU seconds: {vars(args)}", flush=True)
        for name, flag in (("seen", True), ("unseen", False)):
            some = [(c, s) for c, s, seen in concept if seen == flag]
            images = evaluate.pictures(pipe, [c for c, _ in some])
            evaluate.report(f"{when}, house on {name} backgrounds", images, [s for _, s in some])
            if args.sheet:
                evaluate.sheet(images[:16], args.sheet.with_stem(f"{args.sheet.stem}_{when}_{name}"))
        images = evaluate.pictures(pipe, [c for c, _ in old])
        evaluate.report(f"{when}, old prompts", images, [s for _, s in old])


if __name__ == "__main__":
    main()
