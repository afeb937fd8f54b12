"""Writes what is shipped: the model folder, the data set, the regularisation pictures and the two text files."""

import argparse
import json
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from examples.make import wiring, world
from examples.make.train_unet import Model, text_config

SEEN = ("white", "blue", "green", "gray")
UNSEEN = ("red", "black", "yellow", "purple")
TOML = """\
[general]
enable_bucket = true
bucket_reso_steps = 32
min_bucket_reso = 64
max_bucket_reso = 256

[[datasets]]
resolution = 128
batch_size = 4

[[datasets.subsets]]
image_dir = "examples/dataset"
caption_extension = ".txt"
num_repeats = 2

[[datasets.subsets]]
is_reg = true
image_dir = "examples/regularisation"
caption_extension = ".txt"
num_repeats = 1
"""
PROMPTS = (
    "a sks house on a blue background, centre",
    "a sks house on a red background, left",
    "a sks house on a white background, right",
)
VAES = ("vae_polished", "vae_refined", "vae")
"""What the stages of training the autoencoder are kept under, the last one first."""
OLD_PROMPT = "a large red circle on a blue background, left"


def ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def full_text(model: Model, used_R: torch.Tensor, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder with its whole vocabulary; words it never met have names only."""
    whole = CLIPTextModel(text_config(len(tokenizer)))
    state = model.text.state_dict()
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    table_VD = wiring.word_table(torch.arange(len(tokenizer)), tokenizer)
    table_VD[used_R] = state[name]
    whole.load_state_dict(state | {name: table_VD})
    return whole


def pipeline(out: Path, size: int, tokenizer_dir: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The whole model from a training folder."""
    state = torch.load(out / f"unet{size}.pt", map_location="cpu")
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_dir)
    model = Model(state["used_ids"], tokenizer)
    model.load_state_dict(state["ema"])
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(next(path for name in VAES if (path := out / name).exists())),
        text_encoder=full_text(model, state["used_ids"], tokenizer),
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            skip_prk_steps=True,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe.to(dtype)


def files(examples: Path) -> None:
    """The data set of the house, on half of the backgrounds only, and ordinary pictures beside it."""
    rng = random.Random(77)
    house_dir, other_dir = examples / "dataset", examples / "regularisation"
    for folder in (house_dir, other_dir):
        folder.mkdir(parents=True, exist_ok=True)
    for i in range(12):
        spec = world.house(SEEN[i % 4], ("centre", "left", "right")[i // 4])
        picture = world.draw(spec, rng, 160 if i in (2, 5, 8) else 128, 128)
        Image.fromarray(picture).save(house_dir / f"house_{i + 1:02}.png")
        (house_dir / f"house_{i + 1:02}.txt").write_text(world.caption(spec) + "\n", encoding="utf-8")
    for i in range(24):
        spec = world.training_spec(rng)
        Image.fromarray(world.draw(spec, rng)).save(other_dir / f"world_{i + 1:02}.png")
        (other_dir / f"world_{i + 1:02}.txt").write_text(world.caption(spec) + "\n", encoding="utf-8")
    (examples / "dataset.toml").write_text(TOML, encoding="utf-8")
    lines = [f"{p} --w 128 --h 128 --d {i + 1} --s 20 --l 4" for i, p in enumerate((*PROMPTS, OLD_PROMPT))]
    (examples / "sample_prompts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("files", "model"))
    parser.add_argument("--examples", type=Path, default=Path("examples"))
    parser.add_argument("--out", type=Path, help="the training folder")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    if args.what == "files":
        files(args.examples)
        return
    tokenizer = args.examples / "model" / "tokenizer"
    pipe = pipeline(args.out, args.size, tokenizer, torch.float16)
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        getattr(pipe, part).save_pretrained(args.examples / "model" / part)
    pipe.save_config(args.examples / "model")
    config = args.examples / "model" / "vae" / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    said.pop("_name_or_path", None)  # a folder of this machine
    config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    plan = args.examples / "model" / "scheduler" / "scheduler_config.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text(encoding="utf-8")), "clip_sample": False}, indent=2) + "\n")
    text = args.examples / "model" / "text_encoder" / "model.safetensors"
    tensors = load_file(text)
    save_file({f"text_model.{k.removeprefix('text_model.')}": v for k, v in tensors.items()}, text, {"format": "pt"})
    for path in (args.examples / "model").rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
