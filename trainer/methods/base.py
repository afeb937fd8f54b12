"""What a method is: which parameters train at which rate, and how the result is saved and resumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trainer.optim.optimizers import ParamGroup

if TYPE_CHECKING:
    from torch import Tensor, nn


DENOISER = "denoiser"
"""Its name among the components; the others are text encoders."""


def log_name(component: str) -> str:
    """A component as kohya's logs call it: "unet", "textencoder", "textencoder_2"."""
    return "unet" if component == DENOISER else component.replace("text_encoder", "textencoder")


class Method(ABC):
    """One way of training, built over a loaded family; the loop sees only this."""

    kind: ClassVar[str]
    architecture_suffix: ClassVar[str] = ""
    """What modelspec's name of the saved file's architecture ends in: "/lora"."""

    notes: Sequence[str] = ()
    """What was settled while it was built that whoever set the options may not have meant."""

    _modules: dict[str, nn.Module]
    """The family's components by name; the prepared ones in their place once there are some."""

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser to predict with."""
        return self._modules[DENOISER]

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """The text encoders to encode with."""
        return tuple(module for name, module in self._modules.items() if name != DENOISER)

    @abstractmethod
    def trainable_components(self) -> tuple[str, ...]:
        """Names of the components that train: "denoiser", "text_encoder", ..."""

    @abstractmethod
    def groups(self) -> list[ParamGroup]:
        """What the optimizer steps, a group per component that trains, or more."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The modules to hand to `accelerator.prepare`, only of components that train."""

    def use_prepared(self, modules: Mapping[str, nn.Module]) -> None:
        """Take the modules back as accelerate returned them."""
        assert set(modules) == set(self.modules()), f"prepared {sorted(modules)}, gave {sorted(self.modules())}"
        self._modules |= modules

    def after_update(self) -> Mapping[str, float]:
        """What the method does to the weights after an optimizer step; figures about it for the log."""
        return {}

    @abstractmethod
    def train(self) -> None:
        """Put what trains into training mode and the rest into eval mode."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything trained, exactly as it is (float32), for resuming."""

    @abstractmethod
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave; anything missing, extra or of another shape is an error."""

    def num_saved(self) -> int:
        """How many numbers the exported file holds."""
        return sum(parameter.numel() for group in self.groups() for parameter in group.parameters)

    def metadata(self, run: Mapping[str, str]) -> dict[str, str]:
        """What the exported file carries of the run's `ss_*` table."""
        return dict(run)

    @abstractmethod
    def export(self, path: Path, *, precision: str, metadata: Mapping[str, str]) -> Path:
        """Write the file or folder people use, atomically; precision is float, fp16 or bf16. Returns the path."""
