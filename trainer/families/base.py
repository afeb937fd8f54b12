"""What a model family is: loading, encoding, predicting, sampling; the loop knows families only through this contract.

Shape letters: B batch, C channels, H height, W width, L tokens, D width of a token's state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer import plugins
from trainer.errors import ConfigError, Problem
from trainer.families._samplers import SAMPLER_NAMES
from trainer.formats.kohya import AdapterTarget
from trainer.formats.model_facts import ModelFacts, inspect_model
from trainer.schema import Options, opt

__all__ = [
    "SAMPLER_NAMES",
    "AdapterTarget",
    "Conditioning",
    "Family",
    "ModelOptions",
    "SampleRequest",
    "contradictions",
    "doubts",
    "find_family",
    "load_family",
    "prediction_of",
]

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

    from trainer.families._words import NewWord


class ModelOptions(Options):
    """The base model and how it is read."""

    title: ClassVar[str] = "Model"

    pretrained_model_name_or_path: str = opt(..., level="basic", widget="model", label="Base model", min_length=1)
    """The model to start from: a single .safetensors or .ckpt file, or a folder in the diffusers layout."""

    model_config_folder: Path | None = opt(None, widget="folder", aliases=("model_config",), label="Model config")
    """Folder in the diffusers layout whose config files describe a single-file model of unusual sizes; needed only
    when the file does not describe itself and is no standard model."""

    clip_skip: int | None = opt(None, ge=1, le=24, label="Clip skip")
    """Use the text encoder's n-th layer from the end instead of the last (1 is the last layer)."""

    max_token_length: Literal[75, 150, 225] | None = opt(None, label="Tokens of a caption")
    """How many tokens of a caption the model reads; what is longer is cut off. Unset: 75, what the text encoder reads
    at once; 150 and 225 are read in two and three parts, as most programs that draw pictures do."""

    weighted_captions: bool = opt(False, label="Weighted captions")
    """Read brackets in captions and sample prompts as A1111 does: (word) weighs 1.1 times as much, [word] 1.1 times as
    little, (word:1.3) 1.3 times as much; a backslash makes a bracket plain text. Unset: brackets are text."""

    v2: bool = opt(False, label="Stable Diffusion 2")
    """Say that the base model is Stable Diffusion 2. The file itself decides; a contradiction is an error."""

    sdxl: bool = opt(False, label="Stable Diffusion XL")
    """Say that the base model is Stable Diffusion XL. The file itself decides; a contradiction is an error."""

    v_parameterization: bool = opt(False, label="V-prediction")
    """Say that the base model predicts velocity instead of noise. A model that states otherwise is an error."""

    zero_terminal_snr: bool = opt(False, label="Zero terminal SNR")
    """Train with a noise schedule that ends in pure noise, so that very dark and very bright pictures can be drawn; for
    v-prediction models. Lin et al., 2023, https://arxiv.org/abs/2305.08891"""


