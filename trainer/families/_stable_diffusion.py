"""What Stable Diffusion 1, 2 and XL share (latent diffusion, https://arxiv.org/abs/2112.10752), over diffusers.

Shape letters: B batch, C channels, H height, W width, L tokens, D width of a token's state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.errors import ConfigError, ModelError, Problem
from trainer.families._clip import TextReading, unwrap
from trainer.families._samplers import build_scheduler
from trainer.families.base import Conditioning, Family, ModelOptions, SampleRequest
from trainer.families.components import CONFIGS, Components, config_of, read_components
from trainer.formats import single_file, whole_model
from trainer.formats.kohya import AdapterTarget
from trainer.formats.model_facts import ModelFacts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from trainer.families._words import NewWord

UNET_BLOCKS = ("Transformer2DModel",)
TEXT_BLOCKS = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")
END, BANG = "<|endoftext|>", "!"
"""How captions are padded: OpenAI's CLIP with its end token, OpenCLIP with token 0."""


class StableDiffusion(Family):
    """A U-Net that a CLIP text encoder (or two) tells what to draw, in the latents of a VAE."""

    latent_factor = 8

    paddings: ClassVar[tuple[str, ...]]
    """Each text encoder's padding token."""
    text_prefixes: ClassVar[tuple[str, ...]]
    """How the names of each text encoder's layers begin in adapter files."""
    embedding_keys: ClassVar[tuple[str, ...]] = ("emb_params",)
    """What embedding files call each text encoder's vectors."""
    pipeline: ClassVar[str]
    """The class of diffusers that draws with it."""

    denoiser: Any
    text_encoders: tuple[Any, ...]
    vae: Any

    def __init__(
        self,
        facts: ModelFacts,
        components: Components,
        *,
        scheduler_config: Mapping[str, Any],
        reading: TextReading,
        device: torch.device | str,
    ) -> None:
        networks = {name: part.to(device).eval().requires_grad_(False) for name, part in components.networks.items()}
        self.facts = facts
        self.denoiser = networks["unet"]
        self.vae = networks["vae"]
        self.text_encoders = tuple(part for name, part in networks.items() if name.startswith("text_encoder"))
        self.tokenizers = components.tokenizers
        self.scheduler_config = dict(scheduler_config)
        self.prediction_type = _prediction(facts, scheduler_config)
        self.architecture = single_file.ARCHITECTURES[self.kind, self.prediction_type == "v_prediction"]
        self.alphas_cumprod: Tensor = diffusers.DDPMScheduler.from_config(self.scheduler_config).alphas_cumprod
        self.dtype = self.denoiser.dtype
        self._networks = networks
        self._leftovers = components.leftovers
        self._reading = reading
        # found before an adapter adds layers of its own below these
        self._targets = (self._denoiser_target(), *self._text_targets())

    @classmethod
    def load(
        cls, facts: ModelFacts, options: ModelOptions, *, dtype: torch.dtype, device: torch.device | str
    ) -> StableDiffusion:
        """The VAE is kept in float32 whatever `dtype` is: in half precision it can overflow."""
        dtypes = {name: torch.float32 if name == "vae" else dtype for name in single_file.COMPONENTS[cls.kind]}
        components = read_components(facts, options, dtypes=dtypes, paddings=cls.paddings)
        scheduler_config = dict(components.scheduler_config)
        if facts.prediction == "unknown" and options.v_parameterization:
            scheduler_config["prediction_type"] = "v_prediction"
        if options.zero_terminal_snr or facts.zero_terminal_snr:
            # sampling begins with the last timestep then, as the paper says it has to
            scheduler_config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return cls(
            facts,
            components,
            scheduler_config=scheduler_config,
            reading=cls.reading_of(options, components.networks),
            device=device,
        )

    @classmethod
    @abstractmethod
    def reading_of(cls, options: ModelOptions, networks: Mapping[str, Any]) -> TextReading:
        """How this family's text encoders read captions; `ConfigError` for what they cannot do."""

    def encode_latents(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            spread = self.vae.encode(pixels_BCHW.to(self.vae.device, self.vae.dtype)).latent_dist
        scaling = float(self.vae.config.scaling_factor)
        return spread.mean.float() * scaling, spread.std.float() * scaling

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        latents_BCHW = latents_BCHW.to(self.vae.device, self.vae.dtype) / float(self.vae.config.scaling_factor)
        with torch.no_grad():
            pixels_BCHW: Tensor = self.vae.decode(latents_BCHW).sample
        return pixels_BCHW

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        timesteps_B: Tensor,
        conditioning: Conditioning,
        frames_B4: Tensor | None = None,
    ) -> Tensor:
        predicted_BCHW: Tensor = denoiser(
            noisy_BCHW.to(self.dtype),
            timesteps_B,
            encoder_hidden_states=conditioning.states_BLD.to(self.dtype),
            added_cond_kwargs=self._added(noisy_BCHW, conditioning, frames_B4),
            return_dict=False,
        )[0]
        return predicted_BCHW.float()

    def _added(
        self, noisy_BCHW: Tensor, conditioning: Conditioning, frames_B4: Tensor | None
    ) -> dict[str, Tensor] | None:
        """What the denoiser is told beside the captions' states."""
        return None

    def sample(self, denoiser: nn.Module, text_encoders: Sequence[nn.Module], request: SampleRequest) -> Image:
        _check_size(request, self.latent_factor)
        scheduler = build_scheduler(request.sampler, self.scheduler_config)
        unet, encoders = unwrap(denoiser), [unwrap(encoder) for encoder in text_encoders]
        seed = secrets.randbits(63) if request.seed is None else request.seed
        with (
            torch.no_grad(),
            _evaluating(unet, self.vae, *encoders),
            _beside(unet, self.vae, *encoders),
            self._autocast(unet),
        ):
            wanted, unwanted = (self.encode_prompts(encoders, [p]) for p in (request.prompt, request.negative_prompt))
            pipeline = self._pipeline(unet, scheduler)
            pipeline.set_progress_bar_config(disable=True)
            latents_BCHW = pipeline(
                **self._prompt_arguments(wanted, unwanted),
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.scale,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="latent",
            ).images
            pixels_BCHW = self.decode(latents_BCHW.float())
        return _as_image(pixels_BCHW)

    def _pipeline(self, unet: Any, scheduler: Any) -> Any:
        """diffusers' own, over the denoiser handed in; captions come to it encoded."""
        nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        return pipeline_class(self.pipeline)(
            vae=self.vae, unet=unet, scheduler=scheduler, requires_safety_checker=False, **nothing
        )

    def _prompt_arguments(self, wanted: Conditioning, unwanted: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": wanted.states_BLD, "negative_prompt_embeds": unwanted.states_BLD}

    def adapter_targets(self) -> tuple[AdapterTarget, ...]:
        return self._targets

    def _denoiser_target(self) -> AdapterTarget:
        paths = paths_below(self.denoiser, UNET_BLOCKS)
        return AdapterTarget.build("denoiser", prefix="lora_unet", module=self.denoiser, paths=paths)

    def _text_targets(self) -> tuple[AdapterTarget, ...]:
        names = [name for name in self._networks if name.startswith("text_encoder")]
        return tuple(
            AdapterTarget.build(
                name, prefix=prefix, module=encoder, paths=paths_below(encoder, TEXT_BLOCKS), level="text_model"
            )
            for name, prefix, encoder in zip(names, self.text_prefixes, self.text_encoders, strict=True)
        )

    def enable_gradient_checkpointing(self, *, text_encoders: bool) -> None:
        self.denoiser.enable_gradient_checkpointing()
        if text_encoders:
            for encoder in self.text_encoders:
                encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def save_single_file(
        self, path: Path, *, precision: str = "float", metadata: Mapping[str, str] | None = None
    ) -> Path:
        """The file describes itself, so that models of any size load again without their config files."""
        return single_file.write_single_file(
            self.kind,
            self._networks,
            path,
            configs={
                **{name: config_of(part) for name, part in self._networks.items()},
                "scheduler": self.scheduler_config,
            },
            precision=precision,
            metadata=metadata,
            beside=self._leftovers,
        )

    def save_folder(self, path: Path, *, precision: str = "float") -> Path:
        return whole_model.write_folder(self._networks, path, precision=precision, add=self._add_to_folder)

    def _add_to_folder(self, folder: Path) -> None:
        """What a pipeline needs besides its networks."""
        index = json.loads((CONFIGS / self.kind / "model_index.json").read_text(encoding="utf-8"))
        index["scheduler"] = ["diffusers", self.scheduler_config.get("_class_name", index["scheduler"][1])]
        (folder / "scheduler").mkdir()
        for name, content in (("model_index.json", index), ("scheduler/scheduler_config.json", self.scheduler_config)):
            (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        for name, tokenizer in zip(("tokenizer", "tokenizer_2"), self.tokenizers, strict=False):
            tokenizer.save_pretrained(folder / name)

    def add_word(self, word: str, *, num_vectors: int) -> Mapping[str, NewWord]:
        from trainer.families._words import NewWord

        names = [name for name in self._networks if name.startswith("text_encoder")]
        parts = zip(names, self.text_encoders, self.tokenizers, self.embedding_keys, strict=True)
        words = {
            name: NewWord(encoder, tokenizer, word, num_vectors=num_vectors, key=key)
            for name, encoder, tokenizer, key in parts
        }
        self.tokenizers = tuple(new.tokenizer for new in words.values())
        return words

    def idle_parameters(self) -> tuple[nn.Parameter, ...]:
        return skipped_parameters(self.text_encoders[0], self._reading.skip)

    def _autocast(self, unet: Any) -> contextlib.AbstractContextManager[Any]:
        """Adapters are float32: beside half-precision layers each operation must choose its own type."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(unet.device.type, dtype=self.dtype)


def skip_of(options: ModelOptions, encoder: Any, *, usual: int) -> int:
    """clip_skip, or what the family does without it; `ConfigError` beyond the first layer."""
    layers = int(encoder.config.num_hidden_layers)
    if (options.clip_skip or 1) > layers:
        raise ConfigError([Problem("clip_skip", f"the text encoder has {layers} layers", str(options.clip_skip))])
    return options.clip_skip or usual


def skipped_parameters(encoder: Any, skip: int) -> tuple[nn.Parameter, ...]:
    """Those of the layers behind the one whose states are read."""
    layers = encoder.encoder.layers
    skipped = layers[len(layers) + 1 - skip :]
    return tuple(parameter for layer in skipped for parameter in layer.parameters())


def paths_below(module: nn.Module, block_names: Sequence[str]) -> tuple[str, ...]:
    """Linear layers and 1x1 convolutions inside blocks of these classes, by path."""
    found: dict[str, None] = {}
    for block_path, block in module.named_modules():
        if type(block).__name__ not in block_names:
            continue
        for path, layer in block.named_modules(prefix=block_path):
            is_small = isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (1, 1)
            if is_small or isinstance(layer, torch.nn.Linear):
                found[path] = None
    return tuple(found)


# ---------------------------------------------------------------- small helpers


def _prediction(facts: ModelFacts, scheduler_config: Mapping[str, Any]) -> Literal["epsilon", "v_prediction"]:
    stated = scheduler_config.get("prediction_type", "epsilon")
    if stated not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"{facts.path} predicts {stated}; epsilon and v_prediction can be trained",
            option="pretrained_model_name_or_path",
        )
    return "v_prediction" if stated == "v_prediction" else "epsilon"


@contextlib.contextmanager
def _beside(unet: Any, *modules: Any) -> Iterator[None]:
    """Modules on the U-Net's device: those whose work is cached have left the card, and come back for a sample."""
    before = [(module, module.device) for module in modules]
    try:
        for module in modules:
            module.to(unet.device)
        yield
    finally:
        for module, device in before:
            module.to(device)


@contextlib.contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Everything in eval mode, and afterwards each part as it was."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in before:
            part.training = training


def _check_size(request: SampleRequest, factor: int) -> None:
    wrong = [
        Problem(
            "sample_prompts", f"the {name} of a sample should be a multiple of {factor}, at least {factor}", str(size)
        )
        for name, size in (("width", request.width), ("height", request.height))
        if size < factor or size % factor
    ]
    if wrong:
        raise ConfigError(wrong)


def pipeline_class(name: str) -> Any:
    """Its import makes transformers complain that torchvision is missing, which nothing here needs."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return getattr(diffusers, name)
    finally:
        logger.setLevel(level)


def _as_image(pixels_BCHW: Tensor) -> Image:
    from diffusers.image_processor import VaeImageProcessor

    image: Image = VaeImageProcessor().postprocess(pixels_BCHW, output_type="pil")[0]
    return image
