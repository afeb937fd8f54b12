"""Train the model itself: the denoiser, the text encoders, or both, in float32; no adapter stands beside them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trainer.errors import Problem, RunError
from trainer.formats.whole_model import ModelKind, write_ckpt
from trainer.lazy import torch
from trainer.methods.base import DENOISER, Method, log_name
from trainer.optim.optimizers import OptimizerOptions, ParamGroup
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.families.base import Family

UPDATES = "updates"
"""Name of the number of steps done, among the tensors of a resume point."""


class FullOptimizerOptions(OptimizerOptions):
    """How fast a model's parts learn."""

    rates: ClassVar[tuple[str, ...]] = ("learning_rate", "learning_rate_te")

    learning_rate_te: float | None = opt(None, ge=0, label="Text encoder learning rate")
    """Rate of the text encoder, where it is trained; unset means the learning rate, 0 means it is not trained."""

    def rate(self, component: str) -> float:
        """The text encoder's own rate, where it has one."""
        own = None if component == DENOISER else self.learning_rate_te
        return self.learning_rate if own is None else own


class TextEncoderOptions(Options):
    """Whether and how long the text encoder trains; the tasks say it in different words."""

    title: ClassVar[str] = "Text encoder"

    @property
    @abstractmethod
    def steps(self) -> int | None:
        """Steps the text encoder trains; None for all, 0 for none."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to do to keep the text encoder as it is."""


class DreamBoothOptions(TextEncoderOptions):
    """The text encoder trains unless told otherwise."""

    stop_text_encoder_training: int | None = opt(None, ge=-1, unit="steps")
    """Train the text encoder for so many steps, then leave it as it is and train the U-Net alone. Unset: to the end; 0
    or -1: not at all."""

    @property
    def steps(self) -> int | None:
        steps = self.stop_text_encoder_training
        return None if steps is None else max(0, steps)

    @property
    def remedy(self) -> str:
        return "Set stop_text_encoder_training to -1"


class FineTuneOptions(TextEncoderOptions):
    """The text encoder stays as it is unless asked for."""

    train_text_encoder: bool = opt(False)
    """Train the text encoder, too. Unset: the U-Net alone."""

    @property
    def steps(self) -> int | None:
        return None if self.train_text_encoder else 0

    @property
    def remedy(self) -> str:
        return "Leave train_text_encoder unset"


def trained_parts(text_encoder: TextEncoderOptions, rates: OptimizerOptions, names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of a family's components train: those with a rate above 0, text encoders only where they are to train."""
    return tuple(name for name in names if rates.rate(name) > 0 and (name == DENOISER or text_encoder.steps != 0))


def problems(text_encoder: TextEncoderOptions, rates: OptimizerOptions) -> Iterator[Problem]:
    """Rates that train nothing, or say something of a text encoder that does not train."""
    if not trained_parts(text_encoder, rates, (DENOISER, "text_encoder")):
        yield Problem("learning_rate", "nothing would train: every rate is 0 or its part is switched off", "0")
    if isinstance(rates, FullOptimizerOptions) and rates.learning_rate_te and text_encoder.steps == 0:
        said = "is not used: the text encoder does not train"
        yield Problem("learning_rate_te", said, str(rates.learning_rate_te), severity="warning")


class FullMethod(Method):
    """The model's own weights train, in float32 whatever the calculations are done in."""

    kind = "full"

    def __init__(
        self, family: Family, text_encoder: TextEncoderOptions, rates: OptimizerOptions, *, saved_as: ModelKind
    ) -> None:
        self._family = family
        self._bare = family.components()
        self._components = trained_parts(text_encoder, rates, tuple(self._bare))
        assert self._components, "nothing to train"
        assert all(p.dtype == torch.float32 for name in self._components for p in self._bare[name].parameters())
        self._modules = dict(self._bare)
        self._rates = rates
        self._saved_as = saved_as
        self._stop_after = text_encoder.steps
        self._updates = 0
        for name, module in self._bare.items():
            module.requires_grad_(name in self._components)
        for parameter in family.idle_parameters():
            parameter.requires_grad_(False)
        self._trained = {
            name: tuple(p for p in self._bare[name].parameters() if p.requires_grad) for name in self._components
        }
        self.train()

    def trainable_components(self) -> tuple[str, ...]:
        return self._components

    def groups(self) -> list[ParamGroup]:
        return [
            ParamGroup(log_name(name), name, parameters, self._rates.rate(name))
            for name, parameters in self._trained.items()
        ]

    def modules(self) -> dict[str, nn.Module]:
        return {name: self._bare[name] for name in self._components}

    def after_update(self) -> Mapping[str, float]:
        self._updates += 1
        if self._updates == self._stop_after:
            self._stop_text_encoders()
        return {}

    def _stop_text_encoders(self) -> None:
        """Without a gradient an optimizer passes a parameter over: neither decay nor momentum moves it any more."""
        for name in self._components:
            if name != DENOISER:
                self._bare[name].requires_grad_(False)
                for parameter in self._bare[name].parameters():
                    parameter.grad = None
                # DDP would wait for the gradients it was made for
                self._modules[name] = self._bare[name]

    @property
    def _stopped(self) -> bool:
        return self._stop_after is not None and self._updates >= self._stop_after

    def train(self) -> None:
        for name, module in self._modules.items():
            module.train(name in self._components and (name == DENOISER or not self._stopped))

    def num_saved(self) -> int:
        modules = (*self._bare.values(), self._family.vae)
        return sum(tensor.numel() for module in modules for tensor in module.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {
            f"{name}.{key}": tensor
            for name in self._components
            for key, tensor in self._bare[name].state_dict().items()
        }
        return {**tensors, UPDATES: torch.tensor(self._updates)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        wanted = {name: tensor.shape for name, tensor in self.state_dict().items()}
        given = {name: tensor.shape for name, tensor in tensors.items()}
        wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        if wrong:
            said = f"the resume point does not fit this model: {len(wrong)} tensors differ, such as {wrong[0]}"
            raise RunError(said, option="resume")
        for name in self._components:
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            self._bare[name].load_state_dict(own, strict=True)
        self._updates = int(tensors[UPDATES])
        if self._stopped:
            self._stop_text_encoders()

    def metadata(self, run: Mapping[str, str]) -> dict[str, str]:
        """sd-scripts gives whole models modelspec alone; how far they were trained and the comment are ours."""
        return {key: value for key, value in run.items() if key in ("ss_epoch", "ss_steps", "ss_training_comment")}

    def export(self, path: Path, *, precision: str, metadata: Mapping[str, str]) -> Path:
        """A .ckpt tells epoch and step as the metadata does: 0 where that is to tell nothing."""
        if self._saved_as == "safetensors":
            return self._family.save_single_file(path, precision=precision, metadata=metadata)
        if self._saved_as != "ckpt":
            return self._family.save_folder(path, precision=precision)
        source = path.with_name(f".{path.stem}.to-ckpt.safetensors")
        try:
            self._family.save_single_file(source, precision=precision, metadata=metadata)
            epoch, step = (int(metadata.get(name, 0)) for name in ("ss_epoch", "ss_steps"))
            return write_ckpt(source, path, epoch=epoch, step=step)
        finally:
            source.unlink(missing_ok=True)
