"""The latent cache gives what encoding on the spot gives, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.data.conftest import MakePicture
from trainer.data.cache import LatentCache, draw_latents, encode_each
from trainer.data.dataset import TrainingSet
from trainer.data.loader import Loader
from trainer.data.sampler import plan_epoch
from trainer.errors import DataError
from trainer.maths.rng import randn_slots

Build = Callable[..., TrainingSet]


class Encoder(torch.nn.Module):
    """A small real convolutional encoder with mean and std."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 4, stride=4), torch.nn.SiLU(), torch.nn.Conv2d(16, 8, 2, stride=2)
        )

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean_BCHW, logvar_BCHW = self.body(pixels_BCHW).chunk(2, dim=1)
        return mean_BCHW, (0.5 * logvar_BCHW).exp()


@pytest.fixture
def pictures(picture: MakePicture) -> None:
    for index in range(6):
        picture(f"train/2_a/{index}.png", (64, 64 if index < 4 else 128))


def flags() -> dict[str, object]:
    return {"train_batch_size": 3, "enable_bucket": True, "min_bucket_reso": 32, "bucket_reso_steps": 16}


def test_cached_equals_uncached(pictures: None, build: Build) -> None:
    training_set = build(flip_aug=True, **flags())
    encoder = Encoder()
    ticks: list[tuple[int, int]] = []
    cache = LatentCache.build(training_set, encoder, progress=lambda done, total: ticks.append((done, total)))
    assert len(cache) == 12 and ticks[-1] == (12, 12)
    for step in plan_epoch(training_set, seed=1, epoch=0, accumulation=1, processes=1):
        (uncached,) = Loader(training_set, seed=1).batches(step.micro_batches[0])
        (cached,) = Loader(training_set, seed=1, load_pixels=False).batches(step.micro_batches[0])
        assert uncached.pixels_BCHW is not None
        mean_BCHW, std_BCHW = encode_each(encoder, uncached.pixels_BCHW)
        noise_BCHW = randn_slots(1, "latent", 0, uncached.slots, mean_BCHW.shape[1:])
        assert torch.equal(cache.draw(cached.keys, noise_BCHW), draw_latents(mean_BCHW, std_BCHW, noise_BCHW))


def test_batches_of_one_bucket(pictures: None, build: Build) -> None:
    shapes: list[tuple[int, ...]] = []
    encoder = Encoder()

    def encode(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(pixels_BCHW.shape))
        assert not torch.is_grad_enabled()
        return encoder(pixels_BCHW)  # type: ignore[no-any-return]

    cache = LatentCache.build(build(**flags()), encode, batch_size=3)
    assert sorted(shape[0] for shape in shapes) == [1, 2, 3] and len(cache) == 6


@pytest.mark.parametrize("drawn", [{"random_crop": True}, {"color_aug": True}, {"face_crop_aug_range": "1,2"}])
def test_what_is_drawn_anew_is_refused(pictures: None, build: Build, drawn: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(drawn))}: cannot go with cache_latents"):
        LatentCache.build(build(**drawn), Encoder())


def test_latents_that_are_not_finite_name_the_picture(pictures: None, build: Build) -> None:
    def encode(pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return pixels_BCHW * torch.nan, pixels_BCHW

    with pytest.raises(DataError, match=r"\d\.png: .* not finite"):
        LatentCache.build(build(), encode)
