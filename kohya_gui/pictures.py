"""Folders of pictures as the page sees them: counts, captions, thumbnails, and uploads into folders of our own."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL import Image, ImageOps

from trainer.data import scan
from trainer.data.config import DataOptions, read_dataset
from trainer.errors import TrainerError

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "AVIF": ".avif"}
CAPTIONS = (".txt", ".caption")
THUMB_PIXELS = 96
MOST_THUMBS = 12
MOST_CAPTION_BYTES = 64 * 1024


@dataclass(frozen=True)
class Seen:
    """What a folder or a saved data set holds. extension: of most captions, "" without any."""

    folders: tuple[Path, ...] = ()
    pictures: int = 0
    captions: int = 0
    extension: str = ""
    others: tuple[str, ...] = ()
    unreadable: int = 0
    sizes: str = ""
    class_pictures: int = 0
    repeated: int = 0
    """Training pictures counted with their repeats, of a saved data set; 0 for a plain folder."""
    batch_size: int = 0
    is_dataset: bool = False
    problem: str = ""

    @property
    def words(self) -> str:
        """One line for people."""
        parts = [_count(self.pictures, "picture")]
        if self.captions:
            of = "" if self.captions == self.pictures else f"{self.captions} of them "
            parts.append(f"{of}with captions ({self.extension})" if of else f"all with captions ({self.extension})")
        else:
            parts.append("no captions")
        parts += [self.sizes] if self.sizes else []
        parts += [f"{_count(self.class_pictures, 'class picture')}"] if self.class_pictures else []
        parts += [f"{self.unreadable} that cannot be read"] if self.unreadable else []
        return ", ".join(parts)


def look(path: Path) -> Seen:
    """Counts of a folder of pictures, or of a saved data set (a .toml file)."""
    if path.suffix.lower() == ".toml" and path.is_file():
        return _look_at_dataset(path)
    return _look_at_folder(path)


def trigger_count(seen: Seen, trigger: str) -> int:
    """How many captions hold the trigger word, as whole words and in any capitals."""
    wanted = re.compile(rf"(?<!\w){re.escape(trigger.strip())}(?!\w)", re.IGNORECASE)
    return sum(bool(wanted.search(text)) for folder in seen.folders for text in _captions(folder, seen.extension))


def thumbnails(folder: Path) -> list[str]:
    """The first pictures of a folder as small JPEGs in data addresses: the files themselves are never served."""
    found: list[str] = []
    for path in scan.list_pictures(folder)[:MOST_THUMBS]:
        try:
            with scan.open_picture(path) as image:
                small = ImageOps.exif_transpose(image)
                small.thumbnail((THUMB_PIXELS * 2, THUMB_PIXELS * 2))
                buffer = io.BytesIO()
                small.convert("RGB").save(buffer, "JPEG", quality=82)
        except (OSError, ValueError, SyntaxError, TrainerError):
            continue
        found.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return found


def strip(folder: Path, total: int) -> str:
    """Thumbnails as HTML."""
    pictures = thumbnails(folder)
    more = f'<span class="more">+{total - len(pictures)}</span>' if total > len(pictures) and pictures else ""
    return "".join(f'<img src="{data}" alt="" loading="lazy">' for data in pictures) + more


@dataclass(frozen=True)
class Taken:
    """What an upload left: its folder, and a sentence for each file that was not taken."""

    folder: Path | None
    pictures: int
    captions: int
    refused: tuple[str, ...]


def take_uploads(
    files: Sequence[Path], uploads: Path, *, names: Sequence[str] = (), folder: Path | None = None
) -> Taken:
    """Copy uploaded pictures and captions into a new folder; the ending of a picture follows its content.

    folder: the new folder itself, where it has a name already; else one is made in uploads.
    """
    shown = list(names) or [file.name for file in files]
    refused: list[str] = []
    wanted: list[tuple[Path, str]] = []
    for file, name in zip(files, shown, strict=True):
        ending, problem = _ending(file, name)
        if problem:
            refused.append(f"{name}: {problem}")
        else:
            wanted.append((file, safe_stem(name) + ending))
    twice = [name for name, count in Counter(name.lower() for _, name in wanted).items() if count > 1]
    refused += [f"{name}: two files of this name; the first is taken" for name in twice]
    pictures = [name for _, name in wanted if Path(name).suffix not in CAPTIONS]
    if not pictures:
        return Taken(None, 0, 0, tuple(refused))
    if folder is None:
        folder = new_folder(uploads, Path(pictures[0]).stem)
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in reversed(wanted):
        shutil.copyfile(file, folder / name)
    kept = [p for p in folder.iterdir()]
    captions = sum(p.suffix in CAPTIONS for p in kept)
    return Taken(folder, len(kept) - captions, captions, tuple(refused))


def safe_stem(name: str) -> str:
    """A file's name without its ending, harmless on every system."""
    stem = Path(name.replace("\\", "/")).name
    stem = stem[: stem.rfind(".")] if "." in stem[1:] else stem
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", stem).strip(". ")[:80] or "picture"


