"""Scanning real folders: sizes, captions and every kind of bad file."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, features

from tests.data.conftest import MakePicture, noise_picture
from trainer.data.scan import count_folder, scan_folder


def reasons(folder: Path, **options: object) -> dict[str, str]:
    scan = scan_folder(folder, caption_extension=".txt", **options)  # type: ignore[arg-type]
    return {bad.path.name: bad.reason for bad in scan.bad}


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG whose header promises more pixels than its data hold."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    body = b"IDAT" + zlib.compress(b"")
    data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_a_good_folder(picture: MakePicture, tmp_path: Path) -> None:
    picture("f/b.png", (64, 48), caption="\ufeffb cat\nsecond")
    picture("f/a.JPG", (30, 40))
    picture("f/dot.ted.WebP", caption="x")
    (tmp_path / "f" / "dot.ted.txt").write_text("dotted")
    (tmp_path / "f" / "notes.md").write_text("not a picture")
    (tmp_path / "f" / "inner.png").mkdir()
    ticks: list[tuple[int, int]] = []
    scan = scan_folder(
        tmp_path / "f", caption_extension="txt", progress=lambda done, total: ticks.append((done, total))
    )
    assert not scan.bad and [p.path.name for p in scan.pictures] == ["a.JPG", "b.png", "dot.ted.WebP"]
    assert [p.caption for p in scan.pictures] == [None, "b cat\nsecond", "dotted"]
    assert [p.size for p in scan.pictures] == [(30, 40), (64, 48), (64, 64)]
    assert scan.pictures[1].sha256 == hashlib.sha256((tmp_path / "f" / "b.png").read_bytes()).hexdigest()
    assert scan.num_without_caption == 1 and ticks == [(1, 3), (2, 3), (3, 3)]


def test_size_is_after_the_exif_turn(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert scan_folder(tmp_path).pictures[0].size == (20, 60)
    assert count_folder(tmp_path).smallest == (20, 60)


def test_every_bad_file_is_in_one_report(picture: MakePicture, tmp_path: Path) -> None:
    good = picture("f/good.png", caption="fine")
    (tmp_path / "f" / "zero.png").write_bytes(b"")
    (tmp_path / "f" / "text.png").write_text("hello")
    whole = noise_picture(tmp_path / "f" / "cut.jpg", (256, 256)).read_bytes()
    (tmp_path / "f" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    whole = noise_picture(tmp_path / "f" / "cut.png", (256, 256)).read_bytes()
    (tmp_path / "f" / "cut.png").write_bytes(whole[: len(whole) // 2])
    bomb(tmp_path / "f" / "bomb.png", 50_000, 50_000)
    picture("f/latin.png")
    (tmp_path / "f" / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    picture("f/blank.png", caption=" \n\n")
    found = reasons(tmp_path / "f")
    assert set(found) == {"zero.png", "text.png", "cut.jpg", "cut.png", "bomb.png", "latin.txt", "blank.txt"}
    assert "0 bytes" in found["zero.png"] and "damaged" in found["cut.jpg"] and "damaged" in found["cut.png"]
    assert "pixels" in found["bomb.png"] and "offset 3" in found["latin.txt"] and "empty" in found["blank.txt"]
    assert [p.path for p in scan_folder(tmp_path / "f", caption_extension=".txt").pictures] == [good]


def test_pictures_above_the_limit_are_refused(picture: MakePicture, tmp_path: Path) -> None:
    picture("f/a.png", (64, 64))
    assert "4,095" in reasons(tmp_path / "f", max_image_pixels=4095)["a.png"]
    assert not reasons(tmp_path / "f", max_image_pixels=4096)


def test_three_different_messages_for_three_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert "does not exist" in reasons(tmp_path / "none")["none"]
    assert "is a file" in reasons(tmp_path / "file")["file"]
    assert "no pictures" in reasons(tmp_path / "empty")["empty"]
    assert "no pictures" in count_folder(tmp_path / "empty").problem


def test_captions_under_another_extension(picture: MakePicture, tmp_path: Path) -> None:
    picture("f/a.png", caption="one")
    picture("f/b.png")
    scan = scan_folder(tmp_path / "f", caption_extension=".caption")
    (bad,) = scan.bad
    assert "1 captions end in .txt and none in .caption" in bad.reason and "Set caption_extension to .txt" in bad.reason


def test_what_should_be_known_of_good_pictures(picture: MakePicture, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    folder = tmp_path / "f"
    folder.mkdir()
    frames[0].save(folder / "moves.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(folder / "moves.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "gif inside.png", format="GIF", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "stereo.jpg", format="MPO", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "left.gif")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(folder / "opaque.png")
    Image.new("LA", (8, 8), (1, 7)).save(folder / "glass.png")
    Image.new("1", (3001, 3000)).save(folder / "large.png")
    Image.new("1", (3000, 3000)).save(folder / "not.png")
    picture("f/twice.png", caption="one text")
    picture("f/twice.JPG")
    before = {path.name: (path.read_bytes(), path.stat().st_ctime_ns) for path in folder.iterdir()}
    scan = scan_folder(folder, caption_extension=".txt")
    assert not scan.bad
    assert {path.name: (path.read_bytes(), path.stat().st_ctime_ns) for path in folder.iterdir()} == before
    (moving, clear, large, left, twice) = [note.partition(": ")[2] for note in scan.notes]
    assert moving == "only the first frame is trained of gif inside.png, moves.png, moves.webp"
    assert clear.startswith("1 pictures have transparent areas") and large.startswith("1 pictures have more than 9")
    assert left.endswith(": left.gif") and twice == "one .txt file is the caption of twice.JPG and twice.png"
    by_name = {p.path.name: p for p in scan.pictures}
    assert by_name["glass.png"].alpha == (7, 7) and by_name["opaque.png"].alpha == (255, 255)
    assert by_name["twice.png"].caption == by_name["twice.JPG"].caption == "one text"


def test_headers_that_promise_too_much_cost_no_memory(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    bomb(tmp_path / "a.png", 50_000, 50_000)
    bomb(tmp_path / "b.png", 12_000, 12_000)
    process = psutil.Process()
    before = process.memory_info().rss
    found = reasons(tmp_path, max_image_pixels=100_000_000)
    assert "50000x50000" in found["a.png"] or "pixels" in found["a.png"]
    assert "12000x12000 pixels are more than the 100,000,000 allowed" in found["b.png"]
    assert process.memory_info().rss - before < 100e6


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".WebP", ".bmp", ".AVIF"])
def test_every_ending_in_any_case(suffix: str, picture: MakePicture, tmp_path: Path) -> None:
    if suffix == ".AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    picture(f"f/a{suffix}", (40, 24))
    assert [p.size for p in scan_folder(tmp_path / "f").pictures] == [(40, 24)]
    assert count_folder(tmp_path / "f").smallest == (40, 24)


def test_count_folder(picture: MakePicture, tmp_path: Path) -> None:
    picture("f/a.png", (64, 48), caption="one")
    picture("f/b.jpg", (100, 100), caption="two")
    (tmp_path / "f" / "b.caption").write_text("x")
    (tmp_path / "f" / "c.png").write_text("no picture")
    counts = count_folder(tmp_path / "f")
    assert (counts.pictures, counts.captions, counts.unreadable) == (3, {".caption": 1, ".txt": 2}, 1)
    assert (counts.smallest, counts.largest) == ((64, 48), (100, 100))


@pytest.mark.slow
def test_many_pictures_go_through_processes_with_the_same_result(picture: MakePicture, tmp_path: Path) -> None:
    for index in range(70):
        picture(f"f/{index:02}.png", (8 + index, 8))
    (tmp_path / "f" / "07.png").write_bytes(b"")
    scan = scan_folder(tmp_path / "f")
    assert [p.width for p in scan.pictures] == [8 + i for i in range(70) if i != 7]
    assert [bad.path.name for bad in scan.bad] == ["07.png"]
