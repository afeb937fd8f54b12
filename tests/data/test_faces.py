"""Crops around faces named in file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.conftest import MakePicture
from tests.data.test_dataset import Build
from trainer.data.buckets import BucketOptions, assign
from trainer.data.faces import Face, crop_to_face, face_of
from trainer.data.sampler import Slot
from trainer.maths.rng import python_rng


@pytest.mark.parametrize(
    ("name", "face"),
    [
        ("girl_120_80_30_40.png", Face("girl", (120, 80), (30, 40))),
        ("a_b_1_2_3_4.JPG", Face("a_b", (1, 2), (3, 4))),
        ("girl_120_80_30.png", None),
        ("girl_1_2_3_x.png", None),
        ("girl_1_2_0_4.png", None),
    ],
)
def test_names(name: str, face: Face | None) -> None:
    assert face_of(Path("some_1_2_3_4") / name) == face


def test_the_face_is_inside_and_as_large_as_asked() -> None:
    geometry = assign((2000, 1500), (512, 512), BucketOptions())
    face = Face("x", (1500, 600), (200, 160))
    zooms = []
    for slot in range(200):
        drawn = crop_to_face(geometry, face, zoom=(2.0, 4.0), rng=python_rng(1, "face", 0, slot))
        assert drawn.bucket == (512, 512) and drawn.source == (2000, 1500)
        left, top, right, bottom = drawn.crop
        assert left >= 0 and top >= 0 and right <= drawn.resized[0] and bottom <= drawn.resized[1]
        scale = drawn.resized[0] / 2000
        assert drawn.resized[1] == pytest.approx(1500 * scale, abs=1)
        centre = ((left + right) / 2 / scale, (top + bottom) / 2 / scale)
        assert centre == pytest.approx((1500, 600), abs=200 / 20 + 2)
        zooms.append(512 / (200 * scale))
    assert 2.55 < min(zooms) < 2.6 and 3.9 < max(zooms) <= 4.01, "not enlarged beyond 1: at least 512 / 200"


def test_a_face_at_the_edge_and_one_too_small() -> None:
    geometry = assign((600, 520), (512, 512), BucketOptions())
    drawn = crop_to_face(geometry, Face("x", (599, 1), (10, 10)), zoom=(1.0, 1.0), rng=python_rng(1, "face", 0, 0))
    assert drawn.resized == (600, 520) and drawn.crop == (88, 0, 600, 512)
    small = assign((64, 100), (512, 512), BucketOptions())
    drawn = crop_to_face(small, Face("x", (30, 30), (60, 60)), zoom=(8.0, 9.0), rng=python_rng(1, "face", 0, 0))
    assert drawn.resized == (512, 800), "it has to cover the bucket"


def test_views_of_a_set(picture: MakePicture, build: Build) -> None:
    picture("train/1_a/p_200_40_30_30.png", (256, 128), caption="x")
    picture("train/1_a/plain.png", (256, 128), caption="x")
    training_set = build(face_crop_aug_range="1.5,3.0", color_aug=True)
    views = [training_set.view(Slot(i, i % 2), seed=3, epoch=0) for i in range(40)]
    faces = {view.geometry for view in views if view.index == 0}
    assert len(faces) > 15 and all(g.resized[0] >= g.bucket[0] == 64 for g in faces)
    assert {view.geometry for view in views if view.index == 1} == {training_set.samples[1].geometry}
    assert 4 < sum(view.colour is not None for view in views) < 25
    again = [training_set.view(Slot(i, i % 2), seed=3, epoch=0) for i in range(40)]
    assert again == views and views[0].pixel_work.colour == views[0].colour
