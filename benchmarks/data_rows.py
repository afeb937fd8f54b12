"""Rows of the data layer: looking through a folder, doing so again, and caching latents."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.row import Row, measure_pairs
from trainer.data.scan import scan_folder

MODEL = Path(__file__).parents[1] / "examples" / "model"
NUM_LATENTS = 16
NUM_PICTURES = int(os.environ.get("BENCHMARK_PICTURES", "3000"))
"""20,000 with --full."""
NUM_FIRST = int(os.environ.get("BENCHMARK_PICTURES", "6000"))
"""Of a first scan, more: with few pictures the start of its processes, with what they import, is most of the time."""


@contextlib.contextmanager
def _jpegs(number: int) -> Iterator[Path]:
    """A folder of distinct 512x384 JPEGs with the detail of photographs, with captions and a cache of its own."""
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, _environment("STUDIO_CACHE", str(Path(name) / "cache")):
        folder = Path(name) / "pictures"
        folder.mkdir()
        for index in range(number):
            coarse = Image.fromarray(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((512, 384))
            # fine grain, drawn small and tiled: drawing it all would take longer than the benchmark
            grain = np.tile(noise.integers(-12, 13, (96, 128, 3), dtype=np.int16), (4, 4, 1))
            pixels = np.clip(np.asarray(coarse, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:05}.jpg", quality=85)
            (folder / f"{index:05}.txt").write_text(f"a picture, number {index}")
        yield folder


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _scan(folder: Path, number: int) -> float:
    began = time.perf_counter()
    scan = scan_folder(folder, caption_extension=".txt")
    assert len(scan.pictures) == number and not scan.bad
    return time.perf_counter() - began


def _scan_afresh(folder: Path, number: int) -> float:
    for file in (folder.parent / "cache").glob("*/*"):
        file.unlink()
    return _scan(folder, number)


def _decode(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def _decode_all(folder: Path) -> float:
    """Pillow in a pool of two processes, and nothing else."""
    began = time.perf_counter()
    paths = [str(path) for path in sorted(folder.glob("*.jpg"))]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert len(list(pool.map(_decode, paths, chunksize=16))) == len(paths)
    return time.perf_counter() - began


def first_scan(rounds: int = 3) -> Row:
    """Scanning a folder for the first time, against decoding its pictures with Pillow in two processes."""
    with _jpegs(NUM_FIRST) as folder:
        ours, bare = measure_pairs(lambda: _scan_afresh(folder, NUM_FIRST), lambda: _decode_all(folder), rounds)
    return Row(f"first scan of {NUM_FIRST} JPEGs / decoding them in two processes", ours, bare, 1.3, 1.8)


def second_scan(rounds: int = 3) -> Row:
    """Scanning again when nothing changed, against the first scan."""
    with _jpegs(NUM_PICTURES) as folder:
        time.sleep(2.1)  # younger files are read again
        ours, bare = measure_pairs(
            lambda: (_scan_afresh(folder, NUM_PICTURES), _scan(folder, NUM_PICTURES))[1],
            lambda: _scan_afresh(folder, NUM_PICTURES),
            rounds,
        )
    return Row(f"second scan of {NUM_PICTURES} JPEGs / first scan", ours, bare, 0.05, 0.05)


def caching_latents(rounds: int = 3) -> Row:
    """Decoding, encoding and writing latents, against encoding pictures that lie ready; the VAE on one thread."""
    import torch
    from diffusers import AutoencoderKL

    from trainer.data.cache import LatentCache, OnDisk
    from trainer.data.config import DataOptions, read_dataset
    from trainer.data.dataset import TrainingSet

    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(MODEL, subfolder="vae").eval()

    def encode(pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spread = vae.encode(pixels_BCHW).latent_dist
        return spread.mean, spread.std

    with _jpegs(NUM_LATENTS) as folder:
        (folder.parent / "d.toml").write_text(
            f"[[datasets]]\nresolution = [512, 384]\n[[datasets.subsets]]\nimage_dir = '{folder}'\n"
            "caption_extension = '.txt'\n"
        )
        training_set = TrainingSet.build(read_dataset(DataOptions(dataset_config=folder.parent / "d.toml")))
        ready_1CHW = torch.rand(1, 3, 384, 512) * 2 - 1

        def ours() -> float:
            with tempfile.TemporaryDirectory() as store:
                began = time.perf_counter()
                LatentCache.build(training_set, encode, shelf=OnDisk(Path(store), encoder="vae"))
                return time.perf_counter() - began

        def bare() -> float:
            began = time.perf_counter()
            with torch.no_grad():
                for _ in range(NUM_LATENTS):
                    encode(ready_1CHW)
            return time.perf_counter() - began

        measured = measure_pairs(ours, bare, rounds)
    return Row("caching latents on disk / encoding alone", *measured, 1.11, 1.25)


DATA_ROWS = (first_scan, second_scan, caching_latents)
