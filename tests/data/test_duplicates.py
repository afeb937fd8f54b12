"""Near twins are found by how they look, exactly as comparing all pairs would."""

from __future__ import annotations

import random
from pathlib import Path

import imagehash
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from tests.data.conftest import noise_picture
from trainer.data.duplicates import find_twins
from trainer.data.look import perceptual_hash
from trainer.data.scan import Picture, scan_folder


def scene(seed: int) -> Image.Image:
    """A picture with large and small shapes."""
    draw_from = random.Random(seed)
    image = Image.new("RGB", (320, 240), tuple(draw_from.randbytes(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y = draw_from.randrange(300), draw_from.randrange(220)
        box = (x, y, x + draw_from.randrange(10, 120), y + draw_from.randrange(10, 120))
        draw.ellipse(box, fill=tuple(draw_from.randbytes(3)))
    return image


def test_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    for seed in range(30):
        scene(seed).save(tmp_path / f"{seed:02}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "03.png").read_bytes())
    scene(5).save(tmp_path / "again.jpg", quality=70)
    scene(6).resize((200, 150)).save(tmp_path / "smaller.webp")
    ImageEnhance.Brightness(scene(7)).enhance(0.9).save(tmp_path / "darker.bmp")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "x-red.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "y-blue.png")
    found = {
        (t.first.path.name, t.second.path.name): (t.same_bytes, t.distance)
        for t in find_twins(scan_folder(tmp_path).pictures)
    }
    assert set(found) == {
        ("03.png", "copy.png"), ("05.png", "again.jpg"), ("06.png", "smaller.webp"), ("07.png", "darker.bmp"),
    }  # fmt: skip
    assert found["03.png", "copy.png"] == (True, 0)


def test_the_hash_is_the_known_one() -> None:
    for seed in range(40):
        grey = scene(seed).convert("L").reduce(1 + seed % 7)
        assert f"{perceptual_hash(grey):016x}" == str(imagehash.phash(grey))


@pytest.mark.parametrize("max_distance", [0, 3, 10])
def test_blocks_find_what_all_pairs_do(max_distance: int) -> None:
    draw = random.Random(0)
    looks = [draw.getrandbits(64) for _ in range(150)]
    looks += [number ^ (1 << draw.randrange(64)) ^ (1 << draw.randrange(64)) for number in looks[:100]]
    draw.shuffle(looks)
    pictures = [Picture(Path(f"{i}.png"), 8, 8, str(i), None, looks=number) for i, number in enumerate(looks)]
    pictures.insert(40, Picture(Path("flat.png"), 8, 8, "flat", None))
    paired = {
        int(second.path.stem)
        for index, second in enumerate(pictures)
        if second.looks is not None
        and any(p.looks is not None and (p.looks ^ second.looks).bit_count() <= max_distance for p in pictures[:index])
    }
    assert {int(t.second.path.stem) for t in find_twins(pictures, max_distance=max_distance)} == paired


def test_a_picture_named_twice_is_no_twin_of_itself(tmp_path: Path) -> None:
    noise_picture(tmp_path / "a.png", (64, 64))
    pictures = scan_folder(tmp_path).pictures
    assert not list(find_twins([*pictures, *pictures]))