@dataclass(frozen=True)
class Conditioning:
    """What the text encoders made of a batch of captions. pooled_BD: of each caption as a whole, where the family has
    such a thing."""

    states_BLD: Tensor
    pooled_BD: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Its parts by name; `Conditioning(**tensors)` is the same again."""
        named = {"states_BLD": self.states_BLD, "pooled_BD": self.pooled_BD}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True)
class SampleRequest:
    """One picture to draw; seed None draws a fresh one."""

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    seed: int | None = None
    steps: int = 30
    scale: float = 7.5
    sampler: str = "ddim"


class Family(ABC):
    """One kind of model, loaded: frozen components plus how to use them. Subclasses live one per file."""

    kind: ClassVar[str]
    """As `inspect_model` names it: "sd1"."""
    base_model_version: ClassVar[str]
    """kohya's `ss_base_model_version`: "sd_v1"."""
    architecture: str
    """modelspec's name: "stable-diffusion-v1"."""
    default_resolution: int
    """Width and height of a sample picture when the prompt names none."""
    latent_factor: ClassVar[int]
    """Pixels of a picture's side for one latent."""
    npz_suffix: ClassVar[str]
    """How sd-scripts ends the names of latents kept beside pictures: "sd" in house_0512x0512_sd.npz."""

    facts: ModelFacts
    denoiser: nn.Module
    text_encoders: tuple[nn.Module, ...]
    vae: nn.Module
    prediction_type: Literal["epsilon", "v_prediction"]
    alphas_cumprod: Tensor

    @classmethod
    @abstractmethod
    def load(
        cls, facts: ModelFacts, options: ModelOptions, *, dtype: torch.dtype, device: torch.device | str
    ) -> Family:
        """Load every component in `dtype` (the VAE too), frozen and in eval mode, in memory of its own."""

    @abstractmethod
    def encode_prompts(self, text_encoders: Sequence[nn.Module], captions: Sequence[str]) -> Conditioning:
        """Captions through the encoders handed in (prepared or wrapped ones work); gradients flow."""

    @abstractmethod
    def encode_latents(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(mean_BCHW, std_BCHW) of the latents' distribution, both multiplied by the scaling factor, in float32."""

    @abstractmethod
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Scaled latents as pixels in [-1, 1]."""

    @abstractmethod
    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        timesteps_B: Tensor,
        conditioning: Conditioning,
        frames_B4: Tensor | None = None,
    ) -> Tensor:
        """The model's answer (noise or velocity, see `prediction_type`), through the denoiser handed in.

        frames_B4: how each picture was framed, for families that want to know it: the file's height and width, and how
        many rows and columns of the scaled picture were cut off above and to the left. None: whole pictures.
        """

    @abstractmethod
    def sample(self, denoiser: nn.Module, text_encoders: Sequence[nn.Module], request: SampleRequest) -> Image:
        """Draw a picture; leaves train/eval modes and the global random state as they were."""

    @abstractmethod
    def adapter_targets(self) -> tuple[AdapterTarget, ...]:
        """The layers adapters wrap, the denoiser's first."""

    @abstractmethod
    def enable_gradient_checkpointing(self, *, text_encoders: bool) -> None:
        """Trade time for memory in the denoiser, and in the text encoders when they train."""

    @abstractmethod
    def save_single_file(
        self, path: Path, *, precision: str = "float", metadata: Mapping[str, str] | None = None
    ) -> Path:
        """Write the whole model as one .safetensors file with the key names of its kind, whole or not at all.

        precision: float, fp16 or bf16, of every part. metadata: added to what the file says of itself.
        """

    @abstractmethod
    def save_folder(self, path: Path, *, precision: str = "float") -> Path:
        """Write the whole model as a folder in the diffusers layout, whole or not at all, as safetensors files.

        diffusers' pipeline of this kind opens it with `from_pretrained`, without network; so does `load`.
        """

    def add_word(self, word: str, *, num_vectors: int) -> Mapping[str, NewWord]:
        """Read a word, in captions and prompts, as so many vectors of its own: each text encoder's, by component."""
        raise ConfigError([Problem("token_string", f"no new words can be taught to a model of kind {self.kind}", word)])

    def idle_parameters(self) -> tuple[nn.Parameter, ...]:
        """Parameters no answer depends on, such as those of layers that clip_skip leaves out: never trained."""
        return ()

    def components(self) -> dict[str, nn.Module]:
        """The parts that can train, by name: "denoiser", "text_encoder", "text_encoder_2", ..."""
        names = ["text_encoder", *(f"text_encoder_{i}" for i in range(2, len(self.text_encoders) + 1))]
        return {"denoiser": self.denoiser, **dict(zip(names, self.text_encoders, strict=False))}


_CLIP_SKIP = {
    "sd2": "Stable Diffusion 2 was trained with the last layer this encoder has, which programs that draw read",
    "sdxl": "is not used: Stable Diffusion XL always reads the layer before the last",
}
"""What is said to someone who sets clip_skip for a family that was not trained for it."""


def doubts(options: ModelOptions, facts: ModelFacts) -> Iterator[Problem]:
    """What is worth a word about this model and these options, and stops nothing."""
    if options.clip_skip is not None and facts.kind in _CLIP_SKIP:
        said, value = _CLIP_SKIP[facts.kind], str(options.clip_skip)
        yield Problem("clip_skip", said, value, remedy="Leave it unset", severity="warning")
    if facts.kind == "sd2" and facts.prediction == "unknown" and not options.v_parameterization:
        said = "the model does not say whether it predicts noise or velocity; noise is assumed"
        remedy = "Set v_parameterization for a model made for 768 pixels"
        yield Problem("v_parameterization", said, remedy=remedy, severity="warning")


def contradictions(options: ModelOptions, facts: ModelFacts) -> list[Problem]:
    """Flags of the user's that the model itself disproves."""
    found = []
    path = options.pretrained_model_name_or_path
    for flag, kind, name in (("v2", "sd2", "Stable Diffusion 2"), ("sdxl", "sdxl", "Stable Diffusion XL")):
        if vars(options)[flag] and facts.kind != kind:
            said = f"{path} is {facts.detail}, not {name}"
            found.append(Problem(flag, said, "true", remedy=f"Turn {flag} off"))
    if options.v_parameterization and facts.prediction == "epsilon":
        found.append(
            Problem(
                "v_parameterization",
                f"{path} says that it predicts noise (epsilon)",
                "true",
                remedy="Turn v_parameterization off",
            )
        )
    return found


def prediction_of(options: ModelOptions, facts: ModelFacts) -> Literal["epsilon", "v_prediction"]:
    """What the model predicts: what it says itself, else what the options say, else noise."""
    if facts.prediction != "unknown":
        return facts.prediction
    return "v_prediction" if options.v_parameterization else "epsilon"


def find_family(options: ModelOptions) -> tuple[type[Family], ModelFacts]:
    """The family that knows the model, from headers alone (no torch): everything that can be refused early is."""
    facts = inspect_model(Path(options.pretrained_model_name_or_path))
    families = plugins.discover("trainer.families", Family)  # type: ignore[type-abstract]
    if problems := contradictions(options, facts):
        raise ConfigError(problems)
    return families[facts.kind], facts


def load_family(options: ModelOptions, *, dtype: torch.dtype, device: torch.device | str) -> Family:
    """Look at the model, find the family that knows its kind, and load it."""
    family, facts = find_family(options)
    return family.load(facts, options, dtype=dtype, device=device)
