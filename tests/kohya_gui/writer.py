"""A job that speaks as a trainer does, without torch: `python writer.py RUN_DIR OUTPUT_DIR STEPS SECONDS [END]`.

END: finish, crash (an error event), exit (a traceback), die (kills itself).
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

from trainer import events as ev
from trainer.events import Events
from trainer.run_folder import RunFolder

PROMPTS = ("a sks house in a meadow", "a sks house by the sea, <script>alert(1)</script>", "a red ball")


def draw(folder: RunFolder, events: Events, step: int, last: int) -> None:
    folder.samples.mkdir(exist_ok=True)
    for index, prompt in enumerate(PROMPTS):
        events.phase("sampling", index, len(PROMPTS))
        done = step / last
        image = Image.new("RGB", (128, 128), (int(120 + 80 * done), 190, int(230 - 60 * index)))
        paint = ImageDraw.Draw(image)
        paint.rectangle((0, 90, 128, 128), fill=(90, 160, 80))
        edge = 40 - 20 * done
        paint.rectangle((edge, 60, 128 - edge, 108), fill=(200, 170, 140))
        paint.polygon([(edge - 6, 60), (64, 60 - 36 * done), (134 - edge, 60)], fill=(235, 110, 160))
        path = folder.samples / f"step{step:06d}_{index}.png"
        image.save(path)
        events.emit(ev.Sample(step, index, f"samples/{path.name}", prompt, 1))
    events.phase("sampling", len(PROMPTS), len(PROMPTS))


def save(output_dir: Path, events: Events, step: int, *, last: bool = False) -> Path:
    path = output_dir / ("house.safetensors" if last else f"house-step{step:08d}.safetensors")
    events.phase("saving")
    path.write_bytes(os.urandom(300_000))
    events.emit(ev.Checkpoint(step, "model", str(path), path.stat().st_size))
    return path


def main() -> int:
    run, output_dir, steps, seconds, *rest = sys.argv[1:]
    folder, output, last, wait = RunFolder(Path(run)), Path(output_dir), int(steps), float(seconds)
    end = rest[0] if rest else "finish"
    output.mkdir(parents=True, exist_ok=True)
    events = Events(folder.events_file)
    chance = random.Random(1)
    print("reading config.toml <b>not bold</b>", flush=True)
    for name, count in (("scanning", 12), ("loading the model", 0), ("caching", 12)):
        for done in range(count + 1):
            events.phase(name, done, count)
            time.sleep(wait / 4)
    parameters = {"unet": 1_000_000}
    events.emit(ev.Start("train_network", "house", last, 20, math.ceil(last / 20), 0, 12, "cpu", parameters))
    draw(folder, events, 0, last)
    events.warning("bf16 on a CPU is slow", option="mixed_precision")
    begun = time.time()
    for step in range(1, last + 1):
        time.sleep(wait)
        loss = 0.06 + 0.12 * math.exp(-step / 40) + chance.random() * 0.05
        rate = {"unet": 1e-4, "text_encoder": 5e-5}
        events.emit(ev.Step(step, (step - 1) // 20 + 1, loss, loss, rate, 0.5, wait, 512.0))
        print(f"step {step}: loss {loss:.4f}", flush=True)
        if step == last // 2 and end == "crash":
            events.emit(
                ev.Error("out of memory: 1.2 GB were wanted and 0.3 GB were free; choose the memory preset 'low'")
            )
            return 2
        if step == last // 2 and end == "exit":
            raise RuntimeError("the writer broke")
        if step == last // 2 and end == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 20 == 0 or folder.take("sample"):
            draw(folder, events, step, last)
        if folder.take("save") or step % 50 == 0:
            save(output, events, step)
        if folder.take("stop"):
            state = output / f"house-step{step:08d}-state"
            state.mkdir()
            events.emit(ev.Checkpoint(step, "state", str(state), 1000))
            events.emit(ev.Stopped(step, str(state)))
            return 0
    path = save(output, events, last, last=True)
    events.emit(ev.Finished(last, str(path), time.time() - begun))
    return 0


if __name__ == "__main__":
    sys.exit(main())
