"""The rows of the table: each measures ours and the bare thing in turn and keeps the minimum of each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from benchmarks.data_rows import DATA_ROWS
from benchmarks.row import Row, measure_pairs
from trainer.events import Step, read_events

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "examples" / "model"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
BARE_PAGE = "import gradio as gr, sys\nwith gr.Blocks() as d:\n gr.Markdown('hello')\n"
BARE_PAGE += "d.launch(server_port=int(sys.argv[1]), quiet=True, prevent_thread_lock=False)\n"


@contextlib.contextmanager
def _data() -> Iterator[Path]:
    """A folder with eight pictures and a dataset TOML: batch 2 at 128 px, as the plain loop has."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        for index in range(8):
            Image.new("RGB", (128, 128), (index * 30, 80, 90)).save(folder / "pictures" / f"{index}.png")
        (folder / "d.toml").write_text(
            "[[datasets]]\nresolution = 128\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = 'pictures'\n"
            "class_tokens = 'a sks house on a blue background'\nnum_repeats = 8\n"
        )
        yield folder


def _train(folder: Path, steps: int) -> tuple[float, list[float]]:
    """(seconds from start to the first step, seconds of each step) of the real trainer."""
    run = folder / f"run{time.monotonic_ns()}"
    argv = [
        sys.executable, "-m", "trainer", "train_network", "--pretrained_model_name_or_path", str(MODEL),
        "--dataset_config", "d.toml", "--max_train_steps", str(steps), "--network_dim", "16", "--cache_latents",
        "--learning_rate", "1e-4", "--output_dir", str(run / "out"), "--run_dir", str(run), "--seed", "1",
    ]  # fmt: skip
    began = time.time()
    subprocess.run(argv, cwd=folder, env=ENV, check=True, capture_output=True)
    lines = [line for line in read_events(run / "events.jsonl")[0] if isinstance(line.event, Step)]
    return lines[0].time - began, [line.event.seconds for line in lines if isinstance(line.event, Step)]


def _plain(what: str) -> tuple[float, list[float]]:
    """(seconds of the whole process, seconds of each step) of the plain loop."""
    began = time.time()
    argv = [sys.executable, "-m", "benchmarks.plain_lora", str(MODEL), what]
    done = subprocess.run(argv, cwd=ROOT, env=ENV, check=True, capture_output=True, text=True)
    return time.time() - began, json.loads(done.stdout.splitlines()[-1])["seconds"]


def adapter_step(rounds: int = 3) -> Row:
    """One step of adapter training against the hand-written loop over the same PEFT model."""
    from benchmarks.plain_lora import STEPS

    with _data() as folder:
        ours, bare = measure_pairs(
            lambda: statistics.median(_train(folder, STEPS)[1][4:]),
            lambda: statistics.median(_plain("steps")[1][4:]),
            rounds,
        )
    return Row("adapter step / plain torch loop over the same PEFT model", ours, bare, 1.05, 1.25)


def first_step(rounds: int = 3) -> Row:
    """From starting the trainer to the end of its first step, against importing and loading alone."""
    with _data() as folder:
        ours, bare = measure_pairs(lambda: _train(folder, 1)[0], lambda: _plain("load")[0], rounds)
    return Row("start to first step / importing torch and diffusers and loading the model", ours, bare, 1.5, 1.8)


def page_ready(rounds: int = 3) -> Row:
    """From starting the page's server to its first answer, against a page with one line of text."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "bare.py").write_text(BARE_PAGE)
        ours, bare = measure_pairs(
            lambda: _ready(home, [str(ROOT / "gui.py"), "--home", name, "--no-launch", "--no-token", "--port"]),
            lambda: _ready(home, [str(home / "bare.py")]),
            rounds,
        )
    return Row("page ready / bare Gradio page", ours, bare, 1.06, 1.5)


def _ready(folder: Path, argv: list[str]) -> float:
    port = _free_port()
    env = {**ENV, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *argv, str(port)], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while time.monotonic() - began < 120:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()
                return time.monotonic() - began
            time.sleep(0.02)
        raise TimeoutError(f"{argv[0]} did not answer")
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


ROWS = (adapter_step, first_step, page_ready, *DATA_ROWS)
