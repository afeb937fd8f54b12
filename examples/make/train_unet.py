"""Trains the UNet at 64 px, then at 128 px, beside a text encoder which is set by construction."""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples.make import muon, wiring, world
from examples.make.train_vae import to_tensor

BLOCK = 1000


OPTIMISERS: dict[str, Callable[[nn.Module, float], list[torch.optim.Optimizer]]] = {
    "muon": lambda unet, lr: muon.optimisers(unet, lr, lr * 0.05),
    "adamw": lambda unet, lr: [torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=0.0, betas=(0.9, 0.99))],
}
"""Muon learns what the words mean in a thousand steps and then only walks about; AdamW goes on from there."""


def build_unet() -> UNet2DConditionModel:
    """Real Stable Diffusion 1 topology, made narrow."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 64, 96, 96),
        layers_per_block=2,
        attention_head_dim=4,
        cross_attention_dim=64,
        norm_num_groups=16,
    )
    for name, param in unet.named_parameters():
        if ("resnets" in name and ".conv2." in name) or name.startswith("conv_out"):
            nn.init.zeros_(param)
    return unet


def text_config(vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=64,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )


def drawn(block: int) -> tuple[np.ndarray, list[str]]:
    """One block of training pictures with their captions, some of these without the place."""
    rng = random.Random(10_000 + block)
    specs = [world.training_spec(rng) for _ in range(BLOCK)]
    words = [world.caption(s) for s in specs]
    words = [w.rsplit(",", 1)[0] if rng.random() < 0.1 else w for w in words]
    return np.stack([world.draw(s, rng) for s in specs]), words


def render(out: Path, blocks: int) -> None:
    with Pool(2) as pool:
        results = pool.map(drawn, range(blocks), chunksize=1)
    np.save(out / "pictures.npy", np.concatenate([pictures for pictures, _ in results]))
    (out / "captions.json").write_text(json.dumps([w for _, words in results for w in words]), encoding="utf-8")


@torch.no_grad()
def encode(out: Path, vae_dir: Path) -> None:
    """Latents of all pictures at both sizes."""
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(vae_dir).to(memory_format=torch.channels_last)
    pictures = np.load(out / "pictures.npy", mmap_mode="r")
    for size in (64, 128):
        found = []
        for start in range(0, len(pictures), 100):
            pixels_BCHW = to_tensor(np.asarray(pictures[start : start + 100]))
            if size == 64:
                pixels_BCHW = nn.functional.avg_pool2d(pixels_BCHW, 2)
            pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
            found.append((vae.encode(pixels_BCHW).latent_dist.mode() * 0.18215).half())
        torch.save(torch.cat(found).contiguous(), out / f"latents{size}.pt")
        print(f"encoded at {size}", flush=True)


class Model(nn.Module):
    """Both networks under one name, with a text encoder which knows only the words in use."""

    def __init__(self, used_R: Tensor, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_unet()
        wiring.forget_names(list(self.unet.named_parameters()))
        self.text = CLIPTextModel(text_config(len(used_R)))
        wiring.wire(self.text, used_R, tokenizer)
        self.text.requires_grad_(False)


def begin_from(model: Model, folder: Path, used_R: Tensor) -> None:
    """Takes over the UNet and the text encoder of an exported model."""
    model.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict())
    state = CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict()
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    model.text.load_state_dict(state | {name: state[name][used_R]})


def tokenised(captions: list[str], tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor]:
    """Caption ids in the compact table (the empty caption last), and the true ids of its rows."""
    full_NS = tokenizer(
        [*captions, ""], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    used_R, compact_N = full_NS.unique(return_inverse=True)
    return compact_N.reshape(full_NS.shape), used_R


@torch.no_grad()
def report(
    unet: UNet2DConditionModel, latents_NCHW: Tensor, context: Callable[[Tensor], Tensor], alphas_T: Tensor
) -> str:
    """How well 64 fixed pictures are guessed from much noise with their own captions, and with each other's.

    The error is that of the guessed picture, of about 0.8 that there is to know; jitter leaves 0.02 to 0.03.
    """
    generator = torch.Generator().manual_seed(5)
    picks_B = torch.randint(0, len(latents_NCHW), (64,), generator=generator)
    others_B = picks_B.roll(1)
    said = []
    for time_step in (980, 900, 750, 600):
        noise_BCHW = torch.randn(64, *latents_NCHW.shape[1:], generator=generator)
        alpha = alphas_T[time_step]
        noisy_BCHW = alpha.sqrt() * latents_NCHW[picks_B] + (1 - alpha).sqrt() * noise_BCHW
        errors = []
        for words_B in (picks_B, others_B):
            guess_BCHW = unet(noisy_BCHW, torch.full((64,), time_step), context(words_B)).sample
            errors.append(float(mse_loss(guess_BCHW, noise_BCHW) * (1 - alpha) / alpha))
        said.append(f"{time_step}: {errors[0]:.3f} ({errors[1]:.3f})")
    return ", ".join(said)


def train(args: argparse.Namespace) -> None:
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out: Path = args.out
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    ids_NS, used_R = tokenised(json.loads((out / "captions.json").read_text(encoding="utf-8")), tokenizer)
    latents_NCHW = torch.load(out / f"latents{args.size}.pt").float()
    model = Model(used_R, tokenizer).to(memory_format=torch.channels_last)
    path = out / f"unet{args.size}.pt"
    if args.start:
        begin_from(model, args.start, used_R)
    elif args.size == 128 and not path.exists():
        model.load_state_dict(torch.load(out / "unet64.pt")["ema"])
    opts = OPTIMISERS[args.optimiser](model.unet, args.lr)
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [g for opt in opts for g in opt.param_groups]
    base = [g["lr"] for g in groups]
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    step, used = 0, 0.0
    if path.exists():
        state = torch.load(path)
        ema = state["ema"]
        if state["optimiser"] == args.optimiser:
            model.load_state_dict(state["model"])
            for opt, saved_opt in zip(opts, state["opts"], strict=True):
                opt.load_state_dict(saved_opt)
            step, used = state["step"], state["used"]
        else:  # another optimiser begins from the smoothed weights, with a clock of its own
            model.load_state_dict(ema)
    with torch.no_grad():
        distinct_MS, which_N = ids_NS.unique(dim=0, return_inverse=True)
        cache_MSD = torch.cat([model.text.eval()(c)[0].half() for c in distinct_MS.split(64)])

    def context(words_B: Tensor) -> Tensor:
        return cache_MSD[which_N[words_B]].float()

    print(f"text cached {tuple(cache_MSD.shape)}", flush=True)
    alphas_T = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod
    torch.manual_seed(step * 16 + rank + 1)
    clock, saved, budget = time.monotonic() - used, used, args.minutes * 60
    empty, count = len(latents_NCHW), args.batch
    losses = 0.0
    stop = torch.zeros(2)
    while True:
        stop[0], stop[1] = used, float(used >= budget or time.time() > args.until)
        if ranks > 1:
            dist.broadcast(stop, 0)
        now, ended = float(stop[0]), bool(stop[1])
        if ended or now - saved > 120:
            saved = now
            if rank == 0:
                blob = {
                    "model": model.state_dict(),
                    "ema": ema,
                    "step": step,
                    "used": now,
                    "used_ids": used_R,
                    "optimiser": args.optimiser,
                }
                torch.save({**blob, "opts": [o.state_dict() for o in opts]}, path.with_suffix(".new"))
                path.with_suffix(".new").rename(path)
                smooth = build_unet().to(memory_format=torch.channels_last)
                smooth.load_state_dict({k.removeprefix("unet."): v for k, v in ema.items() if k.startswith("unet.")})
                said = report(smooth, latents_NCHW, context, alphas_T)
                print(f"step {step} used {now:.0f}s loss {losses:.4f} errors {said}", flush=True)
        if ended:
            break
        done = now / budget
        for lr, group in zip(base, groups, strict=True):
            group["lr"] = lr * min(1.0, (step + 1) / 50, args.last + (1 - args.last) * (1 - done) / 0.6)
        picks_B = torch.randint(0, empty, (count,))
        words_B = torch.where(torch.rand(count) < 0.1, torch.tensor(empty), picks_B)
        clean_BCHW = latents_NCHW[picks_B]
        times_B = torch.randint(0, 1000, (count,))
        times_B = torch.where(torch.rand(count) < args.noisy, torch.randint(400, 1000, (count,)), times_B)
        alpha_B111 = alphas_T[times_B][:, None, None, None]
        noise_BCHW = torch.randn_like(clean_BCHW)
        noisy_BCHW = alpha_B111.sqrt() * clean_BCHW + (1 - alpha_B111).sqrt() * noise_BCHW
        guess_BCHW = model.unet(
            noisy_BCHW.contiguous(memory_format=torch.channels_last), times_B, context(words_B)
        ).sample
        snr_B = (alpha_B111 / (1 - alpha_B111)).flatten()
        each_B = mse_loss(guess_BCHW, noise_BCHW, reduction="none").mean((1, 2, 3))
        weight_B = snr_B.clamp(max=5) / snr_B * snr_B.clamp(max=1) ** -0.6
        loss = (each_B * weight_B).mean()
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        if ranks > 1:
            muon.average_gradients(params, ranks)
        nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
        step += 1
        keep = min(0.995, step / (step + 20))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                ema[name].lerp_(value, 1 - keep) if value.is_floating_point() else ema[name].copy_(value)
        losses = loss.item() if step == 1 else 0.98 * losses + 0.02 * loss.item()
        used = time.monotonic() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("render", "encode", "train"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("examples/model/tokenizer"))
    parser.add_argument("--start", type=Path, help="an exported model folder to begin from, at either size")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--size", type=int, choices=(64, 128), default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--until", type=float, default=float("inf"), help="stop at this clock time (seconds)")
    parser.add_argument("--lr", type=float, default=1e-3, help="0.02 for muon")
    parser.add_argument("--optimiser", choices=tuple(OPTIMISERS), default="adamw")
    parser.add_argument("--noisy", type=float, default=0.5, help="share of pictures that never get little noise")
    parser.add_argument("--last", type=float, default=0.02, help="the last step's share of the learning rate")
    args = parser.parse_args()
    if args.what == "render":
        render(args.out, args.blocks)
    elif args.what == "encode":
        encode(args.out, args.start / "vae" if args.start else args.out / "vae_refined")
    else:
        train(args)


if __name__ == "__main__":
    main()
