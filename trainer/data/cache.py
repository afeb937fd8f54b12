"""Keep the encoded pictures, in memory or on disk: mean and std of each latent, drawn from anew every time.

Shapes: B pictures, C latent channels, H and W of the latent. Both the cached and the uncached path encode through
`encode_each`, with vae_batch_size pictures together. With 1, the default, every picture is encoded alone in both, so
cached equals uncached bit for bit; with more, last bits depend on who is encoded beside whom.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from trainer.data.dataset import LatentKey, TrainingSet, View
from trainer.data.disk_cache import DamagedEntry, TensorStore, content_key
from trainer.data.images import load_pixels
from trainer.data.npz import NpzFormat
from trainer.data.scan import Progress
from trainer.errors import DataError

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""pixels_BCHW in [-1, 1] -> (mean_BCHW, std_BCHW) of the latents; it moves the pixels to its own device."""

Moments = tuple[Tensor, Tensor]
"""(mean_CHW, std_CHW) of one picture, on the CPU."""

_WRITES_WAITING = 32


def encode_each(encode: Encode, pixels_BCHW: Tensor, *, batch_size: int = 1) -> tuple[Tensor, Tensor]:
    """(mean_BCHW, std_BCHW) in float32, encoded batch_size pictures at a time."""
    with torch.no_grad():
        parts = [encode(chunk) for chunk in torch.split(pixels_BCHW, batch_size)]
    return torch.cat([mean for mean, _ in parts]).float(), torch.cat([std for _, std in parts]).float()


