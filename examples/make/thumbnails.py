"""Trains an autoencoder on until three of its four latent numbers are a small picture of the picture.

A patch's mean colour says by itself how much of the patch a shape covers, so a UNet has outlines to draw and no code to
learn; the fourth number is free for what a mean cannot say.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import avg_pool2d

from examples.make import muon
from examples.make.train_vae import psnr, to_tensor

SCALE = 1.5
"""Pictures of the world spread by 0.6 to 0.7 around their mean."""
MOST_NOISE = 0.35
"""Of the latents' spread; it keeps the code smooth."""


def train(out: Path, minutes: float) -> None:
    """From `vae` to `vae_refined`. RANK and WORLD_SIZE as torch.distributed has them share the work."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    vae = AutoencoderKL.from_pretrained(out / "vae").to(memory_format=torch.channels_last)
    world_NHWC, wide_NHWC = (np.load(out / f"{name}.npy", mmap_mode="r") for name in ("pictures", "wide"))
    test_NCHW = to_tensor(np.array(world_NHWC[-48:]))
    draw = np.random.default_rng(9 + rank)
    torch.manual_seed(9 + rank)
    begin(vae, to_tensor(np.array(world_NHWC[:200])))
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
            vae.save_pretrained(out / "vae_refined")
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
        spread_N111 = MOST_NOISE * torch.rand(len(crops), 1, 1, 1)
        error_NCHW = vae.decode(latents_NCHW + spread_N111 * torch.randn_like(latents_NCHW)).sample - real_NCHW
        small_NCHW = avg_pool2d(real_NCHW, 8) * SCALE
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
def begin(vae: AutoencoderKL, pictures_NCHW: Tensor) -> None:
    """Turns the latents so that the first three come as near to thumbnails as a linear map can bring them."""
    own_PC = vae.encode(pictures_NCHW).latent_dist.mode().permute(0, 2, 3, 1).reshape(-1, 4)
    small_P3 = (avg_pool2d(pictures_NCHW, 8) * SCALE).permute(0, 2, 3, 1).reshape(-1, 3)
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


def turn(out: Path, like: Path | None) -> None:
    """Whitens the latents of `vae_refined` and, with a file of latents that a UNet knows, turns them towards those."""
    vae = AutoencoderKL.from_pretrained(out / "vae_refined")
    pictures_NCHW = to_tensor(np.array(np.load(out / "pictures.npy", mmap_mode="r")[:500]))

    def latents_NCHW() -> Tensor:
        return torch.cat([vae.encode(some_BCHW).latent_dist.mode() for some_BCHW in pictures_NCHW.split(50)])

    with torch.no_grad():
        own_NCHW = latents_NCHW()
        like_NCHW = torch.load(like)[:500].float() if like else own_NCHW
        before = psnr(vae, pictures_NCHW[:48])
        align(vae, own_NCHW, like_NCHW)
        left_C = (latents_NCHW() * 0.18215 - like_NCHW).square().mean((0, 2, 3)) / like_NCHW.var((0, 2, 3))
    print(f"psnr {before:.2f} and {psnr(vae, pictures_NCHW[:48]):.2f}; off the others by {left_C.tolist()}")
    vae.save_pretrained(out / "vae_refined")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "turn"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--like", type=Path, help="latents of the same pictures, by an autoencoder that a UNet knows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "train":
        train(args.out, args.minutes)
    else:
        turn(args.out, args.like)


if __name__ == "__main__":
    main()
