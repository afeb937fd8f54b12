"""Look at every picture and caption of a folder before anything is trained, and report all bad files at once.

Never imports torch: the page uses it too.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trainer.data.decode import MAX_IMAGE_PIXELS, PICTURE_SUFFIXES, header_size, open_picture
from trainer.data.look import Facts, Job, look
from trainer.data.scan_cache import Remembered, ScanCache, Signature, signature_of
from trainer.errors import DataError

__all__ = [
    "MAX_IMAGE_PIXELS",
    "PICTURE_SUFFIXES",
    "BadFile",
    "FolderCounts",
    "Picture",
    "Progress",
    "Scan",
    "caption_path",
    "count_folder",
    "folder_problem",
    "list_pictures",
    "look_at",
    "normal_extension",
    "open_picture",
    "picture_notes",
    "scan_folder",
    "scan_folders",
]

CAPTION_SUFFIXES = (".txt", ".caption", ".cap", ".tags")
LARGE_PIXELS = 9_000_000
"""From here on decoding a picture takes longer than most training steps."""

_UNREAD_SUFFIXES = (".avif", ".gif", ".heic", ".heif", ".jfif", ".jxl", ".psd", ".tif", ".tiff")
_POOL_FROM = 64
_HEADERS_OF_QUICK_LOOK = 500
_NAMED = 10
_BOM = b"\xef\xbb\xbf"
_UNSEEN = Facts()

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Picture:
    """One good picture. width and height are after the EXIF turn; caption is the text of its file, None without one.

    alpha: (least, greatest) opacity, 255 is opaque. looks: perceptual hash (`duplicates`), None without features.
    """

    path: Path
    width: int
    height: int
    sha256: str
    caption: str | None
    is_animated: bool = False
    alpha: tuple[int, int] = (255, 255)
    looks: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @classmethod
    def of(cls, path: Path, facts: Facts, caption: str | None) -> Picture:
        """A good picture from what was found out about it."""
        size = (facts.width, facts.height)
        return cls(path, *size, facts.sha256, caption, facts.is_animated, facts.alpha, facts.looks)


@dataclass(frozen=True)
class BadFile:
    """A file or folder that cannot be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Scan:
    """What a folder holds; with anything in `bad` it cannot be trained from. notes: what people should know of it."""

    folder: Path
    pictures: tuple[Picture, ...]
    bad: tuple[BadFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_without_caption(self) -> int:
        return sum(picture.caption is None for picture in self.pictures)


@dataclass(frozen=True)
class FolderCounts:
    """A quick look at a folder, from names and headers only.

    problem: why the folder cannot be used, "" when it can. captions: extension -> how many pictures have such a file.
    smallest, largest: (width, height) by area; of an even selection of pictures when there are very many.
    """

    pictures: int
    captions: Mapping[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    unreadable: int
    problem: str = ""


def normal_extension(extension: str) -> str:
    """A caption extension with its dot: "txt" and ".txt" are the same."""
    return extension if extension.startswith(".") or not extension else f".{extension}"


def list_pictures(folder: Path) -> list[Path]:
    """The pictures directly in a folder, sorted by name; other files and folders inside are left alone."""
    return sorted(path for path in folder.iterdir() if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def folder_problem(folder: Path) -> str:
    """Why no pictures can be read from this folder, "" when they can."""
    if not folder.exists():
        return "this folder does not exist"
    if not folder.is_dir():
        return "is a file, where a folder with pictures is expected"
    try:
        found = any(_is_picture(path) for path in folder.iterdir())
    except OSError as error:
        return f"this folder cannot be read ({error.strerror})"
    return "" if found else f"no pictures in this folder; expected {', '.join(PICTURE_SUFFIXES)}"


def caption_path(picture: Path, extension: str) -> Path:
    return picture.with_name(picture.stem + normal_extension(extension))


def count_folder(folder: Path, caption_extension: str = ".caption") -> FolderCounts:
    """What lies in a folder, quickly: nothing is decoded."""
    problem = folder_problem(folder)
    if problem:
        return FolderCounts(0, {}, None, None, 0, problem)
    pictures = list_pictures(folder)
    selection = pictures[:: -(-len(pictures) // _HEADERS_OF_QUICK_LOOK)]
    sizes = [header_size(path) for path in selection]
    known = sorted((size for size in sizes if size), key=lambda size: size[0] * size[1])
    return FolderCounts(
        pictures=len(pictures),
        captions=_count_captions([path.name for path in pictures], set(os.listdir(folder)), caption_extension),
        smallest=known[0] if known else None,
        largest=known[-1] if known else None,
        unreadable=len(sizes) - len(known),
    )


def _count_captions(pictures: Iterable[str], names: Set[str], extension: str) -> dict[str, int]:
    """Caption extension -> number of pictures with such a file, for the extensions that occur. All by file names."""
    suffixes = dict.fromkeys((normal_extension(extension), *CAPTION_SUFFIXES))
    counts = Counter(s for name in pictures for s in suffixes if os.path.splitext(name)[0] + s in names)
    return {suffix: counts[suffix] for suffix in suffixes if counts[suffix]}


def scan_folder(
    folder: Path,
    *,
    caption_extension: str = ".caption",
    progress: Progress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Scan:
    """Look at every picture of a folder once and read its caption."""
    (scan,) = scan_folders([(folder, caption_extension)], progress=progress, max_image_pixels=max_image_pixels)
    return scan


def scan_folders(
    folders: Sequence[tuple[Path, str]],
    *,
    progress: Progress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> tuple[Scan, ...]:
    """scan_folder for several (folder, caption extension) with one progress; a folder named twice is read once."""
    problems = {folder: folder_problem(folder) for folder, _ in folders}
    now = time.time_ns()
    listed = {folder: _Listing.of(folder, now) for folder, problem in problems.items() if not problem}
    facts = _look_at(listed, progress, max_image_pixels)
    return tuple(
        _scan_of(folder, extension, listed[folder], facts[folder])
        if folder in listed
        else Scan(folder, (), (BadFile(folder, problems[folder]),))
        for folder, extension in folders
    )


def look_at(
    paths: Iterable[Path], *, progress: Progress | None = None, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> dict[Path, Facts]:
    """What is to be known of single pictures, wherever they lie; good ones have reason ""."""
    wanted = list(dict.fromkeys(paths))
    now = time.time_ns()
    listed: dict[Path, _Listing] = {}
    missing: dict[Path, Facts] = {}
    for path in wanted:
        try:
            signature = signature_of(path.stat(), read_at_ns=now)
        except OSError as error:
            missing[path] = Facts(reason=f"cannot be read ({error.strerror})")
            continue
        listed.setdefault(path.parent, _Listing({}, frozenset(), whole=False)).pictures[path.name] = signature
    facts = _look_at(listed, progress, max_image_pixels)
    return {path: missing[path] if path in missing else facts[path.parent][path.name] for path in wanted}


class _Listing(NamedTuple):
    """Pictures of a folder, by name, with their signatures; names: of all that is in it. whole: all its pictures."""

    pictures: dict[str, Signature | None]
    names: frozenset[str]
    whole: bool = True

    @classmethod
    def of(cls, folder: Path, now: int) -> _Listing:
        names: list[str] = []
        signatures: dict[str, Signature | None] = {}
        with os.scandir(folder) as entries:  # an entry at a time: each holds more than we keep of it
            for entry in entries:
                names.append(entry.name)
                if entry.name.lower().endswith(PICTURE_SUFFIXES) and entry.is_file():
                    signatures[entry.name] = signature_of(entry.stat(), read_at_ns=now)
        return cls({name: signatures[name] for name in sorted(signatures)}, frozenset(names))


def _look_at(
    listed: Mapping[Path, _Listing], progress: Progress | None, max_image_pixels: int
) -> dict[Path, dict[str, Facts]]:
    """The facts of all pictures, folder by folder: remembered ones at once, the others looked at together."""
    cache = ScanCache()
    total = sum(len(listing.pictures) for listing in listed.values())
    found: dict[Path, dict[str, Facts]] = {}
    jobs: list[tuple[Path, Job]] = []
    for folder, listing in listed.items():
        facts = found[folder] = dict.fromkeys(listing.pictures, _UNSEEN)
        doubtful: dict[str, Facts] = {}
        for name, before in cache.rows(folder):
            if before.facts.width * before.facts.height > max_image_pixels:
                continue
            if before.signature and before.signature == listing.pictures.get(name):
                facts[name] = before.facts
            else:
                doubtful[name] = before.facts
        unseen = (name for name, fact in facts.items() if fact is _UNSEEN)
        where = str(folder)
        jobs += [(folder, Job(where, name, max_image_pixels, doubtful.get(name))) for name in unseen]
    done = total - len(jobs)
    if progress and done:
        progress(done, total)
    for (folder, job), fresh in zip(jobs, _run([job for _, job in jobs]), strict=True):
        found[folder][job.name] = fresh
        done += 1
        if progress:
            progress(done, total)
    for folder in dict.fromkeys(folder for folder, _ in jobs):
        listing = listed[folder]
        entries = {name: Remembered(listing.pictures[name], facts) for name, facts in found[folder].items()}
        cache.write(folder, entries if listing.whole else dict(cache.rows(folder)) | entries)
    return found


def _scan_of(folder: Path, extension: str, listing: _Listing, facts: Mapping[str, Facts]) -> Scan:
    bad: list[BadFile] = []
    captions = _count_captions(facts, listing.names, extension)
    if captions and normal_extension(extension) not in captions:
        other = max(captions, key=lambda suffix: captions[suffix])
        reason = (
            f"{captions[other]} captions end in {other} and none in {normal_extension(extension)}. "
            f"Set caption_extension to {other}"
        )
        bad.append(BadFile(folder, reason))
    pictures: list[Picture] = []
    for name, fact in facts.items():
        path, caption_name = folder / name, os.path.splitext(name)[0] + normal_extension(extension)
        caption, reason = _read_caption(os.path.join(folder, caption_name))  # a Path would stay in memory in part
        if reason:
            bad.append(BadFile(folder / caption_name, reason))
        if fact.reason:
            bad.append(BadFile(path, fact.reason))
        if not reason and not fact.reason:
            pictures.append(Picture.of(path, fact, caption))
    return Scan(folder, tuple(pictures), tuple(bad), tuple(_notes(folder, extension, listing, pictures)))


def picture_notes(where: Path, pictures: Sequence[Picture]) -> Iterator[str]:
    """What is well with pictures but should be known. where: the folder or file they were found by."""
    if animated := [p.path.name for p in pictures if p.is_animated]:
        yield f"{where}: only the first frame is trained of {_list(animated)}"
    if transparent := sum(p.alpha[0] < 255 for p in pictures):
        yield f"{where}: {transparent} pictures have transparent areas; white lies under them, but with alpha_mask"
    if large := sum(p.width * p.height > LARGE_PIXELS for p in pictures):
        yield f"{where}: {large} pictures have more than 9 megapixels; smaller copies would load faster"


def _notes(folder: Path, extension: str, listing: _Listing, pictures: Sequence[Picture]) -> Iterator[str]:
    yield from picture_notes(folder, pictures)
    unread = [n for n in listing.names if n.lower().endswith(_UNREAD_SUFFIXES) and n not in listing.pictures]
    if unread:
        yield f"{folder}: left out, since they are none of {', '.join(PICTURE_SUFFIXES)}: {_list(sorted(unread))}"
    stems: dict[str, list[str]] = {}
    for name in listing.pictures:
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    shared = {stem: names for stem, names in stems.items() if len(names) > 1}
    if twins := [" and ".join(n) for stem, n in shared.items() if stem + normal_extension(extension) in listing.names]:
        yield f"{folder}: one {normal_extension(extension)} file is the caption of {_list(twins)}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _read_caption(path: str) -> tuple[str | None, str]:
    """(text, reason): text None without a file, reason "" when it is good."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"this caption cannot be read ({error.strerror})"
    skipped = len(_BOM) if data.startswith(_BOM) else 0
    try:
        text = data[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        where = error.start + skipped
        guess = _guess_encoding(data)
        return None, f"is not UTF-8 text: byte 0x{data[where]:02x} at offset {where}{guess}. Save this caption as UTF-8"
    if not text.strip():
        return None, "this caption is empty. Write something in it or delete the file"
    return text, ""


def _guess_encoding(data: bytes) -> str:
    """What a text that is not UTF-8 may be, for the message; it is never read so."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "; it looks like UTF-16"
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    return "; it looks like Windows-1252"


def _run(jobs: Sequence[Job]) -> Iterator[Facts]:
    """Look at all pictures in order; many of them in several processes."""
    num_workers = min(_num_cores(), 8)
    if len(jobs) <= _POOL_FROM or num_workers == 1:
        yield from map(look, jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe once torch has threads
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        try:
            yield from pool.map(look, jobs, chunksize=16)
        except BrokenProcessPool:
            raise DataError(
                "a process that decodes pictures was ended from outside",
                remedy="Most often memory ran out: close other programs, or make very large pictures smaller",
            ) from None


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1
