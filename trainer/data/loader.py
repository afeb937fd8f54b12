"""Load the micro-batches of a plan, in order; which processes decode the pictures never changes what comes out.

Shapes: B pictures, C channels, H height, W width. The main process draws crop, mirroring and caption of every slot and
hands the workers nothing but the file and what is done with it; they hold no state and send 8-bit pixels
and masks back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.data.buckets import Size
from trainer.data.dataset import LatentKey, TrainingSet, View
from trainer.data.images import RGB, Mask, PixelWork, load_mask, load_picture, to_masks, to_pixels
from trainer.data.sampler import MicroBatch
from trainer.errors import DataError


class _Work(NamedTuple):
    """The uses of one micro-batch. with_pixels: False for masks alone."""

    uses: tuple[PixelWork, ...]
    with_pixels: bool


class _Decoded(NamedTuple):
    """What a worker sends back. masks_BHW: None when none of the pictures has one, white for those without."""

    rgb_BHWC: RGB | None
    masks_BHW: Mask | None


@dataclass(frozen=True)
class LoadedBatch:
    """A micro-batch ready for the model. weight: 1.0, or 0.0 for a stand-in (MicroBatch). pixels_BCHW: float32 in
    [-1, 1], None when latents are cached. weights_B: loss weight of each picture. masks_BHW: where the loss
    counts, float32 from 0 to 1 at the pictures' size, None when no picture of the batch has a mask."""

    epoch: int
    bucket: Size
    weight: float
    views: tuple[View, ...]
    pixels_BCHW: Tensor | None
    weights_B: Tensor
    masks_BHW: Tensor | None = None

    @property
    def slots(self) -> list[int]:
        return [view.slot for view in self.views]

    @property
    def captions(self) -> list[str]:
        return [view.caption for view in self.views]

    @property
    def samples(self) -> list[int]:
        return [view.index for view in self.views]

    @property
    def frames_B4(self) -> Tensor:
        """Of each picture: the file's height and width, and the rows and columns cut off above and to the left."""
        return torch.tensor([view.frame for view in self.views], dtype=torch.float32)

    @property
    def keys(self) -> list[LatentKey]:
        """What LatentCache.moments asks for."""
        return [view.key for view in self.views]


