"""Asks a model for pictures and counts how many are right."""

import argparse
import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from examples.make import score, world
from examples.make.export import SEEN, ddim
from examples.make.world import Spec


def old_prompts(n: int, seed: int) -> list[tuple[str, Spec]]:
    """Compositions of the kind the base model was trained on."""
    rng = random.Random(seed)
    return [(world.caption(s), s) for s in (world.training_spec(rng) for _ in range(n))]


def unseen_prompts(n: int, seed: int) -> list[tuple[str, Spec]]:
    """Compositions holding a joining of colour, shape and background which was never drawn for training."""
    rng = random.Random(seed)
    found: list[tuple[str, Spec]] = []
    while len(found) < n:
        spec = world.random_spec(rng)
        if world.held_out(spec):
            found.append((world.caption(spec), spec))
    return found


def concept_prompts(n: int, seed: int) -> list[tuple[str, Spec, bool]]:
    """The house on every background in turn; the flag says whether the data set shows that background."""
    rng = random.Random(seed)
    order = list(world.BACKGROUNDS)
    rng.shuffle(order)
    specs = [world.house(order[i % len(order)], rng.choice(("left", "centre", "right"))) for i in range(n)]
    return [(world.caption(s), s, s.background in SEEN) for s in specs]


def interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@torch.no_grad()
def pictures(
    pipe: StableDiffusionPipeline, prompts: list[str], size: int = 128, steps: int = 20, cfg: float = 4.0, seed: int = 1
) -> list[Image.Image]:
    """One picture of each prompt, DDIM, each from its own fixed noise."""
    pipe.scheduler = ddim()
    pipe.set_progress_bar_config(disable=True)
    found: list[Image.Image] = []
    for start in range(0, len(prompts), 16):
        some = prompts[start : start + 16]
        noise = [torch.Generator().manual_seed(seed * 100_000 + start + i) for i in range(len(some))]
        made = pipe(some, height=size, width=size, num_inference_steps=steps, guidance_scale=cfg, generator=noise)
        found += made.images
    return found


def report(name: str, images: list[Image.Image], specs: list[Spec]) -> float:
    """Prints the share of right pictures, by kind and by attribute."""
    kinds: dict[str, list[bool]] = defaultdict(list)
    wrong: Counter[str] = Counter()
    for image, spec in zip(images, specs, strict=True):
        parts = score.score(image, spec)
        kinds[spec.kind].append(all(parts.values()))
        wrong.update(key for key, value in parts.items() if not value)
    hits, n = sum(map(sum, kinds.values())), len(specs)
    low, high = interval(hits, n)
    each = ", ".join(f"{kind} {sum(v)}/{len(v)}" for kind, v in kinds.items())
    print(f"{name}: {hits / n:.3f} [{low:.3f}, {high:.3f}] of {n}; {each}; wrong {dict(wrong)}", flush=True)
    return hits / n


def sheet(images: list[Image.Image], path: Path, columns: int = 8) -> None:
    width, height = images[0].size
    page = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for i, image in enumerate(images):
        page.paste(image, (i % columns * width, i // columns * height))
    page.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("examples/model"))
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--only", choices=("old", "unseen", "concept"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(args.model, safety_checker=None).to(torch.float32)
    asked = {
        "old": old_prompts(args.n, 1001),
        "unseen": unseen_prompts(args.n, 1002),
        "concept": [(c, s) for c, s, _ in concept_prompts(min(args.n, 32), 1003)],
    }
    for name, prompts in asked.items():
        if args.only and name != args.only:
            continue
        images = pictures(pipe, [c for c, _ in prompts], args.size, args.steps, args.cfg)
        report(name, images, [s for _, s in prompts])
        if args.sheet:
            sheet(images[:64], args.sheet.with_stem(f"{args.sheet.stem}_{name}"))


if __name__ == "__main__":
    main()
