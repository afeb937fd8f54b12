"""Uploads, zips, copies and caption edits: nothing of the person's is ever moved, deleted or overwritten."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from kohya_gui import dataset_files
from kohya_gui.dataset_files import Cancelled, Copy
from trainer.errors import DataError


def go_on(done: int, total: int) -> bool:
    return True


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(png() if name.endswith(".png") else b"a caption")
    return folder


# --- zips ---


def test_a_zip_of_named_folders_becomes_a_parent(tmp_path: Path) -> None:
    members = {"set/10_sks dog/a.png": png(), "set/10_sks dog/a.txt": b"x", "set/5_cat/a.png": png()}
    file = zipped(tmp_path / "my set.zip", {**members, "set/.DS_Store": b"", "__MACOSX/set/a.png": b"?"})
    taken = dataset_files.take([file], tmp_path / "datasets", go_on)
    assert taken.folder is not None and taken.folder.name.startswith("my set-")
    assert tree(taken.folder) == ["10_sks dog/a.png", "10_sks dog/a.txt", "5_cat/a.png"]
    assert (taken.pictures, taken.captions, taken.refused) == (2, 1, ())


def test_a_zip_of_pictures_becomes_a_folder(tmp_path: Path) -> None:
    taken = dataset_files.take([zipped(tmp_path / "a.zip", {"x/b.png": png()})], tmp_path / "datasets", go_on)
    assert taken.folder is not None and tree(taken.folder) == ["b.png"]


def test_what_a_zip_must_not_do(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = tmp_path / "bad.zip"
    names = ("../out.png", "/etc/out.png", "C:/out.png", "..\\out.png", "run.py", "a/../../out.png")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good.png", png())
        archive.writestr("page.png", "<html>")
        for name in names:
            archive.writestr(name, png())
    taken = dataset_files.take([file], tmp_path / "datasets", go_on)
    assert taken.folder is not None and tree(tmp_path / "datasets") == [f"{taken.folder.name}/good.png"]
    assert len(taken.refused) == len(names) + 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "datasets"]


def test_zip_bombs_are_stopped_by_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_files, "MOST_BYTES", 200_000)
    file = zipped(tmp_path / "bomb.zip", {f"{n}.txt": b"0" * 90_000 for n in range(3)})
    with pytest.raises(DataError, match="too large"):
        dataset_files.take([file], tmp_path / "datasets", go_on)
    assert not (tmp_path / "datasets").exists()


@pytest.mark.parametrize("content", [b"", b"PK nothing"])
def test_no_zip_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip"):
        dataset_files.take([tmp_path / "a.zip"], tmp_path / "datasets", go_on)


def test_a_zip_without_pictures_leaves_nothing(tmp_path: Path) -> None:
    taken = dataset_files.take([zipped(tmp_path / "a.zip", {"a.txt": b"x"})], tmp_path / "datasets", go_on)
    assert taken.folder is None and list((tmp_path / "datasets").iterdir()) == []


# --- copies ---


def test_the_dreambooth_layout_is_copied(tmp_path: Path) -> None:
    dog = make(tmp_path / "dog", "a.png", "a.txt", "b.png", "notes.md")
    reg = make(tmp_path / "reg", "r.png")
    copies = dataset_files.layout([(dog, 10, "sks dog", ".txt", False), (reg, 1, "", ".txt", True)])
    target = tmp_path / "datasets" / "dogs"
    assert dataset_files.copy_into(target, copies, go_on) == 4
    assert tree(target) == ["img/10_sks dog/a.png", "img/10_sks dog/a.txt", "img/10_sks dog/b.png", "reg/1_reg/r.png"]
    assert tree(dog) == ["a.png", "a.txt", "b.png", "notes.md"]


def test_two_pictures_of_one_name_keep_their_captions(tmp_path: Path) -> None:
    one, two = make(tmp_path / "1", "a.png", "a.txt"), make(tmp_path / "2", "a.png", "a.txt")
    copies = dataset_files.layout([(one, 2, "cat", ".txt", False), (two, 2, "cat", ".txt", False)])
    dataset_files.copy_into(tmp_path / "out", copies, go_on)
    assert tree(tmp_path / "out") == [f"img/2_cat/{n}" for n in ("a-2.png", "a-2.txt", "a.png", "a.txt")]


def test_cancelling_and_failing_leave_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "a.png", "b.png")
    files = tuple(dataset_files.with_captions(folder, ".txt"))
    with pytest.raises(Cancelled):
        dataset_files.copy_into(tmp_path / "out", [Copy("x", files)], lambda done, total: done < 1)
    with pytest.raises(DataError, match="nothing was left behind"):
        dataset_files.copy_into(tmp_path / "out", [Copy("x", (*files, folder / "gone.png"))], go_on)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_copies_go_into_new_folders_only(tmp_path: Path) -> None:
    make(tmp_path / "out", "mine.png")
    with pytest.raises(DataError, match="exists already"):
        dataset_files.copy_into(tmp_path / "out", [], go_on)
    with pytest.raises(DataError, match="cannot be named"):
        dataset_files.layout([(make(tmp_path / "p", "a.png"), 1, "a/b:c", ".txt", False)])
    assert tree(tmp_path / "out") == ["mine.png"]


def test_pictures_are_left_out_of_a_copy(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "a.png", "a.txt", "b.png", "b.txt")
    for left_out in ("a.png", "a.txt"):  # an empty caption is shown by its own path
        kept = dataset_files.with_captions(folder, ".txt", without=frozenset([str(folder / left_out)]))
        assert not [path for path in kept if path.stem == "a"]
    kept = dataset_files.with_captions(folder, ".txt", without=frozenset([str(folder / "a.png")]))
    assert [p.name for p in kept] == ["b.png", "b.txt"]


# --- one caption ---


def test_a_caption_is_edited_and_put_back_to_the_letter(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "a.png")
    caption = folder / "a.txt"
    caption.write_bytes("\ufeffa dog\r\non grass\r\n".encode())
    before = caption.read_bytes()
    edit = dataset_files.write_caption(folder / "a.png", ".txt", "a cat", expected="a dog\non grass\n")
    assert caption.read_bytes() == b"a cat"
    dataset_files.undo(edit)
    assert caption.read_bytes() == before
    assert tree(folder) == ["a.png", "a.txt"]


def test_a_new_caption_is_taken_back(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "a.png")
    edit = dataset_files.write_caption(folder / "a.png", ".caption", "a cat", expected=None)
    assert (folder / "a.caption").read_text() == "a cat"
    (folder / "a.caption").write_text("by hand")
    with pytest.raises(DataError, match="changed since"):
        dataset_files.undo(edit)
    (folder / "a.caption").write_text("a cat")
    dataset_files.undo(edit)
    assert tree(folder) == ["a.png"]


def test_captions_that_are_not_written(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", "a.png", "b.png", "a.txt")
    elsewhere = make(tmp_path / "q", "secret.txt")
    (folder / "b.txt").symlink_to(elsewhere / "secret.txt")
    write = dataset_files.write_caption
    for picture, extension, expected in (
        ("a.png", ".png", None),  # the picture itself
        ("a.png", ".txt", "something else"),  # changed meanwhile
        ("b.png", ".txt", "a caption"),  # a link to elsewhere
        ("gone.png", ".txt", None),
        ("a.png", "/../../q/secret.txt", "a caption"),
    ):
        with pytest.raises(DataError):
            write(folder / picture, extension, "new", expected=expected)
    assert (elsewhere / "secret.txt").read_text() == "a caption" == (folder / "a.txt").read_text()