def _ending(file: Path, name: str) -> tuple[str, str]:
    """(ending, "") of a file that is taken, ("", why not) of one that is not."""
    suffix = Path(name).suffix.lower()
    if suffix in CAPTIONS:
        try:
            if file.stat().st_size > MOST_CAPTION_BYTES:
                return "", "is too long for a caption"
            file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            return "", "is not UTF-8 text"
        return suffix, ""
    try:
        with Image.open(file) as image:
            image.verify()
            kind = image.format or ""
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "", "is not a picture that can be read"
    if kind not in FORMATS:
        return "", f"is a {kind} picture; {', '.join(FORMATS)} are taken"
    return FORMATS[kind], ""


def new_folder(uploads: Path, stem: str) -> Path:
    """A folder that did not exist before, named by stem and time."""
    base = uploads / f"{stem[:40]}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1, 1000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError(f"a thousand folders named {base}")


def _look_at_folder(folder: Path) -> Seen:
    counts = scan.count_folder(folder)
    if counts.problem:
        return Seen(problem=_with_hint(folder, counts.problem))
    ranked = sorted(counts.captions.items(), key=lambda item: -item[1])
    extension, captions = ranked[0] if ranked else ("", 0)
    return Seen(
        folders=(folder,),
        pictures=counts.pictures,
        captions=captions,
        extension=extension,
        others=tuple(f"{number} {other}" for other, number in ranked[1:]),
        unreadable=counts.unreadable,
        sizes=_sizes(counts.smallest, counts.largest),
    )


def _with_hint(folder: Path, problem: str) -> str:
    """Pictures one folder further down are the usual reason for an empty folder."""
    if not folder.is_dir():
        return problem
    inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and not scan.folder_problem(p)]
    return f"{problem}. Pictures lie one folder further down: choose {inner[0]}" if inner else problem


def _look_at_dataset(path: Path) -> Seen:
    try:
        config = read_dataset(DataOptions(dataset_config=path))
    except TrainerError as error:
        return Seen(problem=str(error), is_dataset=True)
    subsets = [subset for dataset in config.datasets for subset in dataset.subsets]
    training = [(subset, _look_at_folder(subset.image_dir)) for subset in subsets if not subset.is_reg]
    reg = [_look_at_folder(subset.image_dir) for subset in subsets if subset.is_reg]
    seen = [one for _, one in training]
    extension = next((one.extension for one in seen if one.extension), "")
    return Seen(
        folders=tuple(folder for one in seen for folder in one.folders),
        pictures=sum(one.pictures for one in seen),
        captions=sum(one.captions for one in seen),
        extension=extension,
        unreadable=sum(one.unreadable for one in seen),
        class_pictures=sum(one.pictures for one in reg),
        repeated=sum(subset.num_repeats * one.pictures for subset, one in training),
        batch_size=config.datasets[0].batch_size if config.datasets else 0,
        is_dataset=True,
    )


def _captions(folder: Path, extension: str) -> list[str]:
    if not extension:
        return []
    paths = [scan.caption_path(picture, extension) for picture in scan.list_pictures(folder)]
    return [path.read_text(encoding="utf-8-sig", errors="replace") for path in paths if path.is_file()]


def _sizes(smallest: tuple[int, int] | None, largest: tuple[int, int] | None) -> str:
    if smallest is None or largest is None:
        return ""
    low, high = f"{smallest[0]}×{smallest[1]}", f"{largest[0]}×{largest[1]}"
    return f"{low} pixels" if low == high else f"{low} to {high} pixels"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def escaped(text: object) -> str:
    """Text for HTML."""
    return html.escape(str(text), quote=True)
