"""Pixels of real files: colour modes, EXIF, resize, crop, mirroring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data import images
from trainer.data.buckets import BucketOptions, Geometry, assign
from trainer.data.images import ColourChange, PixelOptions, PixelWork, load_mask, load_picture, resize
from trainer.errors import DataError
from trainer.maths.rng import python_rng


def load_rgb(path: Path, geometry: Geometry, *, flipped: bool) -> np.ndarray:
    return load_picture(PixelWork(path, geometry, flipped))[0]


def load_pixels(path: Path, geometry: Geometry, *, flipped: bool) -> torch.Tensor:
    return images.load_pixels(PixelWork(path, geometry, flipped))


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


def banded(path: Path, size: tuple[int, int]) -> Path:
    """A picture that is opaque red on the left half and clear blue on the right."""
    values = np.zeros((size[1], size[0], 4), np.uint8)
    values[:, : size[0] // 2] = (255, 0, 0, 255)
    values[:, size[0] // 2 :] = (0, 0, 255, 0)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("flipped", [False, True])
def test_picture_and_mask_stay_aligned(tmp_path: Path, flipped: bool) -> None:
    """Through a geometry that scales unevenly and crops off the middle, the edge of the mask is that of the picture."""
    geometry = Geometry((96, 40), (80, 33), (13, 4, 61, 28))
    path = banded(tmp_path / "a.png", (96, 40))
    rgb_HWC, mask_HW = load_picture(PixelWork(path, geometry, flipped, mask="alpha"))
    assert mask_HW is not None and rgb_HWC.shape == (24, 48, 3) and mask_HW.shape == (24, 48)
    # red where the mask is white, and the blue under the transparency is kept where it is black
    assert (np.abs(rgb_HWC[..., 0].astype(int) - mask_HW) <= 1).all()
    assert (np.abs(rgb_HWC[..., 2].astype(int) - (255 - mask_HW.astype(int))) <= 1).all()
    assert (mask_HW[0, -21:] == 255).all() == flipped and (mask_HW[0, :27] == 255).all() == (not flipped)
    assert np.array_equal(load_mask(PixelWork(path, geometry, flipped, mask="alpha")), mask_HW)

    with Image.open(path) as image:
        image.getchannel("A").save(tmp_path / "mask.png")
    picture = Image.new("RGB", (96, 40))
    picture.save(tmp_path / "b.png")
    _, from_file = load_picture(PixelWork(tmp_path / "b.png", geometry, flipped, mask=tmp_path / "mask.png"))
    assert np.array_equal(from_file, mask_HW)


def test_masks_of_pictures_without_transparency_are_white(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    _, mask_HW = load_picture(PixelWork(tmp_path / "a.png", whole(8, 8), mask="alpha"))
    assert mask_HW is not None and (mask_HW == 255).all()
    assert load_mask(PixelWork(tmp_path / "a.png", whole(8, 8))) is None


def test_bad_masks(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "black.png")
    Image.new("L", (9, 8), 255).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match="black.png: this mask is black everywhere"):
        load_mask(PixelWork(tmp_path / "a.png", whole(8, 8), mask=tmp_path / "black.png"))
    with pytest.raises(DataError, match="wide.png: was 8x8"):
        load_mask(PixelWork(tmp_path / "a.png", whole(8, 8), mask=tmp_path / "wide.png"))


@pytest.mark.parametrize("name", ["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"])
def test_every_named_filter(name: images.Interpolation) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    small = np.asarray(resize(Image.fromarray(values), (4, 4), name))
    assert small.shape == (4, 4) and abs(float(small.mean()) - float(values.mean())) < 20
    assert (small == resize(Image.fromarray(values), (4, 4))).all() == (name == "area")
    assert (name == "nearest") == set(small.flat).issubset(values.flat)


def test_colours_change_as_drawn() -> None:
    image = Image.new("RGB", (2, 2), (200, 60, 60))
    red, green, blue = images.change_colour(image, ColourChange(hue_degrees=16)).getpixel((0, 0))  # type: ignore[misc]
    assert abs(red - 200) <= 2 and green > 85 and abs(blue - 60) <= 2, "towards yellow"
    assert images.change_colour(image, ColourChange(gamma=1.05)).getpixel((0, 0)) == (198, 56, 56)
    assert images.change_colour(image, ColourChange()).getpixel((0, 0)) == (200, 60, 60)


def test_a_third_of_the_pictures_change_colour() -> None:
    drawn = [images.draw_colour(python_rng(1, "colour", 0, slot)) for slot in range(6000)]
    hues = [change.hue_degrees for change in drawn if change and change.hue_degrees]
    gammas = [change.gamma for change in drawn if change and change.gamma != 1.0]
    assert len(hues) / 6000 == pytest.approx(0.165, abs=0.015) and len(gammas) / 6000 == pytest.approx(0.165, abs=0.015)
    assert max(map(abs, hues)) <= 16 and max(map(abs, hues)) > 15.5 and min(hues) < 0 < max(hues)
    assert 0.95 <= min(gammas) < 0.952 and 1.048 < max(gammas) <= 1.05


def test_what_does_not_go_together() -> None:
    options = PixelOptions(random_crop=True, color_aug=True, face_crop_aug_range="2,3")
    said = {p.option: str(p) for p in options.pixel_problems(cached=True, bucketed=True)}
    assert set(said) == {"random_crop", "color_aug", "face_crop_aug_range"}
    assert all("cache_latents" in text or "enable_bucket" in text for text in said.values())
    assert not list(options.pixel_problems(cached=False, bucketed=False))
    for wrong in ("2", "3,2", "a,b", "0,2", "1,inf", [1.0, 2.0, 3.0]):
        (problem,) = PixelOptions(face_crop_aug_range=wrong).pixel_problems(cached=False, bucketed=False)
        assert problem.option == "face_crop_aug_range" and "2.0,4.0" in problem.remedy
    assert PixelOptions(face_crop_aug_range=[2.0, 4.0]).face_zoom() == (2.0, 4.0)
