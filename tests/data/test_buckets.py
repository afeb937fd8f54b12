"""Bucket lists and choices against recorded answers of sd-scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.data.buckets import BucketOptions, assign, assign_to, bucket_list

VECTORS = Path(__file__).parents[1] / "vectors"
LISTS: list[dict[str, Any]] = json.loads((VECTORS / "bucket_lists.json").read_text())
CASES: list[dict[str, Any]] = json.loads((VECTORS / "bucket_cases.json").read_text())


def options_of(case: dict[str, Any]) -> BucketOptions:
    return BucketOptions(
        enable_bucket=True,
        min_bucket_reso=case["min"],
        max_bucket_reso=case["max"],
        bucket_reso_steps=case["steps"],
        bucket_no_upscale=case["no_upscale"],
    )


def test_bucket_lists() -> None:
    for case in LISTS:
        found = bucket_list(tuple(case["resolution"]), min_side=case["min"], max_side=case["max"], steps=case["steps"])
        assert [list(size) for size in found] == case["buckets"], case


def test_choices_of_the_reference() -> None:
    for case in (c for c in CASES if "error" not in c and min(c["bucket"]) > 0):
        source, resolution = tuple(case["image"]), tuple(case["resolution"])
        if case["no_upscale"]:
            geometry = assign(source, resolution, options_of(case))
        else:  # recorded with sides that are not on the grid, which our options would round first
            buckets = bucket_list(resolution, min_side=case["min"], max_side=case["max"], steps=case["steps"])
            geometry = assign_to(source, buckets)
        assert list(geometry.bucket) == case["bucket"], case
        assert list(geometry.resized) == case["resized"], case
        assert list(geometry.crop[:2]) == case["trim_left_top"], case


def test_every_picture_gets_a_legal_bucket() -> None:
    for case in CASES:  # also those for which the reference raised
        geometry = assign(tuple(case["image"]), tuple(case["resolution"]), options_of(case))
        left, top, right, bottom = geometry.crop
        assert all(side > 0 and side % case["steps"] == 0 for side in geometry.bucket), case
        assert 0 <= left < right <= geometry.resized[0] and 0 <= top < bottom <= geometry.resized[1], case


@pytest.mark.parametrize(
    ("source", "bucket", "resized"),
    [
        ((1000, 1500), (384, 640), (427, 640)),
        ((1920, 1080), (640, 384), (683, 384)),
        ((40, 40), (512, 512), (512, 512)),
    ],
)
def test_defaults_at_512(source: tuple[int, int], bucket: tuple[int, int], resized: tuple[int, int]) -> None:
    geometry = assign(source, (512, 512), BucketOptions(enable_bucket=True))
    assert (geometry.bucket, geometry.resized) == (bucket, resized)


def test_tiny_picture_without_upscale_grows_to_one_step() -> None:
    geometry = assign((40, 40), (512, 512), BucketOptions(enable_bucket=True, bucket_no_upscale=True))
    assert geometry.bucket == geometry.resized == (64, 64)


def test_without_buckets_the_centre_is_kept() -> None:
    geometry = assign((100, 300), (64, 64), BucketOptions())
    assert geometry.resized == (64, 192) and geometry.crop == (0, 64, 64, 128)


def test_crop_elsewhere_keeps_the_bucket() -> None:
    geometry = assign((100, 300), (64, 64), BucketOptions()).cropped_at(0, 128)
    assert geometry.crop == (0, 128, 64, 192) and geometry.bucket == (64, 64)
