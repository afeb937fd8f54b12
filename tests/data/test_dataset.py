"""What a training set does with its pictures epoch by epoch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.conftest import MakePicture
from trainer.data.config import DataOptions, read_dataset
from trainer.data.dataset import TrainingSet, preview_captions
from trainer.errors import DataError

Build = Callable[..., TrainingSet]


def uses(training_set: TrainingSet, epoch: int, seed: int = 7) -> Counter[int]:
    return Counter(slot.sample for batch in training_set.epoch_slots(seed, epoch) for slot in batch)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_each_picture_is_used_exactly_its_repeats(picture: MakePicture, build: Build, batch_size: int) -> None:
    for index in range(5):
        picture(f"train/3_a/{index}.png", (64 + 30 * index, 64))
    picture("train/2_b/x.png")
    training_set = build(train_batch_size=batch_size, enable_bucket=True, min_bucket_reso=32, bucket_reso_steps=16)
    for epoch in range(3):
        batches = training_set.epoch_slots(7, epoch)
        assert uses(training_set, epoch) == {i: s.repeats for i, s in enumerate(training_set.samples)}
        assert [slot.slot for batch in batches for slot in batch] == list(range(17))
        for batch in batches:
            assert len({training_set.samples[slot.sample].geometry.bucket for slot in batch}) == 1
        per_bucket = Counter(training_set.samples[slot.sample].geometry.bucket for b in batches for slot in b)
        assert len(batches) == sum(-(-count // batch_size) for count in per_bucket.values())


def test_order_depends_on_seed_and_epoch_only(picture: MakePicture, build: Build) -> None:
    for index in range(12):
        picture(f"train/1_a/{index}.png")
    first, again = build(), build()
    assert first.epoch_slots(1, 2) == again.epoch_slots(1, 2)
    assert len({tuple(first.epoch_slots(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(("num_train", "num_reg"), [(20, 7), (10, 30), (7, 7), (5, 1), (4, 6)])
def test_regularisation_pictures_take_turns(picture: MakePicture, build: Build, num_train: int, num_reg: int) -> None:
    for index in range(num_train):
        picture(f"train/1_a/{index}.png", (16, 16))
    for index in range(num_reg):
        picture(f"reg/1_a/{index}.png", (16, 16))
    training_set = build(prior_loss_weight=0.5)
    reg = {i for i, s in enumerate(training_set.samples) if s.is_reg}
    total: Counter[int] = Counter()
    for epoch in range(num_reg):
        used = {i: n for i, n in uses(training_set, epoch).items() if i in reg}
        assert sum(used.values()) == num_train, "never more or fewer than training pictures"
        assert max(used.values()) - min(used.values()) <= 1
        total.update(used)
    assert set(total.values()) == {num_train}, "over the epochs all are used equally"
    assert {training_set.samples[i].loss_weight for i in reg} == {0.5}
    assert training_set.summary().reg_uses == num_train


def test_flips_crops_and_captions_are_of_the_slot(picture: MakePicture, build: Build) -> None:
    for index in range(8):
        picture(f"train/4_a/{index}.png", (64 + 8 * index, 64), caption="a,b,c,d,e")
    training_set = build(flip_aug=True, random_crop=True, shuffle_caption=True)
    slots = [slot for batch in training_set.epoch_slots(3, 1) for slot in batch]
    views = [training_set.view(slot, seed=3, epoch=1) for slot in slots]
    assert views == [training_set.view(slot, seed=3, epoch=1) for slot in slots]
    assert 6 < sum(view.flipped for view in views) < 26
    assert len({view.caption for view in views}) > 20
    wide = [view for view in views if view.geometry.slack[0] > 20]
    assert len({view.geometry.crop[0] for view in wide}) > 8
    assert all(view.geometry.bucket == (64, 64) for view in views)


def test_captions_fall_back_to_class_tokens(picture: MakePicture, build: Build) -> None:
    picture("train/1_sks dog/a.png", caption="a dog")
    picture("train/1_sks dog/b.png")
    picture("train/1_/c.png")
    training_set = build()
    assert sorted(sample.caption_text for sample in training_set.samples) == ["", "a dog", "sks dog"]
    summary = training_set.summary()
    counts = summary.captions_from_files, summary.captions_from_class_tokens, summary.captions_empty
    assert counts == (1, 1, 1)
    assert any("1 of 1 pictures have no .txt file" in note for note in training_set.notes)


def test_validation_pictures_are_never_trained(picture: MakePicture, build: Build) -> None:
    for index in range(20):
        picture(f"train/3_a/{index}.png", (64 + 8 * index, 64), caption=f"{{x|y}}, b, c {index}")
    for index in range(4):
        picture(f"reg/1_a/r{index}.png")
    flags = {"shuffle_caption": True, "caption_dropout_rate": 0.9, "enable_wildcard": True, "flip_aug": True}
    training_set = build(validation_split=0.2, validation_seed=1, **flags)
    trained = {s.picture.path.name for s in training_set.samples if not s.is_reg}
    held = {s.picture.path.name for s in training_set.validation}
    assert len(held) == 4 and not held & trained and len(held | trained) == 20
    assert {s.repeats for s in training_set.validation} == {1}
    assert len([s for s in training_set.samples if s.is_reg]) == 4
    assert training_set.summary().validation_pictures == 4
    assert training_set.summary().uses == 48 and training_set.summary().reg_uses == 48
    views = training_set.validation_views()
    assert views == training_set.validation_views() and [view.index for view in views] == [0, 1, 2, 3]
    assert all(view.caption in (f"{x}, b, c {view.sample.picture.path.stem}" for x in "xy") for view in views)
    assert not any(view.flipped for view in views) and all(v.geometry == v.sample.geometry for v in views)
    assert held == {s.picture.path.name for s in build(validation_split=0.2, validation_seed=1).validation}
    assert held != {s.picture.path.name for s in build(validation_split=0.2, validation_seed=2).validation}
    (note,) = [note for note in training_set.notes if "validation" in note]
    assert "4 of 20 pictures" in note
    assert {view.key for view in views} <= {view.key for view in training_set.fixed_views()}
    assert not build().validation


def test_a_picture_that_another_dataset_trains_all_the_same(picture: MakePicture, tmp_path: Path) -> None:
    for index in range(4):
        picture(f"pics/{index}.png")
    tables = [
        f"[[datasets]]\nresolution = {side}\n{{}}\n[[datasets.subsets]]\nimage_dir = 'pics'\n" for side in (64, 128)
    ]

    def notes(*keys: str) -> list[str]:
        text = "".join(table.format(key) for table, key in zip(tables, keys, strict=True))
        (tmp_path / "data.toml").write_text(text)
        training_set = TrainingSet.build(read_dataset(DataOptions(dataset_config=tmp_path / "data.toml")))
        return [note for note in training_set.notes if "trained all the same" in note]

    assert not notes("validation_split = 0.5", "validation_split = 0.5")
    assert len(notes("validation_split = 0.5", "")) == 1


def test_preview_of_what_the_model_will_read(picture: MakePicture, build: Build) -> None:
    picture("train/1_a/a.png", caption="k, a, b, c, d, e\nsecond")
    flags = {"shuffle_caption": True, "keep_tokens": 1, "caption_dropout_every_n_epochs": 5, "token_warmup_step": 0.5}
    (sample,) = build(**flags).samples
    drawn = preview_captions(sample, seed=1)
    assert len(drawn) == 10 and drawn == preview_captions(sample, seed=1) != preview_captions(sample, seed=2)
    assert [index for index, caption in enumerate(drawn) if not caption] == [4, 9]
    assert all(sorted(caption.split(", ")) == [*"abcdek"] for caption in drawn if caption) and len(set(drawn)) > 5


def test_all_bad_files_of_all_folders_in_one_error(picture: MakePicture, build: Build, tmp_path: Path) -> None:
    picture("train/1_a/a.png")
    (tmp_path / "train" / "1_a" / "bad.png").write_bytes(b"")
    (tmp_path / "train" / "1_b").mkdir()
    with pytest.raises(DataError) as caught:
        build()
    assert "2 files or folders" in str(caught.value)
    assert "bad.png: is empty" in str(caught.value) and "1_b: no pictures" in str(caught.value)


def test_fixed_views_are_each_picture_once_per_mirroring(picture: MakePicture, build: Build) -> None:
    path = picture("train/3_a/a.png")
    picture("train/1_a/b.png")
    (path.parent / "copy.png").write_bytes(path.read_bytes())
    assert len(build().fixed_views()) == 2
    assert len(build(flip_aug=True).fixed_views()) == 4


def test_the_page_imports_all_this_without_torch() -> None:
    code = (
        "import sys, trainer.data.config, trainer.data.scan, trainer.data.dataset, trainer.data.sampler;"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'peft'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
