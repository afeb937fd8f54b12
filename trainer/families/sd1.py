"""Stable Diffusion 1.x (https://arxiv.org/abs/2112.10752) over diffusers: CLIP text encoder, U-Net, VAE.

Shape letters: B batch, C channels, H height, W width, L tokens, D width of a token's state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import ConfigError, ModelError, Problem
from trainer.families._clip import TextReading, unwrap
from trainer.families._samplers import build_scheduler
from trainer.families.base import Conditioning, Family, ModelOptions, SampleRequest
from trainer.formats import single_file, whole_model
from trainer.formats.kohya import AdapterTarget
from trainer.formats.model_facts import ModelFacts
from trainer.lazy import accelerate, diffusers, torch, transformers

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

BUILT_IN = Path(__file__).parent / "configs" / "sd1"
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
UNET_BLOCKS = ("Transformer2DModel",)
TEXT_BLOCKS = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")


class StableDiffusion1(Family):
    """Stable Diffusion 1.x: 77 tokens of CLIP, latents of 8x8 pixels, noise or velocity predicted."""

    kind = "sd1"
    base_model_version = "sd_v1"
    architecture = "stable-diffusion-v1"
    default_resolution = 512
    latent_factor = 8
    npz_suffix = "sd"

    denoiser: Any
    text_encoders: tuple[Any, ...]
    vae: Any

    def __init__(
        self,
        facts: ModelFacts,
        components: Mapping[str, Any],
        *,
        scheduler_config: Mapping[str, Any],
        tokenizer: Any,
        reading: TextReading,
        device: torch.device | str,
    ) -> None:
        self.facts = facts
        self.denoiser = components["unet"].to(device).eval().requires_grad_(False)
        self.text_encoders = (components["text_encoder"].to(device).eval().requires_grad_(False),)
        self.vae = components["vae"].to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.scheduler_config = dict(scheduler_config)
        self.prediction_type = _prediction(facts, scheduler_config)
        self.alphas_cumprod: Tensor = diffusers.DDPMScheduler.from_config(self.scheduler_config).alphas_cumprod
        self.dtype = self.denoiser.dtype
        self._reading = reading
        # found before an adapter adds layers of its own below these
        self._targets = (
            AdapterTarget.build(
                "denoiser",
                prefix="lora_unet",
                module=self.denoiser,
                paths=_paths_below(self.denoiser, UNET_BLOCKS),
            ),
            AdapterTarget.build(
                "text_encoder",
                prefix="lora_te",
                module=self.text_encoders[0],
                paths=_paths_below(self.text_encoders[0], TEXT_BLOCKS),
                level="text_model",
            ),
        )

    @classmethod
    def load(
        cls, facts: ModelFacts, options: ModelOptions, *, dtype: torch.dtype, device: torch.device | str
    ) -> StableDiffusion1:
        """The VAE is kept in float32 whatever `dtype` is: in half precision it can overflow."""
        dtypes = {"unet": dtype, "vae": torch.float32, "text_encoder": dtype}
        read = _from_folder if facts.layout == "diffusers" else _from_single_file
        components, scheduler_config, tokenizer = read(facts, options, dtypes)
        if facts.prediction == "unknown" and options.v_parameterization:
            scheduler_config = {**scheduler_config, "prediction_type": "v_prediction"}
        if options.zero_terminal_snr:
            # sampling begins with the last timestep then, as the paper says it has to
            zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            scheduler_config = {**scheduler_config, **zero_snr}
        layers = int(components["text_encoder"].config.num_hidden_layers)
        if (options.clip_skip or 1) > layers:
            problem = Problem("clip_skip", f"the text encoder has {layers} layers", str(options.clip_skip))
            raise ConfigError([problem])
        return cls(
            facts,
            components,
            scheduler_config=scheduler_config,
            tokenizer=tokenizer,
            reading=TextReading(options.clip_skip or 1, options.max_token_length or 75, options.weighted_captions),
            device=device,
        )

    def encode_prompts(self, text_encoders: Sequence[nn.Module], captions: Sequence[str]) -> Conditioning:
        (encoder,) = text_encoders
        return Conditioning(states_BLD=self._reading.states(encoder, self.tokenizer, captions))

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
        self, denoiser: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        states_BLD = conditioning.states_BLD.to(self.dtype)
        predicted_BCHW: Tensor = denoiser(
            noisy_BCHW.to(self.dtype), timesteps_B, encoder_hidden_states=states_BLD, return_dict=False
        )[0]
        return predicted_BCHW.float()

    def sample(self, denoiser: nn.Module, text_encoders: Sequence[nn.Module], request: SampleRequest) -> Image:
        _check_size(request, self.latent_factor)
        scheduler = build_scheduler(request.sampler, self.scheduler_config)
        unet, encoders = unwrap(denoiser), [unwrap(encoder) for encoder in text_encoders]
        seed = secrets.randbits(63) if request.seed is None else request.seed
        with (
            torch.no_grad(),
            _evaluating(unet, self.vae, *encoders),
            _beside(self.vae, unet),
            self._autocast(unet),
        ):
            prompts = [request.prompt, request.negative_prompt]
            wanted_BLD, unwanted_BLD = self.encode_prompts(encoders, prompts).states_BLD.split(1)
            pipeline = _pipeline_class()(
                vae=self.vae,
                text_encoder=None,
                tokenizer=None,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
            pipeline.set_progress_bar_config(disable=True)
            latents_BCHW = pipeline(
                prompt_embeds=wanted_BLD,
                negative_prompt_embeds=unwanted_BLD,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.scale,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="latent",
            ).images
            pixels_BCHW = self.decode(latents_BCHW.float())
        return _as_image(pixels_BCHW)

    def adapter_targets(self) -> tuple[AdapterTarget, ...]:
        return self._targets

    def enable_gradient_checkpointing(self, *, text_encoders: bool) -> None:
        self.denoiser.enable_gradient_checkpointing()
        if text_encoders:
            for encoder in self.text_encoders:
                encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def save_single_file(self, path: Path, *, precision: str, metadata: Mapping[str, str]) -> Path:
        """The file describes itself, so that models of any size load again without their config files."""
        parts = self._parts()
        return single_file.write_single_file(
            parts,
            path,
            configs={
                **{name: json.loads(_config_text(part)) for name, part in parts.items()},
                "scheduler": self.scheduler_config,
            },
            precision=precision,
            metadata=metadata,
        )

    def save_folder(self, path: Path, *, precision: str) -> Path:
        return whole_model.write_folder(self._parts(), path, precision=precision, add=self._add_to_folder)

    def _parts(self) -> dict[str, Any]:
        return {"unet": self.denoiser, "vae": self.vae, "text_encoder": self.text_encoders[0]}

    def _add_to_folder(self, folder: Path) -> None:
        """What a pipeline needs besides its networks."""
        index = json.loads((BUILT_IN / "model_index.json").read_text(encoding="utf-8"))
        scheduler = self.scheduler_config.get("_class_name", index["scheduler"][1])
        index["scheduler"] = ["diffusers", scheduler]
        (folder / "scheduler").mkdir()
        for name, content in (("model_index.json", index), ("scheduler/scheduler_config.json", self.scheduler_config)):
            (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def idle_parameters(self) -> tuple[nn.Parameter, ...]:
        layers = self.text_encoders[0].encoder.layers
        skipped = layers[len(layers) + 1 - self._reading.skip :]
        return tuple(parameter for layer in skipped for parameter in layer.parameters())

    def _autocast(self, unet: Any) -> contextlib.AbstractContextManager[Any]:
        """Adapters are float32: beside half-precision layers each operation must choose its own type."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(unet.device.type, dtype=self.dtype)


