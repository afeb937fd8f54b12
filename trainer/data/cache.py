"""Keep the encoded pictures in memory: mean and std of each latent, drawn from anew every time.

Shapes: B pictures, C latent channels, H and W of the latent. Both the cached and the uncached path encode through
`encode_each`, with vae_batch_size pictures together. With 1, the default, every picture is encoded alone in both, so
cached equals uncached bit for bit; with more, last bits depend on who is encoded beside whom.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from trainer.data.dataset import LatentKey, TrainingSet, View
from trainer.data.images import load_pixels
from trainer.data.scan import Progress
from trainer.errors import DataError

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""pixels_BCHW in [-1, 1] -> (mean_BCHW, std_BCHW) of the latents; it moves the pixels to its own device."""


def encode_each(encode: Encode, pixels_BCHW: Tensor, *, batch_size: int = 1) -> tuple[Tensor, Tensor]:
    """(mean_BCHW, std_BCHW) in float32, encoded batch_size pictures at a time."""
    with torch.no_grad():
        parts = [encode(chunk) for chunk in torch.split(pixels_BCHW, batch_size)]
    return torch.cat([mean for mean, _ in parts]).float(), torch.cat([std for _, std in parts]).float()


def draw_latents(mean_BCHW: Tensor, std_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """One draw from each picture's latent distribution; noise_BCHW is N(0, 1)."""
    return mean_BCHW + std_BCHW * noise_BCHW


class LatentCache:
    """(mean_CHW, std_CHW) on the CPU for every picture, geometry and mirroring that training can ask for."""

    def __init__(self, moments: dict[LatentKey, tuple[Tensor, Tensor]]) -> None:
        self._moments = moments

    @classmethod
    def build(
        cls, training_set: TrainingSet, encode: Encode, *, batch_size: int = 1, progress: Progress | None = None
    ) -> LatentCache:
        """Encode every picture once, batches of one bucket; progress(done, total) counts encodings."""
        _refuse_what_is_drawn(training_set)
        views = sorted(training_set.fixed_views(), key=lambda view: view.geometry.bucket)
        moments: dict[LatentKey, tuple[Tensor, Tensor]] = {}
        for batch, pixels_BCHW in _load_ahead(_batches(views, batch_size)):
            means_BCHW, stds_BCHW = encode_each(encode, pixels_BCHW, batch_size=batch_size)
            for view, mean_CHW, std_CHW in zip(batch, means_BCHW.cpu(), stds_BCHW.cpu(), strict=True):
                moments[view.key] = _checked(view, mean_CHW), _checked(view, std_CHW)
            if progress:
                progress(len(moments), len(views))
        return cls(moments)

    def __len__(self) -> int:
        return len(self._moments)

    def moments(self, keys: Sequence[LatentKey]) -> tuple[Tensor, Tensor]:
        """(mean_BCHW, std_BCHW) of the pictures of one micro-batch."""
        found = [self._moments[key] for key in keys]
        return torch.stack([mean for mean, _ in found]), torch.stack([std for _, std in found])

    def draw(self, keys: Sequence[LatentKey], noise_BCHW: Tensor) -> Tensor:
        """latents_BCHW of one micro-batch, on the device of the noise."""
        mean_BCHW, std_BCHW = self.moments(keys)
        return draw_latents(mean_BCHW.to(noise_BCHW.device), std_BCHW.to(noise_BCHW.device), noise_BCHW)


def _refuse_what_is_drawn(training_set: TrainingSet) -> None:
    for subset in dict.fromkeys(sample.subset for sample in training_set.samples):
        for problem in subset.pictures.pixel_problems(cached=True, bucketed=False):
            raise DataError(f"{problem} ({subset.image_dir})", option=problem.option)


def _checked(view: View, value_CHW: Tensor) -> Tensor:
    """A copy in memory of its own; refuses a latent that would poison the training."""
    if not bool(torch.isfinite(value_CHW).all()):
        raise DataError(
            f"{view.sample.picture.path}: the VAE turned this picture into values that are not finite",
            remedy="Run the VAE in float32 (no_half_vae)",
        )
    return value_CHW.clone()


def _batches(views: Sequence[View], batch_size: int) -> Iterator[list[View]]:
    """Runs of views of one bucket, batch_size at most; views come sorted by bucket."""
    batch: list[View] = []
    for view in views:
        if batch and (len(batch) == batch_size or batch[0].geometry.bucket != view.geometry.bucket):
            yield batch
            batch = []
        batch.append(view)
    if batch:
        yield batch


def _load_ahead(batches: Iterator[list[View]]) -> Iterator[tuple[list[View], Tensor]]:
    """The pixels of each batch, decoded in two threads while the batch before is encoded."""
    waiting: deque[tuple[list[View], Future[Tensor]]] = deque()
    with ThreadPoolExecutor(2, thread_name_prefix="decode") as threads:
        for batch in batches:
            waiting.append((batch, threads.submit(_load, batch)))
            if len(waiting) > 2:
                ready, pixels = waiting.popleft()
                yield ready, pixels.result()
        while waiting:
            ready, pixels = waiting.popleft()
            yield ready, pixels.result()


def _load(batch: list[View]) -> Tensor:
    return torch.stack([load_pixels(view.pixel_work) for view in batch])
