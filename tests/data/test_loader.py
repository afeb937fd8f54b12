"""Loaded batches: the same whoever decodes, and clear errors when a worker or a picture is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from tests.data.conftest import MakePicture
from trainer.data.dataset import TrainingSet
from trainer.data.loader import LoadedBatch, Loader
from trainer.data.sampler import MicroBatch, plan_epoch
from trainer.errors import DataError

Build = Callable[..., TrainingSet]


@pytest.fixture
def training_set(picture: MakePicture, build: Build) -> TrainingSet:
    for index in range(5):
        picture(f"train/2_a/{index}.png", (64 + 8 * index, 64), caption=f"p{index},a,b,c")
    for index in range(3):
        picture(f"reg/1_a/{index}.png", (64, 64))
    captions = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.2, "token_warmup_step": 8}
    return build(
        train_batch_size=3, flip_aug=True, random_crop=True, color_aug=True, prior_loss_weight=0.25, **captions
    )


def micro_batches(training_set: TrainingSet, epoch: int) -> list[MicroBatch]:
    plan = plan_epoch(training_set, seed=1, epoch=epoch, accumulation=1, processes=1, first_step=7 * epoch)
    return [micro for step in plan for micro in step.micro_batches[0]]


def assert_same(first: list[LoadedBatch], second: list[LoadedBatch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.views == b.views and a.epoch == b.epoch
        assert a.pixels_BCHW is not None and b.pixels_BCHW is not None
        assert torch.equal(a.pixels_BCHW, b.pixels_BCHW) and torch.equal(a.weights_B, b.weights_B)


def test_batches_come_in_plan_order(training_set: TrainingSet) -> None:
    plan = micro_batches(training_set, 0)
    loaded = list(Loader(training_set, seed=1).batches(plan))
    assert [batch.slots for batch in loaded] == [[slot.slot for slot in micro.slots] for micro in plan]
    for micro, batch in zip(plan, loaded, strict=True):
        assert {view.step for view in batch.views} == {micro.step}
        assert batch.pixels_BCHW is not None and batch.pixels_BCHW.shape == (len(batch.slots), 3, 64, 64)
        is_reg = [training_set.samples[sample].is_reg for sample in batch.samples]
        assert batch.weights_B.tolist() == [0.25 if reg else 1.0 for reg in is_reg]


def test_a_resumed_epoch_loads_the_same(training_set: TrainingSet) -> None:
    plan = micro_batches(training_set, 3)
    whole = list(Loader(training_set, seed=1).batches(plan))
    assert_same(whole[2:], list(Loader(training_set, seed=1).batches(plan[2:])))


def test_nothing_is_decoded_when_latents_are_cached(training_set: TrainingSet) -> None:
    for sample in training_set.samples:
        sample.picture.path.unlink()
    loader = Loader(training_set, seed=1, load_pixels=False, num_workers=2)
    loaded = list(loader.batches(micro_batches(training_set, 0)))
    assert all(batch.pixels_BCHW is None and len(batch.keys) == len(batch.slots) for batch in loaded)


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "persistent"), [(1, False), (2, True), (4, False)])
def test_workers_change_nothing(training_set: TrainingSet, num_workers: int, persistent: bool) -> None:
    here = Loader(training_set, seed=1)
    loader = Loader(training_set, seed=1, num_workers=num_workers, persistent=persistent)
    for epoch in range(2 if persistent else 1):
        plan = micro_batches(training_set, epoch)
        assert_same(list(here.batches(plan)), list(loader.batches(plan)))
    loader.close()


def test_a_picture_gone_in_the_main_process(training_set: TrainingSet) -> None:
    training_set.samples[0].picture.path.unlink()
    with pytest.raises(DataError, match="0.png: this file is not there any more"):
        list(Loader(training_set, seed=1).batches(micro_batches(training_set, 0)))


@pytest.mark.slow
def test_a_picture_gone_and_a_worker_killed(training_set: TrainingSet) -> None:
    loader = Loader(training_set, seed=1, num_workers=1, persistent=True)
    many = [micro for epoch in range(8) for micro in micro_batches(training_set, epoch)]
    batches = loader.batches(many)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="max_data_loader_n_workers"):
        list(batches)
    training_set.samples[0].picture.path.unlink()
    with pytest.raises(DataError, match="0.png: this file is not there any more"):
        list(loader.batches(many))
    loader.close()


def test_masks_come_with_pixels_and_without(picture: MakePicture, build: Build) -> None:
    for index in range(3):
        picture(f"train/1_a/{index}.png", caption="x", mode="RGBA").touch()
    clear = Image.new("RGBA", (64, 64), (9, 9, 9, 255))
    clear.paste((9, 9, 9, 0), (0, 0, 32, 64))
    path = picture("train/1_a/clear.png", caption="x")
    clear.save(path)
    training_set = build(train_batch_size=4, alpha_mask=True, flip_aug=True)
    (plan,) = micro_batches(training_set, 0)
    (loaded,) = Loader(training_set, seed=1).batches([plan])
    (cached,) = Loader(training_set, seed=1, load_pixels=False).batches([plan])
    assert loaded.masks_BHW is not None and cached.masks_BHW is not None and cached.pixels_BCHW is None
    assert torch.equal(loaded.masks_BHW, cached.masks_BHW) and loaded.masks_BHW.shape == (4, 64, 64)
    for view, mask_HW in zip(loaded.views, loaded.masks_BHW, strict=True):
        expected = torch.ones(64, 64)
        if view.sample.picture.path == path:
            expected[:, slice(32, 64) if view.flipped else slice(0, 32)] = 0
        assert torch.equal(mask_HW, expected)
    assert next(Loader(build(), seed=1).batches([plan])).masks_BHW is None


def test_pictures_that_are_clear_everywhere(picture: MakePicture, build: Build) -> None:
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(picture("train/1_a/clear.png", caption="x"))
    build()
    with pytest.raises(DataError, match="clear.png: is transparent everywhere"):
        build(alpha_mask=True)
