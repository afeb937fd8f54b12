"""Trains the autoencoder on wide drawn data: random colours, gradients, textures, creatures and the world."""

import argparse
import os
import random
import time
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from torch import Tensor

from examples.make import muon, world

THUMBNAIL_SCALE = 1.5  # pictures of the world spread by 0.6 to 0.7 around their mean


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


def refine(out: Path, minutes: float) -> None:
    """Trains the decoder on at 64 px crops, with latents a little off."""
    vae = AutoencoderKL.from_pretrained(out / "vae")
    world_NHWC, wide_NHWC = (np.load(out / f"{name}.npy", mmap_mode="r") for name in ("pictures", "wide"))
    test_NCHW = to_tensor(np.array(world_NHWC[-48:]))
    draw = np.random.default_rng(5)

    def error_of() -> Tensor:
        crops = []
        for _ in range(8):
            pool_NHWC = world_NHWC[:-48] if draw.random() < 0.7 else wide_NHWC
            y, x = draw.integers(0, 65, 2)
            crops.append(pool_NHWC[draw.integers(0, len(pool_NHWC)), y : y + 64, x : x + 64])
        real_NCHW = to_tensor(np.stack(crops))
        with torch.no_grad():
            latents_NCHW = vae.encode(real_NCHW).latent_dist.mode()
        latents_NCHW = latents_NCHW + 0.15 * torch.randn_like(latents_NCHW)
        return vae.decode(latents_NCHW).sample - real_NCHW

    def tell(said: str) -> None:
        print(f"{said} psnr {psnr(vae, test_NCHW):.2f}", flush=True)
        vae.save_pretrained(out / "vae_refined")

    train_decoder(vae, minutes, error_of, tell)


