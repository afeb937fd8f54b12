"""Pixels of real files: colour modes, EXIF, resize, crop, mirroring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.buckets import BucketOptions, Geometry, assign
from trainer.data.images import load_pixels, load_rgb
from trainer.errors import DataError


def whole(width: int, height: int) -> Geometry:
    return Geometry((width, height), (width, height), (0, 0, width, height))


def test_pixels_are_in_minus_one_to_one(tmp_path: Path) -> None:
    values = np.zeros((8, 16, 3), np.uint8)
    values[:, 8:] = (255, 0, 51)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels_CHW = load_pixels(tmp_path / "a.png", whole(16, 8), flipped=False)
    assert pixels_CHW.shape == (3, 8, 16) and pixels_CHW.dtype == torch.float32 and pixels_CHW.is_contiguous()
    assert pixels_CHW[:, 0, 0].tolist() == [-1, -1, -1]
    assert pixels_CHW[:, 0, 15].tolist() == pytest.approx([1, -1, 51 / 127.5 - 1])
    flipped_CHW = load_pixels(tmp_path / "a.png", whole(16, 8), flipped=True)
    assert torch.equal(flipped_CHW, pixels_CHW.flip(-1))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("LA", (8, 8), (0, 51)).save(tmp_path / "b.png")
    Image.new("RGB", (8, 8), (9, 9, 9)).quantize(4).save(tmp_path / "c.png", transparency=0)
    assert (load_rgb(tmp_path / "a.png", whole(8, 8), flipped=False) == 255).all()
    assert (load_rgb(tmp_path / "b.png", whole(8, 8), flipped=False) == 204).all()
    assert (load_rgb(tmp_path / "c.png", whole(8, 8), flipped=False) == 255).all()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(tmp_path / "a.png")
    assert (load_rgb(tmp_path / "a.png", whole(8, 8), flipped=False) == 0x80).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = load_rgb(tmp_path / "a.jpg", whole(8, 8), flipped=False)[4, 4].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_exif_turn_comes_before_the_geometry(tmp_path: Path) -> None:
    values = np.zeros((20, 60, 3), np.uint8)
    values[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the left edge becomes the top
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    rgb_HWC = load_rgb(tmp_path / "a.png", whole(20, 60), flipped=False)
    assert (rgb_HWC[:10] == 255).all() and (rgb_HWC[10:] == 0).all()


def test_shrinking_averages_areas(tmp_path: Path) -> None:
    values = np.indices((16, 16)).sum(0) % 2 * 254
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "a.png")
    geometry = assign((16, 16), (8, 8), BucketOptions())
    assert (load_rgb(tmp_path / "a.png", geometry, flipped=False) == 127).all()


def test_crop_box_is_what_is_kept(tmp_path: Path) -> None:
    values = np.repeat(np.arange(64, dtype=np.uint8)[None], 16, 0)
    Image.fromarray(values).save(tmp_path / "a.png")
    geometry = Geometry((64, 16), (64, 16), (24, 0, 40, 16)).cropped_at(5, 0)
    assert load_rgb(tmp_path / "a.png", geometry, flipped=False)[0, :, 0].tolist() == list(range(5, 21))


def test_a_picture_changed_since_the_scan(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="was 8x8 pixels .* 16x8 now"):
        load_rgb(tmp_path / "a.png", whole(8, 8), flipped=False)
    with pytest.raises(DataError, match="gone.png: this file is not there any more"):
        load_rgb(tmp_path / "gone.png", whole(8, 8), flipped=False)
