"""Look at every picture and caption of a folder before anything is trained, and report all bad files at once.

Never imports torch: the page uses it too.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.errors import DataError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption", ".cap", ".tags")
MAX_IMAGE_PIXELS = 178_956_970
"""Pictures with more pixels are refused before they are decoded: a small file can hold a picture that fills memory."""

_POOL_FROM = 64
_HEADERS_OF_QUICK_LOOK = 500
_EXIF_ORIENTATION = 0x0112
_BOM = b"\xef\xbb\xbf"
# what Pillow's decoders raise for damaged files, besides what a missing file raises
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Picture:
    """One good picture. width and height are after the EXIF turn; caption is the text of its file, None without one."""

    path: Path
    width: int
    height: int
    sha256: str
    caption: str | None

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


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
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())


def folder_problem(folder: Path) -> str:
    """Why no pictures can be read from this folder, "" when they can."""
    if not folder.exists():
        return "this folder does not exist"
    if not folder.is_dir():
        return "is a file, where a folder with pictures is expected"
    try:
        found = list_pictures(folder)
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
    sizes = [_header_size(path) for path in selection]
    known = sorted((size for size in sizes if size), key=lambda size: size[0] * size[1])
    return FolderCounts(
        pictures=len(pictures),
        captions=_count_captions(folder, pictures, caption_extension),
        smallest=known[0] if known else None,
        largest=known[-1] if known else None,
        unreadable=len(sizes) - len(known),
    )


def _count_captions(folder: Path, pictures: Sequence[Path], extension: str) -> dict[str, int]:
    """Caption extension -> number of pictures with such a file, for the extensions that occur."""
    names = set(os.listdir(folder))
    suffixes = dict.fromkeys((normal_extension(extension), *CAPTION_SUFFIXES))
    counts = Counter(suffix for path in pictures for suffix in suffixes if path.stem + suffix in names)
    return {suffix: counts[suffix] for suffix in suffixes if counts[suffix]}


def _header_size(path: Path) -> tuple[int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _turned_size(image)
    except _DECODE_ERRORS:
        return None


def _turned_size(image: Image.Image) -> tuple[int, int]:
    """Size as people see it: EXIF orientations 5 to 8 lie on their side."""
    width, height = image.size
    if image.format == "PNG" and "exif" not in image.info:  # asking further would decode the picture
        return width, height
    return (height, width) if image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8) else (width, height)


def open_picture(file: Path | io.BytesIO, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode a picture completely and turn it as its EXIF data say. The first frame of an animation.

    Raises DataError with the reason only; who knows the path says it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                width, height = image.size
                if width * height > max_image_pixels:
                    raise DataError(f"{width}x{height} pixels are more than the {max_image_pixels:,} allowed")
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise DataError("this file is not there any more") from None
    except Image.DecompressionBombError:
        raise DataError(f"has more pixels than the {max_image_pixels:,} allowed") from None
    except UnidentifiedImageError:
        raise DataError("is not a picture that can be read, whatever its name says") from None
    except _DECODE_ERRORS as error:
        raise DataError(f"is damaged ({_short(error)})") from None
    return image


def _short(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def scan_folder(
    folder: Path,
    *,
    caption_extension: str = ".caption",
    progress: Progress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Scan:
    """Decode every picture of a folder once and read its caption."""
    (scan,) = scan_folders([(folder, caption_extension)], progress=progress, max_image_pixels=max_image_pixels)
    return scan


def scan_folders(
    folders: Sequence[tuple[Path, str]],
    *,
    progress: Progress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> tuple[Scan, ...]:
    """scan_folder for several (folder, caption extension) with one progress; a picture named twice is decoded once."""
    problems = [folder_problem(folder) for folder, _ in folders]
    listed = [[] if problem else list_pictures(folder) for (folder, _), problem in zip(folders, problems, strict=True)]
    paths = list(dict.fromkeys(path for pictures in listed for path in pictures))
    jobs = [(path, max_image_pixels) for path in paths]
    facts = dict(zip(paths, _with_progress(_run(jobs), len(jobs), progress), strict=True))
    return tuple(
        _scan_of(folder, extension, problem, [facts[path] for path in pictures])
        for (folder, extension), problem, pictures in zip(folders, problems, listed, strict=True)
    )


def look_at(
    paths: Iterable[Path], *, progress: Progress | None = None, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> dict[Path, _Facts]:
    """What is to be known of single pictures, wherever they lie; good ones have reason ""."""
    jobs = [(path, max_image_pixels) for path in dict.fromkeys(paths)]
    return {fact.path: fact for fact in _with_progress(_run(jobs), len(jobs), progress)}


@dataclass(frozen=True)
class _Facts:
    """What the worker found out about one picture; reason is "" for a good one."""

    path: Path
    width: int = 0
    height: int = 0
    sha256: str = ""
    reason: str = ""


def _scan_of(folder: Path, extension: str, problem: str, facts: Sequence[_Facts]) -> Scan:
    bad = [BadFile(folder, problem)] if problem else []
    captions = {} if problem else _count_captions(folder, [fact.path for fact in facts], extension)
    if captions and normal_extension(extension) not in captions:
        other = max(captions, key=lambda suffix: captions[suffix])
        reason = (
            f"{captions[other]} captions end in {other} and none in {normal_extension(extension)}. "
            f"Set caption_extension to {other}"
        )
        bad.append(BadFile(folder, reason))
    pictures: list[Picture] = []
    for fact in facts:
        caption, reason = _read_caption(caption_path(fact.path, extension))
        if reason:
            bad.append(BadFile(caption_path(fact.path, extension), reason))
        if fact.reason:
            bad.append(BadFile(fact.path, fact.reason))
        if not reason and not fact.reason:
            pictures.append(Picture(fact.path, fact.width, fact.height, fact.sha256, caption))
    return Scan(folder, tuple(pictures), tuple(bad))


def _read_caption(path: Path) -> tuple[str | None, str]:
    """(text, reason): text None without a file, reason "" when it is good."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"this caption cannot be read ({error.strerror})"
    skipped = len(_BOM) if data.startswith(_BOM) else 0
    try:
        text = data[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        where = error.start + skipped
        return None, f"is not UTF-8 text: byte 0x{data[where]:02x} at offset {where}. Save this caption as UTF-8"
    if not text.strip():
        return None, "this caption is empty. Write something in it or delete the file"
    return text, ""


def _look(job: tuple[Path, int]) -> _Facts:
    """Decode one picture; runs in worker processes."""
    path, max_image_pixels = job
    try:
        data = path.read_bytes()
    except OSError as error:
        return _Facts(path, reason=f"cannot be read ({error.strerror})")
    if not data:
        return _Facts(path, reason="is empty (0 bytes)")
    try:
        image = open_picture(io.BytesIO(data), max_image_pixels=max_image_pixels)
    except DataError as error:
        return _Facts(path, reason=str(error))
    return _Facts(path, image.width, image.height, hashlib.sha256(data).hexdigest())


def _run(jobs: Sequence[tuple[Path, int]]) -> Iterator[_Facts]:
    """Look at all pictures in order; many of them in several processes."""
    num_workers = min(_num_cores(), 8)
    if len(jobs) <= _POOL_FROM or num_workers == 1:
        yield from map(_look, jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe once torch has threads
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        try:
            yield from pool.map(_look, jobs, chunksize=16)
        except BrokenProcessPool:
            raise DataError(
                "a process that decodes pictures was ended from outside",
                remedy="Most often memory ran out: close other programs, or make very large pictures smaller",
            ) from None


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in vars(os) else os.cpu_count() or 1


def _with_progress(items: Iterable[_Facts], total: int, progress: Progress | None) -> Iterator[_Facts]:
    for done, item in enumerate(items, start=1):
        yield item
        if progress:
            progress(done, total)
