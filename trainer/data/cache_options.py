"""What is kept instead of being computed again: the options of the caches."""

from __future__ import annotations

from pathlib import Path

from trainer import host
from trainer.schema import Options, opt


class CacheOptions(Options):
    """Encoding pictures once instead of every time they are used."""

    cache_latents: bool = opt(False, level="basic")
    """Encode every picture once before training and keep the result in memory: faster, and the VAE can leave the
    device. The result is the same."""

    cache_latents_to_disk: bool = opt(False)
    """Keep the encoded pictures on disk, for this run's memory and for later runs; it means cache_latents as well.
    What is kept depends on the pictures' bytes, their crop and the VAE, so it never goes stale. The .npz files that
    sd-scripts left beside pictures are read where they fit."""

    latents_cache_dir: Path | None = opt(None, widget="folder")
    """Folder for cache_latents_to_disk, about 130 KB a picture at 512 pixels; it may be deleted whenever no run uses
    it. Unset: the user's cache folder (on Linux ~/.cache/training-studio/latents)."""

    vae_batch_size: int = opt(1, ge=1, step=1, unit="pictures")
    """Pictures encoded together by the VAE. 1 gives the same bits with and without cache_latents; more can be faster
    on large devices."""

    cache_text_encoder_outputs: bool = opt(False)
    """Encode all captions that will be drawn before training, for text encoders that do not train (set
    network_train_unet_only). Shuffled, dropped and drawn captions included; the result is the same."""

    cache_text_encoder_outputs_to_disk: bool = opt(False)
    """Keep the encoded captions on disk, for this run's memory and for later runs, in the user's cache folder (on
    Linux ~/.cache/training-studio/text); it means cache_text_encoder_outputs as well."""

    text_cache_limit_gb: float = opt(8.0, gt=0, unit="GB")
    """How much the encoded captions may take, in memory or on disk; more is an error before they are encoded. A caption
    takes about 0.24 MB for SD 1, and shuffling draws a new one nearly every time a picture is used."""

    @property
    def caches_text(self) -> bool:
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk

    def text_folder(self) -> Path | None:
        """Where encoded captions are kept on disk, None when they are not."""
        return host.cache_folder() / "text" if self.cache_text_encoder_outputs_to_disk else None

    @property
    def caches_latents(self) -> bool:
        return self.cache_latents or self.cache_latents_to_disk

    def latents_folder(self) -> Path | None:
        """Where latents are kept on disk, None when they are not."""
        if not self.cache_latents_to_disk:
            return None
        return self.latents_cache_dir or host.cache_folder() / "latents"
