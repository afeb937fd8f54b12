"""Trains the autoencoder on wide drawn data: random colours, gradients, textures, creatures and the world."""

import argparse
import random
import time
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from examples.make import muon, world


def build() -> AutoencoderKL:
    """Real Stable Diffusion 1 topology, made narrow."""
    widths = (16, 32, 64, 64)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=0.18215,
    )
    for name, param in vae.named_parameters():
        if "resnets" in name and ".conv2." in name:
            torch.nn.init.zeros_(param)
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -6
    return vae


def wide_picture(seed: int) -> np.ndarray:
    """One 128 px training picture."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    if rng.random() < 0.45:
        return world.draw(world.training_spec(rng), rng)
    ys, xs = np.mgrid[0:128, 0:128].astype(np.float32) / 128
    canvas_HWC = np.empty((128, 128, 3), np.float32)
    canvas_HWC[:] = noise.uniform(0, 255, 3)
    if rng.random() < 0.4:  # a gradient
        turn = rng.uniform(0, 6.3)
        ramp = np.clip((xs - 0.5) * np.cos(turn) + (ys - 0.5) * np.sin(turn) + 0.5, 0, 1)[..., None]
        canvas_HWC += ramp * (noise.uniform(0, 255, 3) - canvas_HWC)
    if rng.random() < 0.3:  # waves
        wave = np.sin(xs * rng.uniform(-50, 50) + ys * rng.uniform(-50, 50))
        canvas_HWC += wave[..., None] * noise.uniform(-50, 50, 3)
    for _ in range(rng.choice((1, 2, 4, 7, 12))):  # a creature of many parts
        w, h = rng.uniform(6, 80), rng.uniform(6, 80)
        x, y = rng.uniform(-20, 120), rng.uniform(-20, 120)
        mask = world.shape_mask(rng.choice(world.SHAPES), (x, y, x + w, y + h), 128, 128, 2)
        canvas_HWC += mask[..., None] * (noise.uniform(0, 255, 3) - canvas_HWC)
    if rng.random() < 0.15:
        canvas_HWC += noise.normal(0, rng.uniform(2, 20), canvas_HWC.shape)
    return canvas_HWC.clip(0, 255).astype(np.uint8)


def to_tensor(pictures_NHWC: np.ndarray) -> Tensor:
    return torch.tensor(pictures_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures_NCHW: Tensor) -> float:
    recon_NCHW = vae.decode(vae.encode(pictures_NCHW).latent_dist.mode()).sample.clamp(-1, 1)
    mse_N = ((recon_NCHW - pictures_NCHW) / 2).square().mean((1, 2, 3))
    return float((-10 * mse_N.log10()).mean())


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures_NCHW: Tensor) -> None:
    """Folds per-channel scaling into the 1x1 convolutions, so that 0.18215 is right."""
    latents_NCHW = vae.encode(pictures_NCHW).latent_dist.mode()
    mean_C, std_C = latents_NCHW.mean((0, 2, 3)), latents_NCHW.std((0, 2, 3))
    target = 1 / 0.18215
    vae.quant_conv.weight[:4] *= (target / std_C)[:, None, None, None]
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean_C) * target / std_C
    vae.quant_conv.bias[4:] += 2 * (target / std_C).log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean_C
    vae.post_quant_conv.weight *= (std_C / target)[None, :, None, None]


def train_decoder(
    vae: AutoencoderKL, minutes: float, error_of: Callable[[], Tensor], tell: Callable[[str], None]
) -> None:
    """Trains the decoder on; the encoder and so all latents stay as they are.

    error_of: the error of one batch [B, C, H, W]. tell: is told once a minute and at the end how far it is.
    """
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    opts = muon.optimisers(vae, 0.01, 5e-4)
    groups = [group for opt in opts for group in opt.param_groups]
    base = [group["lr"] for group in groups]
    step, clock, told = 0, time.monotonic(), 0.0
    while (used := time.monotonic() - clock) < minutes * 60:
        for lr, group in zip(base, groups, strict=True):
            group["lr"] = lr * min(1, (1 - used / minutes / 60) / 0.7 + 0.01)
        error_NCHW = error_of()
        loss = error_NCHW.abs().mean() + 2 * error_NCHW.square().mean()
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        for opt in opts:
            opt.step()
        step += 1
        if used - told > 60:
            told = used
            tell(f"step {step} used {used:.0f}s")
    tell(f"step {step}, the last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=8000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cache = args.out / "wide.npy"
    if not cache.exists():
        with Pool(2) as pool:
            np.save(cache, np.stack(pool.map(wide_picture, range(args.pictures), chunksize=100)))
    pool_NHWC = np.load(cache)
    rng = random.Random(1)
    test_NCHW = to_tensor(np.stack([world.draw(world.random_spec(rng), rng) for _ in range(48)]))
    vae = build().to(memory_format=torch.channels_last)
    checkpoint = args.out / "vae.pt"
    opts = muon.optimisers(vae)
    base = [group["lr"] for opt in opts for group in opt.param_groups]
    step, used, saved = 0, 0.0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        vae.load_state_dict(state["vae"])
        for opt, saved_opt in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved_opt)
        step, used = state["step"], state["used"]
        saved = used
    draw = np.random.default_rng(step)
    clock = time.monotonic() - used
    budget = args.minutes * 60
    while used < budget:
        done = used / budget
        size, batch = (32, 16) if done < 0.6 else (64, 6)
        for lr, group in zip(base, [g for opt in opts for g in opt.param_groups], strict=True):
            group["lr"] = lr * min(1, (1 - done) / 0.6 + 0.01)
        picks = draw.integers(0, len(pool_NHWC), batch)
        corners = draw.integers(0, 128 - size + 1, (batch, 2))
        crops_NHWC = np.stack(
            [pool_NHWC[i, y : y + size, x : x + size] for i, (y, x) in zip(picks, corners, strict=True)]
        )
        real_NCHW = to_tensor(crops_NHWC).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(real_NCHW).latent_dist
        recon_NCHW = vae.decode(posterior.sample()).sample
        error_NCHW = recon_NCHW - real_NCHW
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = error_NCHW.abs().mean() + 2 * error_NCHW.square().mean() + 5e-5 * kl
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for opt in opts:
            opt.step()
        step += 1
        used = time.monotonic() - clock
        if used - saved > 60 or used >= budget:
            saved = used
            value = psnr(vae, test_NCHW)
            print(
                f"step {step} used {used:.0f}s loss {loss.item():.4f} kl {kl.item():.2f} psnr {value:.2f}", flush=True
            )
            state = {"vae": vae.state_dict(), "opts": [o.state_dict() for o in opts], "step": step, "used": used}
            torch.save(state, checkpoint)
    whiten(vae, to_tensor(pool_NHWC[:256]))
    print(f"final psnr {psnr(vae, test_NCHW):.2f}", flush=True)
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