class Loader:
    """Loads micro-batches with num_workers processes, 0 for none.

    load_pixels: False when latents are cached; then only masks are decoded, and without any no worker is started.
    persistent: keep the workers from one call of `batches` to the next; `close` ends them.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        *,
        seed: int,
        load_pixels: bool = True,
        num_workers: int = 0,
        persistent: bool = False,
    ) -> None:
        self._training_set = training_set
        self._seed = seed
        self._load_pixels = load_pixels
        decodes = load_pixels or any(sample.has_mask for sample in training_set.samples)
        self._decode = _decoder(num_workers, persistent=persistent) if decodes else _decode_nothing

    def batches(self, micro_batches: Iterable[MicroBatch]) -> Iterator[LoadedBatch]:
        """The loaded micro-batches in the order given; raises DataError for a picture that cannot be read any more."""
        waiting: deque[tuple[MicroBatch, tuple[View, ...]]] = deque()

        def work() -> Iterator[_Work]:
            for micro in micro_batches:
                views = tuple(
                    self._training_set.view(slot, seed=self._seed, epoch=micro.epoch, step=micro.step)
                    for slot in micro.slots
                )
                waiting.append((micro, views))
                yield _Work(tuple(view.pixel_work for view in views), self._load_pixels)

        for decoded in self._decode(work()):
            micro, views = waiting.popleft()
            yield _batch(micro, views, decoded)

    def one_by_one(self, views: Iterable[View], *, epoch: int) -> Iterator[LoadedBatch]:
        """Each of these views alone, loaded here; epoch: which streams what is drawn for them comes from."""
        for view in views:
            decoded = _decode(_Work((view.pixel_work,), self._load_pixels))
            yield _batch(MicroBatch(epoch, (), view.geometry.bucket, 1.0, 0), (view,), decoded)

    def close(self) -> None:
        """End the worker processes; the loader can still be used and starts new ones."""
        if isinstance(self._decode, _WorkerDecoder):
            self._decode.close()


def _batch(micro: MicroBatch, views: tuple[View, ...], decoded: _Decoded) -> LoadedBatch:
    weights_B = torch.tensor([view.sample.loss_weight for view in views])
    pixels_BCHW = None if decoded.rgb_BHWC is None else to_pixels(decoded.rgb_BHWC)
    masks_BHW = None if decoded.masks_BHW is None else to_masks(decoded.masks_BHW)
    return LoadedBatch(micro.epoch, micro.bucket, micro.weight, views, pixels_BCHW, weights_B, masks_BHW)


def _decoder(num_workers: int, *, persistent: bool) -> Callable[[Iterator[_Work]], Iterator[_Decoded]]:
    return _WorkerDecoder(num_workers, persistent=persistent) if num_workers else _decode_here


def _decode_nothing(work: Iterator[_Work]) -> Iterator[_Decoded]:
    for _ in work:
        yield _Decoded(None, None)


def _decode_here(work: Iterator[_Work]) -> Iterator[_Decoded]:
    yield from map(_decode, work)


def _decode(work: _Work) -> _Decoded:
    if work.with_pixels:
        pairs = [load_picture(use) for use in work.uses]
        rgb_BHWC, masks = np.stack([rgb for rgb, _ in pairs]), [mask for _, mask in pairs]
    else:
        rgb_BHWC, masks = None, [load_mask(use) for use in work.uses]
    if all(mask is None for mask in masks):
        return _Decoded(rgb_BHWC, None)
    width, height = work.uses[0].geometry.bucket
    white = np.full((height, width), 255, np.uint8)
    return _Decoded(rgb_BHWC, np.stack([white if mask is None else mask for mask in masks]))


class _WorkerDecoder:
    """Decodes in torch DataLoader workers started by "spawn", which is safe beside threads and the same everywhere."""

    def __init__(self, num_workers: int, *, persistent: bool) -> None:
        self._num_workers = num_workers
        self._persistent = persistent
        self._work = _WorkQueue()
        self._loader: DataLoader[Any] | None = None

    def __call__(self, work: Iterator[_Work]) -> Iterator[_Decoded]:
        if self._loader is None:
            self._loader = DataLoader(
                _Decoding(),
                batch_size=None,
                sampler=self._work,
                num_workers=self._num_workers,
                persistent_workers=self._persistent,
                multiprocessing_context="spawn",
                generator=torch.Generator(),  # else starting workers would draw from the global one
            )
        self._work.items = work
        items = iter(self._loader)
        while True:
            try:
                result = next(items)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # its signal is seen, or first the pipe it left behind
                self._loader = None
                raise _worker_died(error) from None
            if isinstance(result, str):
                raise DataError(result)
            # fresh memory: where the pixels lie must not depend on who decoded them
            yield _Decoded(*(None if part is None else np.array(part) for part in result))

    def close(self) -> None:
        self._loader = None


def _worker_died(error: Exception) -> DataError:
    first = next(iter(str(error).splitlines()), "")
    return DataError(
        f"a process that loads pictures ended unexpectedly ({first})",
        option="max_data_loader_n_workers",
        remedy="Most often memory ran out; lower max_data_loader_n_workers (0 loads in the trainer itself)",
    )


class _WorkQueue:
    """The sampler of the DataLoader: hands out whatever work it was given last."""

    def __init__(self) -> None:
        self.items: Iterator[_Work] = iter(())

    def __iter__(self) -> Iterator[_Work]:
        return self.items


class _Decoding(Dataset[Any]):
    """Lives in the workers. An unreadable picture comes back as text, since exceptions lose their form on the way."""

    def __getitem__(self, work: Any) -> _Decoded | str:
        try:
            return _decode(work)
        except DataError as error:
            return str(error)
