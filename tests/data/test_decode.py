"""The stated rule for colours, on real files of every kind."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.decode import alpha_range, open_frames, open_picture, orientation, split_alpha, to_rgb


def rgb_of(path: Path) -> np.ndarray:
    return np.asarray(to_rgb(open_picture(path)))


def cmyk_profile(*, ink: tuple[int, int, int], paper: tuple[int, int, int]) -> bytes:
    """A printer's profile of one table: Lab (8 bits) of full cyan is `ink`, of no cyan `paper`, whatever M, Y and K."""
    ramp = bytes(range(256))
    grid = bytes(paper) * 8 + bytes(ink) * 8  # the first channel changes slowest
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    start = 128 + 4 + 12
    tags = struct.pack(">I", 1) + b"A2B0" + struct.pack(">II", start, len(table))
    head = struct.pack(">I4sI4s4s4s", start + len(table), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + table


def test_cmyk_goes_by_its_profile(tmp_path: Path) -> None:
    values = Image.new("CMYK", (16, 8), (0, 0, 0, 0))
    values.paste((255, 0, 0, 0), (0, 0, 8, 8))
    # a made-up printer whose paper is black and whose full cyan is white
    profile = cmyk_profile(ink=(255, 128, 128), paper=(0, 128, 128))
    values.save(tmp_path / "a.jpg", quality=100, icc_profile=profile)
    pixels = rgb_of(tmp_path / "a.jpg")
    assert (pixels[4, 3] > 250).all() and (pixels[4, 12] < 5).all()
    values.save(tmp_path / "plain.jpg", quality=100)
    assert rgb_of(tmp_path / "plain.jpg")[4, 3].tolist() == pytest.approx([0, 255, 255], abs=8)
    values.save(tmp_path / "broken.jpg", quality=100, icc_profile=profile[:150])
    assert (rgb_of(tmp_path / "broken.jpg") == rgb_of(tmp_path / "plain.jpg")).all()


def test_a_sixteen_bit_ramp_has_the_mean_of_the_eight_bit_one(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 256).astype(np.uint16)[None], 8, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray((ramp // 257).astype(np.uint8)).save(tmp_path / "flat.png")
    assert abs(float(rgb_of(tmp_path / "deep.png").mean()) - float(rgb_of(tmp_path / "flat.png").mean())) < 1
    assert len(np.unique(rgb_of(tmp_path / "deep.png"))) == 256


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "F"])
def test_other_modes_keep_their_colours(mode: str, tmp_path: Path) -> None:
    image = Image.new("L", (8, 8), 255 if mode == "1" else 100)
    if mode == "F":
        image = Image.fromarray(np.full((8, 8), 100 / 255, np.float32))
        assert set(np.asarray(to_rgb(image)).flat) == {100}
        return
    image.convert(mode).save(tmp_path / "a.png")
    assert set(rgb_of(tmp_path / "a.png").flat) == {255 if mode == "1" else 100}


def test_colours_under_transparency(tmp_path: Path) -> None:
    values = np.full((4, 8, 4), (10, 20, 30, 0), np.uint8)
    values[:, 4:, 3] = 128
    Image.fromarray(values).save(tmp_path / "a.png")
    image = open_picture(tmp_path / "a.png")
    colours, mask = split_alpha(image)
    assert mask is not None and (np.asarray(colours) == (10, 20, 30)).all()
    assert np.asarray(mask)[0].tolist() == [0] * 4 + [128] * 4 and alpha_range(image) == (0, 128)
    assert (rgb_of(tmp_path / "a.png")[:, :4] == 255).all()
    assert split_alpha(Image.new("L", (2, 2), 9))[1] is None and alpha_range(Image.new("L", (2, 2))) == (255, 255)


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    for name in ("a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        image, is_animated = open_frames(tmp_path / name)
        assert is_animated and np.asarray(to_rgb(image))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)
    frames[0].save(tmp_path / "still.png")
    assert not open_frames(tmp_path / "still.png")[1]


@pytest.mark.parametrize("turn", [1, 3, 6, 8, 99])
def test_orientation(turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert orientation(image) == (turn if turn <= 8 else 1)