# ---------------------------------------------------------------- loading


def _from_folder(
    facts: ModelFacts, options: ModelOptions, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    components: dict[str, Any] = {}
    for name, dtype in dtypes.items():
        try:
            with _without_progress_bars():
                components[name] = _model_class(name).from_pretrained(
                    str(facts.path), subfolder=name, torch_dtype=dtype, use_safetensors=True, local_files_only=True
                )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{facts.path}/{name} cannot be loaded: {reason}", option="pretrained_model_name_or_path"
            ) from error
        _own_memory(components[name])
    scheduler_config = json.loads((facts.path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    own_tokenizer = facts.path / "tokenizer"
    return components, scheduler_config, _tokenizer(own_tokenizer if own_tokenizer.is_dir() else BUILT_IN / "tokenizer")


def _from_single_file(
    facts: ModelFacts, options: ModelOptions, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    configs, source = single_file.component_configs(
        facts.path, model_config=options.model_config_folder, built_in=BUILT_IN
    )
    components = {name: _empty(name, configs[name], source) for name in dtypes}
    sizes = {
        name: {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()}
        for name, part in components.items()
    }
    single_file.check_sizes(facts.path, sizes, source=source)
    for name, part in components.items():
        tensors = single_file.read_component(facts.path, name, sizes[name], dtypes[name])
        part.load_state_dict(tensors, strict=True, assign=True)
        part.eval()
    scheduler_config = dict(configs["scheduler"])
    if facts.prediction != "unknown":
        scheduler_config["prediction_type"] = facts.prediction
    return components, scheduler_config, _tokenizer(BUILT_IN / "tokenizer")


def _model_class(name: str) -> Any:
    return transformers.CLIPTextModel if name == "text_encoder" else getattr(diffusers, CLASSES[name])


def _empty(name: str, config: Mapping[str, Any], source: str) -> Any:
    """The component without memory for its weights; they are put in when the sizes have been compared."""
    try:
        with accelerate.init_empty_weights(include_buffers=False):
            if name == "text_encoder":
                return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
            return _model_class(name).from_config(dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"the {name} config in {source} describes no model: {error}", option="model_config") from error


def _own_memory(module: nn.Module) -> None:
    """Move every weight out of the mapped file: its alignment there would change last bits."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws one per component, into the run's console."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _tokenizer(folder: Path) -> Any:
    return transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def _config_text(part: Any) -> str:
    text: str = (
        part.config.to_json_string() if isinstance(part, transformers.PreTrainedModel) else part.to_json_string()
    )
    return text


def _prediction(facts: ModelFacts, scheduler_config: Mapping[str, Any]) -> Literal["epsilon", "v_prediction"]:
    stated = scheduler_config.get("prediction_type", "epsilon")
    if stated not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"{facts.path} predicts {stated}; epsilon and v_prediction can be trained",
            option="pretrained_model_name_or_path",
        )
    return "v_prediction" if stated == "v_prediction" else "epsilon"


# ---------------------------------------------------------------- small helpers


def _paths_below(module: nn.Module, block_names: Sequence[str]) -> tuple[str, ...]:
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


@contextlib.contextmanager
def _beside(module: Any, other: Any) -> Iterator[None]:
    """A module on another's device; the VAE leaves the card once latents are cached, and comes back to decode."""
    before = module.device
    module.to(other.device)
    try:
        yield
    finally:
        module.to(before)


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


def _pipeline_class() -> Any:
    """Its import makes transformers complain that torchvision is missing, which nothing here needs."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return diffusers.StableDiffusionPipeline
    finally:
        logger.setLevel(level)


def _as_image(pixels_BCHW: Tensor) -> Image:
    from diffusers.image_processor import VaeImageProcessor

    image: Image = VaeImageProcessor().postprocess(pixels_BCHW, output_type="pil")[0]
    return image
