"""Files the Dataset tab writes: copies under datasets/, and the caption a person edits. Nothing is moved or deleted."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from kohya_gui import pictures
from trainer.data import scan
from trainer.errors import DataError
from trainer.run_folder import check_name, write_atomically

MOST_FILES = 20_000
MOST_BYTES = 8 * 1024**3
MOST_FILE_BYTES = 256 * 1024**2
CHUNK = 1024**2
Go = Callable[[int, int], bool]
"""Told (done, total) after every file; False ends the work."""


class Cancelled(Exception):
    """The person pressed Cancel; what was begun is taken away again."""


# uploads


def take(files: Sequence[Path], datasets: Path, go: Go) -> pictures.Taken:
    """Copy dropped pictures and captions, or what is in one dropped zip, into a new folder under datasets."""
    zips = [file for file in files if file.suffix.lower() == ".zip"]
    if not zips:
        return pictures.take_uploads(files, datasets)
    if len(files) > 1:
        raise DataError("drop one zip alone, or pictures without a zip")
    with tempfile.TemporaryDirectory(prefix="studio-zip-") as scratch:
        groups, refused = unpack(zips[0], Path(scratch), go)
        return _take_groups(groups, refused, datasets, pictures.safe_stem(zips[0].name))


def _take_groups(
    groups: Mapping[str, Sequence[tuple[Path, str]]], refused: Sequence[str], datasets: Path, stem: str
) -> pictures.Taken:
    """One folder of pictures stays one; several become folders of a common parent, under their own names."""
    parent = pictures.new_folder(datasets, stem)
    refused = list(refused)
    num_pictures = num_captions = 0
    for name, members in groups.items():
        folder = parent / name if len(groups) > 1 else parent
        paths, names = [path for path, _ in members], [name for _, name in members]
        taken = pictures.take_uploads(paths, parent, names=names, folder=folder)
        refused += taken.refused
        num_pictures += taken.pictures
        num_captions += taken.captions
    if not num_pictures:
        parent.rmdir()
    return pictures.Taken(parent if num_pictures else None, num_pictures, num_captions, tuple(refused))


def unpack(file: Path, scratch: Path, go: Go) -> tuple[dict[str, list[tuple[Path, str]]], list[str]]:
    """Pictures and captions of a zip in scratch, under names of ours, grouped by the folder they lay in.

    Returns ({folder: [(path, name in the zip)]}, sentences on what was refused).
    """
    groups: dict[str, list[tuple[Path, str]]] = {}
    refused: list[str] = []
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not _is_hidden(m.filename)]
            if len(members) > MOST_FILES:
                raise DataError(f"{file.name} holds {len(members):,} files; at most {MOST_FILES:,} are taken")
            for number, member in enumerate(members):
                if not go(number, len(members)):
                    raise Cancelled
                name = PurePosixPath(member.filename.replace("\\", "/"))
                if problem := _member_problem(member, name):
                    refused.append(f"{member.filename}: {problem}")
                    continue
                target = scratch / f"{number:05d}{name.suffix.lower()}"
                left -= _extract(archive, member, target, left)
                groups.setdefault(_folder_name(name), []).append((target, name.name))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{file.name} cannot be unpacked ({error})") from None
    return groups, refused


def _is_hidden(name: str) -> bool:
    """What systems put beside files; a path that leads out is not among it: that one is named as refused."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts)