def draw_latents(mean_BCHW: Tensor, std_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """One draw from each picture's latent distribution; noise_BCHW is N(0, 1)."""
    return mean_BCHW + std_BCHW * noise_BCHW


class Shelf(Protocol):
    """Where the moments of pictures are kept."""

    notes: list[str]

    def missing(self, views: Sequence[View]) -> list[View]:
        """Those of the views that have to be encoded."""

    def put(self, key: LatentKey, moments: Moments) -> None:
        """Keep what was encoded."""

    def get(self, key: LatentKey) -> Moments:
        """What was kept."""


class InMemory:
    """Moments that live as long as the run."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._moments: dict[LatentKey, Moments] = {}

    def missing(self, views: Sequence[View]) -> list[View]:
        return [view for view in views if view.key not in self._moments]

    def put(self, key: LatentKey, moments: Moments) -> None:
        self._moments[key] = moments

    def get(self, key: LatentKey) -> Moments:
        return self._moments[key]


class OnDisk:
    """Moments in a folder, for this run and later ones. encoder: the identity of the VAE.

    npz: how the files look that sd-scripts may have left beside pictures, None not to read any.
    """

    def __init__(self, folder: Path, *, encoder: str, npz: NpzFormat | None = None) -> None:
        self.notes: list[str] = []
        self._store = TensorStore(folder)
        self._encoder = encoder
        self._npz = npz
        self._borrowed: dict[LatentKey, tuple[Path, View]] = {}

    def missing(self, views: Sequence[View]) -> list[View]:
        """Every entry is read once here, so that training meets no damaged one."""
        found: list[View] = []
        damaged = unfit = 0
        for view in views:
            try:
                if self._store.read(self._key(view.key)) is not None:
                    continue
            except DamagedEntry:
                damaged += 1
            path = self._npz.find(view) if self._npz else None
            if self._npz and path and self._npz.read(path, view) is not None:
                self._borrowed[view.key] = (path, view)
                continue
            unfit += path is not None
            found.append(view)
        if damaged:
            self.notes.append(f"{damaged} cached latents were damaged and are made anew ({self._store.folder})")
        if self._borrowed:
            self.notes.append(
                f"{len(self._borrowed)} latents are read from .npz files beside the pictures; such a file holds one "
                "draw, so these pictures have the same latents every time"
            )
        if unfit:
            self.notes.append(f"{unfit} latents in .npz files beside the pictures do not fit and are made anew")
        return found

    def put(self, key: LatentKey, moments: Moments) -> None:
        self._store.write(self._key(key), dict(zip(("mean", "std"), moments, strict=True)))

    def get(self, key: LatentKey) -> Moments:
        if key in self._borrowed:
            path, view = self._borrowed[key]
            latents_CHW = self._npz.read(path, view) if self._npz else None
            if latents_CHW is None:
                raise DataError(f"{path}: was changed while it was in use", remedy="Start the run again")
            mean_CHW = torch.from_numpy(latents_CHW)
            return mean_CHW, torch.zeros_like(mean_CHW)
        try:
            found = self._store.read(self._key(key))
        except DamagedEntry as error:
            raise DataError(f"{error}, while it was in use", remedy="Start the run again: it is made anew") from None
        if found is None:
            remedy = "Start the run again: they are made anew"
            raise DataError(f"{self._store.folder}: cached latents were deleted while in use", remedy=remedy)
        return found["mean"], found["std"]

    def _key(self, key: LatentKey) -> str:
        geometry = (key.geometry.source, key.geometry.resized, key.geometry.crop)
        rest = (key.sha256, geometry, key.flipped, key.interpolation, key.keeps_alpha)
        return content_key("latents", self._encoder, *rest)


class LatentCache:
    """The moments of every picture, geometry and mirroring that training can ask for. notes: for people."""

    def __init__(self, shelf: Shelf, count: int) -> None:
        self._shelf = shelf
        self._count = count
        self.notes = tuple(shelf.notes)

    @classmethod
    def build(
        cls,
        training_set: TrainingSet,
        encode: Encode,
        *,
        shelf: Shelf | None = None,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> LatentCache:
        """Encode every picture that the shelf (in memory by default) lacks, batches of one bucket.

        progress(done, total) counts pictures. The next pictures are decoded and the last ones written meanwhile.
        """
        _refuse_what_is_drawn(training_set)
        shelf = shelf or InMemory()
        views = training_set.fixed_views()
        missing = sorted(shelf.missing(views), key=lambda view: view.geometry.bucket)
        done = len(views) - len(missing)
        if progress and done:
            progress(done, len(views))
        with _Writer(shelf) as writer:
            for batch, pixels_BCHW in _load_ahead(_batches(missing, batch_size)):
                means_BCHW, stds_BCHW = encode_each(encode, pixels_BCHW, batch_size=batch_size)
                for view, mean_CHW, std_CHW in zip(batch, means_BCHW.cpu(), stds_BCHW.cpu(), strict=True):
                    writer.put(view.key, (_checked(view, mean_CHW), _checked(view, std_CHW)))
                done += len(batch)
                if progress:
                    progress(done, len(views))
        return cls(shelf, len(views))

    def __len__(self) -> int:
        return self._count

    def moments(self, keys: Sequence[LatentKey]) -> tuple[Tensor, Tensor]:
        """(mean_BCHW, std_BCHW) of the pictures of one micro-batch."""
        found = [self._shelf.get(key) for key in keys]
        return torch.stack([mean for mean, _ in found]), torch.stack([std for _, std in found])

    def draw(self, keys: Sequence[LatentKey], noise_BCHW: Tensor) -> Tensor:
        """latents_BCHW of one micro-batch, on the device of the noise."""
        mean_BCHW, std_BCHW = self.moments(keys)
        return draw_latents(mean_BCHW.to(noise_BCHW.device), std_BCHW.to(noise_BCHW.device), noise_BCHW)


class _Writer:
    """Puts things on a shelf from a thread of its own, so that encoding need not wait for a disk."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: deque[Future[None]] = deque()

    def put(self, key: LatentKey, moments: Moments) -> None:
        self._waiting.append(self._thread.submit(self._shelf.put, key, moments))
        while len(self._waiting) > _WRITES_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            for write in self._waiting:
                write.result()


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
    loaded = torch.stack([load_pixels(view.pixel_work) for view in batch])
    for picture in {view.sample.picture.path: view.sample.picture for view in batch}.values():
        # kept under the hash of the scan, other bytes would be taken for these for good
        with picture.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != picture.sha256:
                raise DataError(f"{picture.path}: was changed since the folder was looked through")
    return loaded