def as_thumbnails(out: Path, minutes: float) -> None:
    """Trains a finished autoencoder on until three of its latent numbers are a small picture of the picture.

    A patch's mean colour says by itself how much of it a shape covers, so a UNet has outlines to draw and no code to
    learn; the fourth number is free for what a mean cannot say. Noise of up to 0.35 of the latents' spread keeps the
    code smooth. `RANK` and `WORLD_SIZE` as torch.distributed has them share the work.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    vae = AutoencoderKL.from_pretrained(out / "vae_before").to(memory_format=torch.channels_last)
    world_NHWC, wide_NHWC = (np.load(out / f"{name}.npy", mmap_mode="r") for name in ("pictures", "wide"))
    test_NCHW = to_tensor(np.array(world_NHWC[-48:]))
    draw = np.random.default_rng(9 + rank)
    torch.manual_seed(9 + rank)
    begin_thumbnails(vae, to_tensor(np.array(world_NHWC[:200])))
    opts = muon.optimisers(vae, 0.01, 5e-4)
    params = list(vae.parameters())
    groups = [group for opt in opts for group in opt.param_groups]
    base = [group["lr"] for group in groups]
    step, clock, told, off = 0, time.monotonic(), 0.0, 0.0
    now = torch.zeros(1)
    while True:
        now[0] = time.monotonic() - clock
        if ranks > 1:
            dist.broadcast(now, 0)
        done = float(now) / minutes / 60
        ended = done >= 1
        if rank == 0 and (ended or float(now) - told > 60):
            told = float(now)
            print(f"step {step} used {told:.0f}s thumbnails {off:.4f} psnr {psnr(vae, test_NCHW):.2f}", flush=True)
            vae.save_pretrained(out / "vae_raw")
        if ended:
            break
        for lr, group in zip(base, groups, strict=True):
            group["lr"] = lr * min(1, (1 - done) / 0.7 + 0.01, (step + 1) / 50)
        crops = []
        for _ in range(6):
            pool_NHWC = world_NHWC[:-48] if draw.random() < 0.75 else wide_NHWC
            y, x = draw.integers(0, 65, 2)
            crops.append(pool_NHWC[draw.integers(0, len(pool_NHWC)), y : y + 64, x : x + 64])
        real_NCHW = to_tensor(np.stack(crops)).contiguous(memory_format=torch.channels_last)
        latents_NCHW = vae.encode(real_NCHW).latent_dist.mode()
        spread_N111 = 0.35 * torch.rand(len(crops), 1, 1, 1)
        error_NCHW = vae.decode(latents_NCHW + spread_N111 * torch.randn_like(latents_NCHW)).sample - real_NCHW
        small_NCHW = torch.nn.functional.avg_pool2d(real_NCHW, 8) * THUMBNAIL_SCALE
        thumbnails = (latents_NCHW[:, :3] - small_NCHW).square().mean()
        free = (latents_NCHW[:, 3].square().mean() - 1).square()
        loss = error_NCHW.abs().mean() + 2 * error_NCHW.square().mean() + thumbnails + 0.02 * free
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        if ranks > 1:
            muon.average_gradients(params, ranks)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for opt in opts:
            opt.step()
        step += 1
        off = 0.98 * off + 0.02 * thumbnails.item()


@torch.no_grad()
def fold(vae: AutoencoderKL, matrix_CC: Tensor, shift_C: Tensor) -> None:
    """Makes the latents `matrix @ latents + shift` by way of the 1x1 convolutions; what is decoded stays the same."""
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:4] = matrix_CC @ quant.bias[:4] + shift_C
    quant.weight[:4, :, 0, 0] = matrix_CC @ quant.weight[:4, :, 0, 0]
    back_CC = post.weight[:, :, 0, 0] @ torch.linalg.inv(matrix_CC)
    post.bias -= back_CC @ shift_C
    post.weight[:, :, 0, 0] = back_CC


@torch.no_grad()
def begin_thumbnails(vae: AutoencoderKL, pictures_NCHW: Tensor) -> None:
    """Turns the latents so that the first three come as near to thumbnails as a linear map can bring them."""
    own_PC = vae.encode(pictures_NCHW).latent_dist.mode().permute(0, 2, 3, 1).reshape(-1, 4)
    small_P3 = (torch.nn.functional.avg_pool2d(pictures_NCHW, 8) * THUMBNAIL_SCALE).permute(0, 2, 3, 1).reshape(-1, 3)
    map_53 = torch.linalg.lstsq(torch.cat([own_PC, torch.ones(len(own_PC), 1)], 1), small_P3).solution
    free_C = torch.linalg.svd(map_53[:4].T).Vh[3]
    free_P = own_PC @ free_C
    matrix_CC = torch.cat([map_53[:4].T, (free_C / free_P.std())[None]])
    fold(vae, matrix_CC, torch.cat([map_53[4], -(free_P.mean() / free_P.std())[None]]))


@torch.no_grad()
def align(vae: AutoencoderKL, latents_NCHW: Tensor, like_NCHW: Tensor) -> None:
    """Makes the latents white and then turns them as near as can be to others; nothing that is drawn changes.

    latents_NCHW: of this autoencoder; like_NCHW: of the same pictures by another, times 0.18215. (The turn is the
    orthogonal Procrustes problem's solution, so white noise stays white.)
    """
    own_PC, like_PC = (x.permute(0, 2, 3, 1).reshape(-1, 4).double() for x in (latents_NCHW, like_NCHW))
    mean_C = own_PC.mean(0)
    values_C, vectors_CC = torch.linalg.eigh(torch.cov((own_PC - mean_C).T))
    white_CC = vectors_CC @ torch.diag(values_C.rsqrt()) @ vectors_CC.T
    left_CC, _, right_CC = torch.linalg.svd((like_PC - like_PC.mean(0)).T @ (own_PC - mean_C) @ white_CC.T)
    turn_CC = left_CC @ right_CC @ white_CC / 0.18215
    fold(vae, turn_CC.float(), -(turn_CC @ mean_C).float())


def aligned(out: Path) -> None:
    """Writes `vae` from `vae_raw`, its latents turned towards the latents of before."""
    vae = AutoencoderKL.from_pretrained(out / "vae_raw")
    like_NCHW = torch.load(out / "latents128_before.pt")[:500].float()
    pictures_NCHW = to_tensor(np.array(np.load(out / "pictures.npy", mmap_mode="r")[:500]))
    with torch.no_grad():
        before = psnr(vae, pictures_NCHW[:48])
        align(vae, torch.cat([vae.encode(x).latent_dist.mode() for x in pictures_NCHW.split(50)]), like_NCHW)
        now_NCHW = torch.cat([vae.encode(x).latent_dist.mode() for x in pictures_NCHW.split(50)]) * 0.18215
        left_C = (now_NCHW - like_NCHW).square().mean((0, 2, 3)) / like_NCHW.var((0, 2, 3))
    print(f"psnr {before:.2f} and {psnr(vae, pictures_NCHW[:48]):.2f}; spread {now_NCHW.std((0, 2, 3))}; off {left_C}")
    vae.save_pretrained(out / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--refine", action="store_true", help="train the decoder of a finished autoencoder on")
    parser.add_argument("--thumbnails", action="store_true", help="train a finished one's latents towards thumbnails")
    parser.add_argument("--align", action="store_true", help="turn the thumbnails' latents towards those of before")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.thumbnails:
        as_thumbnails(args.out, args.minutes)
        return
    if args.align:
        aligned(args.out)
        return
    if args.refine:
        refine(args.out, args.minutes)
        return
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
