"""Trains the decoder on what the UNet draws: outlines which the UNet draws roughly come out clean.

The UNet begins with true pictures under much noise, so that what it draws is known; the encoder, and so all latents,
stay as they are.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from examples.make import export
from examples.make.train_vae import psnr, to_tensor, train_decoder

SCALE = 0.18215
BEGINNINGS = (300, 400, 500, 600)
STEPS = 20
GUIDANCE = 3.0
BATCH = 16


@torch.no_grad()
def drawn(pipe: StableDiffusionPipeline, latents_BCHW: Tensor, captions: list[str], begin: int, seed: int) -> Tensor:
    """What the UNet makes of true latents [B, C, H, W] under noise of the timestep `begin`, by its captions."""
    scheduler = export.ddim()
    scheduler.set_timesteps(STEPS)
    times = [t for t in scheduler.timesteps if t <= begin]
    noise_BCHW = torch.randn(latents_BCHW.shape, generator=torch.Generator().manual_seed(seed))
    x_BCHW = scheduler.add_noise(latents_BCHW, noise_BCHW, times[0])
    words = [*captions, *[""] * len(captions)]
    ids_BL = pipe.tokenizer(words, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    states_BLD = pipe.text_encoder(ids_BL)[0]
    for t in times:
        own_BCHW, none_BCHW = pipe.unet(torch.cat([x_BCHW, x_BCHW]), t, states_BLD).sample.chunk(2)
        guess_BCHW = none_BCHW + GUIDANCE * (own_BCHW - none_BCHW)
        x_BCHW = scheduler.step(guess_BCHW, t, x_BCHW).prev_sample
    return x_BCHW


def draw(out: Path, number: int, part: int, parts: int) -> None:
    """Writes the drawn latents of every `parts`-th batch of pictures."""
    pipe = export.pipeline(out, 128, Path("examples/model/tokenizer"))
    latents_NCHW = torch.load(out / "latents128.pt")
    captions = json.loads((out / "captions.json").read_text(encoding="utf-8"))
    picks_N = np.random.default_rng(7).permutation(len(latents_NCHW) - 48)[:number]
    found, kept = [], []
    for index, start in enumerate(range(0, number, BATCH)):
        if index % parts != part:
            continue
        picks = picks_N[start : start + BATCH].tolist()
        begin = BEGINNINGS[index // parts % len(BEGINNINGS)]
        found.append(drawn(pipe, latents_NCHW[picks].float(), [captions[i] for i in picks], begin, index).half())
        kept += picks
        torch.save({"latents": torch.cat(found), "picks": kept}, out / f"drawn{part}.pt")
        print(f"{len(kept)} drawn", flush=True)


def train(out: Path, minutes: float) -> None:
    """Three drawn pictures and a true one at a time, at their whole size."""
    vae = AutoencoderKL.from_pretrained(out / "vae_refined").to(memory_format=torch.channels_last)
    files = [torch.load(path) for path in sorted(out.glob("drawn*.pt"))]
    latents_NCHW = torch.cat([file["latents"] for file in files]).float()
    picks = [pick for file in files for pick in file["picks"]]
    true_NCHW = torch.load(out / "latents128.pt")
    pictures_NHWC = np.load(out / "pictures.npy", mmap_mode="r")
    held = 32
    test_NCHW, last_NCHW = (to_tensor(np.array(pictures_NHWC[where])) for where in (slice(-48, None), picks[-held:]))
    random = np.random.default_rng(5)

    def error_of() -> Tensor:
        rows = random.integers(0, len(picks) - held, 3).tolist()
        other = int(random.integers(0, len(true_NCHW) - 48))
        x_BCHW = torch.cat([latents_NCHW[rows], true_NCHW[other : other + 1].float()]) / SCALE
        real_NCHW = to_tensor(np.stack([pictures_NHWC[i] for i in [*(picks[row] for row in rows), other]]))
        return vae.decode(x_BCHW.contiguous(memory_format=torch.channels_last)).sample - real_NCHW

    def tell(said: str) -> None:
        with torch.no_grad():
            rough = float((vae.decode(latents_NCHW[-held:] / SCALE).sample - last_NCHW).abs().mean())
        print(f"{said} drawn {rough:.4f} true psnr {psnr(vae, test_NCHW):.2f}", flush=True)
        vae.save_pretrained(out / "vae_polished")

    train_decoder(vae, minutes, error_of, tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("draw", "train"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=1600)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.what == "draw":
        draw(args.out, args.number, args.part, args.parts)
    else:
        train(args.out, args.minutes)


if __name__ == "__main__":
    main()
