"""Find the pictures, captions and masks of every subset, whatever its kind, and everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.config import Subset
from trainer.data.images import is_black
from trainer.data.masks import Pairs, pair_masks
from trainer.data.metadata_file import Metadata, read_metadata
from trainer.data.scan import BadFile, Picture, Progress, Scan, list_pictures, look_at, picture_notes, scan_folders
from trainer.errors import DataError

_SHOWN = 20
_NAMED = 5


@dataclass(frozen=True)
class Found:
    """What a subset holds. masks: picture -> its mask or conditioning picture."""

    subset: Subset
    pictures: tuple[Picture, ...]
    masks: Mapping[Path, Path]
    notes: tuple[str, ...]


def gather(subsets: Sequence[Subset], *, progress: Progress | None = None) -> list[Found]:
    """Look at all pictures of all subsets; raises one DataError that names every bad file."""
    metadata = [_metadata_of(subset) for subset in subsets]
    folders = [(s.image_dir, s.pictures.caption_extension) for s in subsets if s.kind == "folder"]
    scans = iter(scan_folders(folders, progress=progress))
    whole = [_scan_metadata(read, progress) if read else next(scans) for read in metadata]
    pairs = [_pairs_of(subset, scan) for subset, scan in zip(subsets, whole, strict=True)]
    bad = [*_bad_masks(whole, pairs, progress)]
    for subset, scan, paired in zip(subsets, whole, pairs, strict=True):
        bad += [*scan.bad, *paired.bad, *_missing_captions(subset, scan)]
    _refuse(bad)
    return [
        Found(subset, scan.pictures, paired.paths, (*scan.notes, *_caption_notes(subset, scan), *paired.notes))
        for subset, scan, paired in zip(subsets, whole, pairs, strict=True)
    ]


def count_pictures(subset: Subset) -> int:
    """How many pictures a subset has, without looking at them."""
    metadata = _metadata_of(subset)
    return len(metadata.captions) if metadata else len(list_pictures(subset.image_dir))


def _metadata_of(subset: Subset) -> Metadata | None:
    if subset.metadata_file is None:
        return None
    return read_metadata(
        subset.metadata_file,
        image_dir=subset.image_dir,
        separator=subset.pictures.caption_separator,
        all_lines=subset.pictures.enable_wildcard,
    )


def _scan_metadata(read: Metadata, progress: Progress | None) -> Scan:
    """The pictures a metadata file names, like those of a folder."""
    facts = look_at(read.captions, progress=progress)
    bad = [BadFile(path, fact.reason) for path, fact in facts.items() if fact.reason]
    pictures = [Picture.of(path, fact, read.captions[path]) for path, fact in facts.items() if not fact.reason]
    notes = (*read.notes, *picture_notes(read.file, pictures))
    return Scan(read.file, tuple(pictures), (*read.bad, *bad), notes)


def _pairs_of(subset: Subset, scan: Scan) -> Pairs:
    if subset.conditioning_data_dir is None:
        return Pairs({})
    return pair_masks([picture.path for picture in scan.pictures], subset.conditioning_data_dir)


def _bad_masks(scans: Sequence[Scan], pairs: Sequence[Pairs], progress: Progress | None) -> Iterator[BadFile]:
    masks = dict.fromkeys(mask for paired in pairs for mask in paired.paths.values())
    facts = look_at(masks, progress=progress if masks else None)
    for path, fact in facts.items():
        if fact.reason:
            yield BadFile(path, fact.reason)
        elif fact.looks is None and is_black(path):
            yield BadFile(path, "is black everywhere, so that nothing of its picture would be trained")
    for scan, paired in zip(scans, pairs, strict=True):
        for picture in (picture for picture in scan.pictures if picture.path in paired.paths):
            mask = paired.paths[picture.path]
            size = (facts[mask].width, facts[mask].height)
            if not facts[mask].reason and size != picture.size:
                said = f"{size[0]}x{size[1]} pixels, and {picture.path.name} has {picture.width}x{picture.height}"
                yield BadFile(mask, f"has {said}; a mask is as large as its picture")


def _missing_captions(subset: Subset, scan: Scan) -> Iterator[BadFile]:
    """What the policy refuses."""
    policy = subset.pictures.missing_caption
    without = [picture.path.name for picture in scan.pictures if picture.caption is None]
    if not without or policy == "empty" or (policy == "class_tokens" and subset.class_tokens):
        return
    names = ", ".join(without[:_NAMED]) + (", ..." if len(without) > _NAMED else "")
    needed = "a caption of its own" if policy == "error" else "a caption or class_tokens"
    reason = (
        f"{len(without)} of {len(scan.pictures)} pictures have no caption, and missing_caption = {policy!r} asks for "
    )
    yield BadFile(subset.place, f"{reason}{needed}: {names}")


def _caption_notes(subset: Subset, scan: Scan) -> Iterator[str]:
    if scan.num_without_caption and not subset.class_tokens:
        many = f"{scan.num_without_caption} of {len(scan.pictures)} pictures"
        where = f"{subset.pictures.caption_extension} file" if subset.kind == "folder" else "caption and no tags"
        yield f"{subset.place}: {many} have no {where} and are trained with an empty caption"


def _refuse(files: Sequence[BadFile]) -> None:
    bad = list(dict.fromkeys(str(file) for file in files))
    if bad:
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        head = "1 file or folder cannot be used" if len(bad) == 1 else f"{len(bad)} files or folders cannot be used"
        raise DataError("\n  ".join([f"{head}:", *bad[:_SHOWN], *more]))
