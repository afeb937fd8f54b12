"""A second scan reads only what could have changed, and never trusts what it should not."""

from __future__ import annotations

import os
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from tests.data.conftest import MakePicture, noise_picture
from trainer.data.look import Facts
from trainer.data.scan import look_at, scan_folder
from trainer.data.scan_cache import Remembered, ScanCache, signature_of

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="files are always hashed on Windows")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    monkeypatch.setenv("STUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scans"


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    scan = scan_folder(folder)
    assert not scan.bad
    return {picture.path.name: picture.size for picture in scan.pictures}


def lie(folder: Path, name: str, *, sha256: str | None = None, trusted: bool) -> None:
    """Remember a wrong width for a file: who believes it did not decode the file."""
    known = dict(ScanCache().rows(folder))
    before = known[name]
    stat = (folder / name).stat()
    signature = signature_of(stat, read_at_ns=time.time_ns()) if trusted else None
    assert bool(signature) == trusted
    facts = before.facts._replace(width=999, sha256=sha256 or before.facts.sha256)
    ScanCache().write(folder, known | {name: Remembered(signature, facts)})


@POSIX
def test_an_unchanged_file_is_not_read_again(cache: Path, picture: MakePicture, tmp_path: Path) -> None:
    picture("f/a.png", (64, 48))
    assert sizes(tmp_path / "f") == {"a.png": (64, 48)}
    assert dict(ScanCache().rows(tmp_path / "f"))["a.png"].signature is None, "younger than two seconds"
    time.sleep(2.1)
    assert sizes(tmp_path / "f") == {"a.png": (64, 48)}
    lie(tmp_path / "f", "a.png", sha256="0" * 64, trusted=True)
    assert sizes(tmp_path / "f") == {"a.png": (999, 48)}


def test_a_touched_file_is_hashed_and_not_decoded(cache: Path, picture: MakePicture, tmp_path: Path) -> None:
    path = picture("f/a.png", (64, 48))
    sizes(tmp_path / "f")
    path.touch()
    lie(tmp_path / "f", "a.png", trusted=False)
    assert sizes(tmp_path / "f") == {"a.png": (999, 48)}


@POSIX
def test_a_file_edited_to_the_same_size_and_time_is_seen(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    path = tmp_path / "f" / "a.bmp"
    Image.new("RGB", (20, 10), (1, 2, 3)).save(path)
    time.sleep(2.1)
    first = scan_folder(tmp_path / "f").pictures[0]
    before = path.stat()
    Image.new("RGB", (20, 10), (3, 2, 1)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert scan_folder(tmp_path / "f").pictures[0].sha256 != first.sha256


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff\xfe"])
def test_a_damaged_cache_is_made_anew(cache: Path, picture: MakePicture, tmp_path: Path, damage: bytes) -> None:
    picture("f/a.png", (64, 48))
    sizes(tmp_path / "f")
    lie(tmp_path / "f", "a.png", trusted=False)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(damage or good.replace(b"999", b"998"))
    assert sizes(tmp_path / "f") == {"a.png": (64, 48)}
    assert dict(ScanCache().rows(tmp_path / "f"))["a.png"].facts.width == 64


def test_bad_files_are_looked_at_every_time(cache: Path, picture: MakePicture, tmp_path: Path) -> None:
    picture("f/a.png")
    (tmp_path / "f" / "b.png").write_bytes(b"")
    for _ in range(2):
        assert [bad.path.name for bad in scan_folder(tmp_path / "f").bad] == ["b.png"]
    noise_picture(tmp_path / "f" / "b.png", (8, 8))
    assert sizes(tmp_path / "f") == {"a.png": (64, 64), "b.png": (8, 8)}
    (tmp_path / "f" / "a.png").unlink()
    assert sizes(tmp_path / "f") == {"b.png": (8, 8)}
    assert set(dict(ScanCache().rows(tmp_path / "f"))) == {"b.png"}


def test_a_lower_limit_is_obeyed(cache: Path, picture: MakePicture, tmp_path: Path) -> None:
    picture("f/a.png", (64, 64))
    assert not scan_folder(tmp_path / "f").bad
    assert "4,095" in scan_folder(tmp_path / "f", max_image_pixels=4095).bad[0].reason


def test_single_pictures_keep_what_is_known_of_their_neighbours(
    cache: Path, picture: MakePicture, tmp_path: Path
) -> None:
    first, second = picture("f/a.png", (64, 48)), picture("f/b.png", (32, 48))
    scan_folder(tmp_path / "f")
    gone = tmp_path / "f" / "gone.png"
    facts = look_at([second, gone, second])
    assert facts[second].width == 32 and "No such file" in facts[gone].reason and len(facts) == 2
    assert set(dict(ScanCache().rows(tmp_path / "f"))) == {first.name, second.name}


def test_a_cache_that_cannot_be_written_is_done_without(
    picture: MakePicture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("STUDIO_CACHE", str(tmp_path / "file"))
    picture("f/a.png", (64, 48))
    assert sizes(tmp_path / "f") == {"a.png": (64, 48)}


@POSIX
@pytest.mark.slow
def test_memory_and_disk_a_picture(cache: Path, tmp_path: Path) -> None:
    """Under 1 KB a picture, as remembered on disk and as scanned in memory."""
    many = 20_000
    folder = tmp_path / "f"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "picture-00000.bmp")
    for index in range(1, many):
        os.link(folder / "picture-00000.bmp", folder / f"picture-{index:05}.bmp")
    time.sleep(2.1)
    signature = signature_of((folder / "picture-00000.bmp").stat(), read_at_ns=time.time_ns())
    assert signature
    known = {
        f"picture-{index:05}.bmp": Remembered(signature, Facts(8, 8, f"{index:064x}", looks=2**64 - 1 - index))
        for index in range(many)
    }
    ScanCache().write(folder, known)
    del known
    assert sum(file.stat().st_size for file in cache.iterdir()) < many * 300
    tracemalloc.start()
    scan = scan_folder(folder)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({picture.sha256 for picture in scan.pictures}) == many, "nothing was read"
    assert kept < many * 700 and peak < many * 1024, (kept / many, peak / many)
