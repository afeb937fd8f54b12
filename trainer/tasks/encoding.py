"""How pictures and captions reach the loop as numbers: encoded when they are used, or from a cache, to the same bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.families.base import Conditioning
from trainer.hooks.resume import Progress
from trainer.lazy import torch
from trainer.loop import PlanEpoch, steps_from
from trainer.maths.rng import randn_slots

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from trainer.data.cache import Shelf
    from trainer.data.dataset import TrainingSet
    from trainer.data.loader import LoadedBatch
    from trainer.events import Events
    from trainer.families.base import Family
    from trainer.methods.base import Method
    from trainer.tasks.training_config import TrainingConfig


def latents_of(
    config: TrainingConfig, family: Family, training_set: TrainingSet, accelerator: Accelerator, events: Events
) -> Callable[[LoadedBatch], Tensor]:
    """How a batch becomes latents: drawn from the cache, or encoded on the spot; the same bits either way."""
    from trainer.data.cache import LatentCache, draw_latents, encode_each

    seed, device, batch_size = config.length.seed or 0, accelerator.device, config.data.vae_batch_size

    def noise(batch: LoadedBatch, shape: Sequence[int]) -> Tensor:
        return randn_slots(seed, "latent", batch.epoch, batch.slots, shape)

    if config.data.caches_latents:
        say = lambda done, total: events.phase("caching", done, total)  # noqa: E731
        shelf = _shelf(config, family)
        encode = family.encode_latents
        cache = LatentCache.build(training_set, encode, shelf=shelf, batch_size=batch_size, progress=say)
        for note in cache.notes:
            events.warning(note)
        # the VAE has done its work; sampling brings it back
        family.vae.to("cpu")

        def cached(batch: LoadedBatch) -> Tensor:
            mean_BCHW, std_BCHW = cache.moments(batch.keys)
            return draw_latents(mean_BCHW, std_BCHW, noise(batch, mean_BCHW.shape[1:])).to(device)

        return cached

    def encoded(batch: LoadedBatch) -> Tensor:
        assert batch.pixels_BCHW is not None
        mean_BCHW, std_BCHW = encode_each(family.encode_latents, batch.pixels_BCHW, batch_size=batch_size)
        drawn_BCHW = draw_latents(mean_BCHW.cpu(), std_BCHW.cpu(), noise(batch, mean_BCHW.shape[1:]))
        return drawn_BCHW.to(device)

    return encoded


def _shelf(config: TrainingConfig, family: Family) -> Shelf:
    """Where encoded pictures are kept."""
    from trainer.data.cache import InMemory, OnDisk
    from trainer.data.disk_cache import weights_identity
    from trainer.data.npz import NpzFormat

    folder = config.data.latents_folder()
    if folder is None:
        return InMemory()
    vae: Any = family.vae
    scale = float(vae.config.scaling_factor)
    npz = NpzFormat(family.npz_suffix, int(vae.config.latent_channels), family.latent_factor, scale)
    return OnDisk(folder, encoder=f"{weights_identity(vae)} {scale}", npz=npz)


def planned_captions(
    training_set: TrainingSet, plan_epoch: PlanEpoch, *, seed: int, progress: Progress, total_steps: int
) -> Iterator[str]:
    """Every caption that all processes will draw from here to the end of the run, and those to validate with."""
    for step in steps_from(plan_epoch, progress, total_steps=total_steps):
        for micro in (micro for of_rank in step.plan.micro_batches for micro in of_rank):
            for slot in micro.slots:
                yield training_set.view(slot, seed=seed, epoch=micro.epoch, step=micro.step).caption
    yield from (view.caption for view in training_set.validation_views())


def conditioning_of(
    config: TrainingConfig,
    family: Family,
    method: Method,
    captions: Iterable[str],
    accelerator: Accelerator,
    events: Events,
) -> Callable[[LoadedBatch], Conditioning]:
    """How a batch's captions become the denoiser's conditioning. captions: all that will be drawn, for the cache."""
    from trainer.data.disk_cache import TensorStore, weights_identity
    from trainer.data.text_cache import TextCache, stack

    if any(name.startswith("text_encoder") for name in method.trainable_components()):
        return lambda batch: family.encode_prompts(method.text_encoders, batch.captions)

    def encode(caption: str) -> Mapping[str, Tensor]:
        with torch.no_grad(), accelerator.autocast():
            return family.encode_prompts(method.text_encoders, [caption]).tensors()

    def alone(batch: LoadedBatch) -> Conditioning:
        return Conditioning(**stack([encode(caption) for caption in batch.captions]))

    if not config.data.caches_text:
        return alone
    folder = config.data.text_folder()
    weights = [weights_identity(encoder) for encoder in method.text_encoders] if folder else []
    usage = config.model.model_dump_json(exclude={"pretrained_model_name_or_path"})
    cache = TextCache.build(
        captions,
        encode,
        limit_gb=config.data.text_cache_limit_gb,
        store=TensorStore(folder) if folder else None,
        encoder=" ".join([*weights, usage, config.memory.mixed_precision]),
        progress=lambda done, total: events.phase("caching captions", done, total),
    )
    for note in cache.notes:
        events.warning(note)
    # the text encoders have done their work; sampling brings them back
    for encoder in method.text_encoders:
        encoder.to("cpu")
    device = accelerator.device

    def cached(batch: LoadedBatch) -> Conditioning:
        return Conditioning(**{name: value.to(device) for name, value in cache.batch(batch.captions).items()})

    return cached