def _member_problem(member: zipfile.ZipInfo, name: PurePosixPath) -> str:
    if name.is_absolute() or ".." in name.parts or ":" in member.filename:
        return "its path leads out of the zip"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.flag_bits & 1:
        return "is encrypted"
    if name.suffix.lower() not in (*scan.PICTURE_SUFFIXES, ".avif", *pictures.CAPTIONS):
        return "is neither a picture nor a caption"
    if member.file_size > MOST_FILE_BYTES:
        return f"is larger than {MOST_FILE_BYTES // 1024**2} MB"
    return ""


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Write one member; what really comes out is counted, not what the zip says of itself."""
    written = 0
    with archive.open(member) as source, target.open("wb") as out:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > min(left, MOST_FILE_BYTES):
                raise DataError(f"{member.filename} grows too large when unpacked; nothing was taken")
            out.write(chunk)
    return written


def _folder_name(name: PurePosixPath) -> str:
    stem = name.parent.name
    return "pictures" if not stem or check_name(stem) else stem


# copies


@dataclass(frozen=True)
class Copy:
    """A folder to be made: its name inside the new one, and the files that go into it."""

    name: str
    files: tuple[Path, ...]


def layout(concepts: Sequence[tuple[Path, int, str, str, bool]]) -> list[Copy]:
    """The DreamBooth layout, img/N_words and reg/N_words, of (folder, repeats, words, caption extension, is reg)."""
    copies: dict[str, list[Path]] = {}
    for folder, repeats, words, extension, is_reg in concepts:
        name = f"{'reg' if is_reg else 'img'}/{repeats}_{' '.join(words.split()) or folder.name}"
        if problem := check_name(name.partition("/")[2]):
            raise DataError(f"a folder cannot be named {name.partition('/')[2]}: {problem}", remedy="Change its words")
        copies.setdefault(name, []).extend(with_captions(folder, extension))
    return [Copy(name, tuple(files)) for name, files in copies.items()]


def with_captions(folder: Path, extension: str, *, without: frozenset[str] = frozenset()) -> list[Path]:
    """The pictures of a folder and the captions that lie beside them. without: paths left out, of pictures or of
    captions; with a caption its picture goes."""
    found: list[Path] = []
    for picture in scan.list_pictures(folder):
        caption = scan.caption_path(picture, extension)
        if not without.isdisjoint((str(picture), str(caption))):
            continue
        found += [picture, caption] if caption.is_file() else [picture]
    return found


def copy_into(target: Path, copies: Sequence[Copy], go: Go) -> int:
    """Make a folder of copies, as a whole or not at all; gives the number of files. The target must be new."""
    if problem := check_name(target.name):
        raise DataError(f"a folder cannot be named {target.name}: {problem}")
    if target.exists():
        raise DataError(f"{target} exists already", remedy="Choose another name: nothing is written into it")
    target.parent.mkdir(parents=True, exist_ok=True)
    total = sum(len(copy.files) for copy in copies)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for done, (file, place) in enumerate(_placed(copies)):
            if not go(done, total):
                raise Cancelled
            (draft / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, draft / place)
        draft.rename(target)
    except OSError as error:
        raise DataError(f"the copy failed ({error.strerror}: {error.filename}); nothing was left behind") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # only ever our own draft: after the rename there is none
    return total


def _placed(copies: Sequence[Copy]) -> Iterator[tuple[Path, str]]:
    """Each file with its place; two of one name from different folders are told apart, with their captions."""
    for copy in copies:
        stems: dict[tuple[Path, str], str] = {}
        taken: set[str] = set()
        for file in copy.files:
            origin = (file.parent, file.stem)
            if origin not in stems:
                stem, number = file.stem, 2
                while stem.lower() in taken:
                    stem, number = f"{file.stem}-{number}", number + 1
                stems[origin] = stem
                taken.add(stem.lower())
            yield file, f"{copy.name}/{stems[origin]}{file.suffix}"


# one caption


@dataclass(frozen=True)
class Edit:
    """A caption as it was and as it is now; None where there was no file."""

    path: str
    old: str | None
    new: str

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def read_caption(path: Path) -> str | None:
    """A caption file's text to the letter; None without one."""
    if path.is_symlink():
        raise DataError(f"{path} is a link and is not edited here")
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error})") from None


def plain(text: str | None) -> str | None:
    """A caption as a text box shows it: no byte-order mark, plain line ends."""
    return None if text is None else text.removeprefix("\ufeff").replace("\r\n", "\n")


def write_caption(picture: Path, extension: str, text: str, *, expected: str | None) -> Edit:
    """Write the caption beside a picture; refused when the file is not what the person saw."""
    if set(extension) & set("/\\"):
        raise DataError(f"{extension} is no ending of caption files")
    path = scan.caption_path(picture, extension)
    _check_caption(picture, path)
    old = read_caption(path)
    if plain(old) != plain(expected):
        raise DataError(f"{path.name} was changed meanwhile by someone else", remedy="Open the picture again")
    _write(path, text)
    return Edit(str(path), old, text)


def undo(edit: Edit) -> None:
    """Put the old caption back, if the file still is as we left it."""
    path = Path(edit.path)
    if read_caption(path) != edit.new:
        raise DataError(f"{path.name} was changed since; it is left as it is")
    if edit.old is None:
        path.unlink()  # the file was made by this very edit
    else:
        _write(path, edit.old)


def _check_caption(picture: Path, path: Path) -> None:
    if path.suffix.lower() in scan.PICTURE_SUFFIXES or not path.suffix or not picture.is_file():
        raise DataError(f"{path} is not a caption beside a picture")


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None
