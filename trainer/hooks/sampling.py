"""Sample pictures while a run goes: at its start, every n steps or epochs, at its end, and when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trainer.errors import Problem
from trainer.events import Events, Sample
from trainer.families.base import SampleRequest
from trainer.formats import prompts
from trainer.hooks.base import Hook, Moment, due
from trainer.maths.rng import derive
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.families.base import Family
    from trainer.methods.base import Method
    from trainer.optim.averaged import Averaging


class SamplerOptions(Options):
    """How pictures are drawn."""

    sample_sampler: str = opt("ddim")
    """Sampler of the pictures: ddim, pndm, lms, euler, euler_a, heun, dpmsolver, dpmsolver++, dpmsingle, dpm_2, dpm_2_a
    (k_ before a name does no harm)."""


class SamplingOptions(SamplerOptions):
    """When sample pictures are drawn, and of what."""

    title: ClassVar[str] = "Sample pictures"

    sample_every_n_steps: int | None = opt(None, ge=1, unit="steps")
    """Draw sample pictures every n steps. sample_every_n_epochs wins where both are set."""
    sample_every_n_epochs: int | None = opt(None, ge=1, unit="epochs")
    """Draw sample pictures every n epochs."""
    sample_at_first: bool = opt(False)
    """Draw sample pictures before the first step, to compare with."""
    sample_prompts: Path | None = opt(None, widget="path")
    """File of prompts, one a line: text, then --n negative --w width --h height --d seed --s steps --l scale. Read anew
    each time, so edits count at once."""

    @property
    def wanted(self) -> bool:
        """Whether any pictures are drawn."""
        return self.sample_prompts is not None

    def problems(self) -> Iterator[Problem]:
        """A schedule without prompts."""
        scheduled = self.sample_every_n_steps or self.sample_every_n_epochs or self.sample_at_first
        if scheduled and self.sample_prompts is None:
            remedy = "Name a file of prompts, or leave the sample_every options unset"
            yield Problem("sample_prompts", "is needed to draw sample pictures", remedy=remedy)
        if self.sample_prompts is not None and not self.sample_prompts.is_file():
            yield Problem("sample_prompts", "no such file", str(self.sample_prompts))


class Sampling(Hook):
    """Draws every prompt with the model as it is; draws nothing from the training's random streams."""

    def __init__(
        self,
        options: SamplingOptions,
        events: Events,
        folder: Path,
        *,
        family: Family,
        method: Method,
        averaging: Averaging,
        seed: int,
    ) -> None:
        self._options = options
        self._events = events
        self._folder = folder
        self._family = family
        self._method = method
        self._averaging = averaging
        self._seed = seed

    def begin(self, moment: Moment) -> None:
        """The pictures from before, to compare with."""
        if self._options.sample_at_first and moment.step == 0:
            self._draw(moment)

    def after_step(self, moment: Moment) -> None:
        """The pictures that are due."""
        epochs = self._options.sample_every_n_epochs
        steps = None if epochs else self._options.sample_every_n_steps
        is_due = due(moment, every_n_steps=steps, every_n_epochs=epochs)
        if is_due or "sample" in moment.wanted or (moment.last and (epochs or steps)):
            self._draw(moment)

    def _draw(self, moment: Moment) -> None:
        path = self._options.sample_prompts
        if path is None:
            self._events.warning("sample pictures were asked for, but no prompts are set", "sample_prompts")
            return
        lines, said = prompts.read_prompts(path)
        for problem in said:
            self._events.warning(str(problem))
        self._folder.mkdir(exist_ok=True)
        for index, line in enumerate(lines):
            self._events.phase("sampling", index, len(lines))
            request = self._request(line, index)
            with self._averaging.in_use():
                picture = self._family.sample(self._method.denoiser, self._method.text_encoders, request)
            name = f"step{moment.step:08d}_{index:02d}.png"
            save_png(picture, self._folder / name, request, remark=f"Training step: {moment.step}")
            drawn = Sample(moment.step, index, f"{self._folder.name}/{name}", request.prompt, request.seed or 0)
            self._events.emit(drawn)
        self._events.phase("training")

    def _request(self, line: prompts.PromptLine, index: int) -> SampleRequest:
        side = self._family.default_resolution
        usual = {"width": side, "height": side, "sampler": self._options.sample_sampler}
        usual["seed"] = derive(self._seed, "sample", index) % 2**31
        return SampleRequest(**{**usual, **line.given()})


def save_png(
    picture: Image, path: Path, request: SampleRequest, *, remark: str = "", texts: Mapping[str, str] | None = None
) -> None:
    """Write a PNG with its prompt in the "parameters" text that A1111 and ComfyUI show, and further texts beside it."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    facts = f"Steps: {request.steps}, Sampler: {request.sampler}, CFG scale: {request.scale}, Seed: {request.seed}"
    size = f"Size: {request.width}x{request.height}" + (f", {remark}" if remark else "")
    info.add_text("parameters", f"{request.prompt}{negative}\n{facts}, {size}")
    for name, text in (texts or {}).items():
        info.add_itxt(name, text)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    picture.save(temporary, format="PNG", pnginfo=info)
    temporary.replace(path)
