"""Find the pictures, captions and masks of every subset, whatever its kind, and everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.buckets import Size
from trainer.data.config import Subset
from trainer.data.images import is_black
from trainer.data.masks import Pairs, pair_masks
from trainer.data.metadata_file import Metadata, read_metadata
from trainer.data.scan import BadFile, Picture, Progress, Scan, list_pictures, look_at, scan_folders
from trainer.errors import DataError

_CLEAR = "is transparent everywhere, so that alpha_mask leaves nothing to train. Take it out, or turn off alpha_mask"
_BLACK = "is black everywhere, so that nothing of its picture would be trained"
_SHOWN = 20
_NAMED = 5


@dataclass(frozen=True)
class Found:
    """What a subset holds. masks: picture -> its mask or conditioning picture. bad: what stands in the way of training,
    some of it also of other subsets' finding; `pictures` are the good ones."""

    subset: Subset
    pictures: tuple[Picture, ...]
    masks: Mapping[Path, Path]
    notes: tuple[str, ...]
    bad: tuple[BadFile, ...] = ()


def gather(subsets: Sequence[Subset], *, progress: Progress | None = None) -> list[Found]:
    """Look at all pictures of all subsets; raises one DataError that names every bad file."""
    found = survey(subsets, progress=progress)
    _refuse(bad_files(found))
    return found


def survey(subsets: Sequence[Subset], *, progress: Progress | None = None) -> list[Found]:
    """The same for a report, which names bad files beside what the good ones make."""
    metadata = [_metadata_of(subset) for subset in subsets]
    folders = [(s.image_dir, s.pictures.caption_extension) for s in subsets if s.kind == "folder"]
    scans = iter(scan_folders(folders, progress=progress))
    whole = [_scan_metadata(read, progress) if read else next(scans) for read in metadata]
    pairs = [_pairs_of(subset, scan) for subset, scan in zip(subsets, whole, strict=True)]
    masks = _look_at_masks(pairs, progress)
    return [_found(subset, scan, paired, masks) for subset, scan, paired in zip(subsets, whole, pairs, strict=True)]


def bad_files(found: Sequence[Found]) -> tuple[BadFile, ...]:
    """All that stands in the way, once each."""
    return tuple(dict.fromkeys(file for of_subset in found for file in of_subset.bad))


def _found(subset: Subset, scan: Scan, paired: Pairs, masks: Mapping[Path, _Mask]) -> Found:
    clear = [p.path for p in scan.pictures if subset.pictures.alpha_mask and p.alpha[1] == 0]
    bad = [*_bad_masks(scan, paired, masks), *scan.bad, *paired.bad, *_missing_captions(subset, scan)]
    bad += [BadFile(path, _CLEAR) for path in clear]
    pictures = tuple(picture for picture in scan.pictures if picture.path not in clear)
    notes = (*scan.notes, *_caption_notes(subset, scan), *paired.notes)
    return Found(subset, pictures, paired.paths, notes, tuple(bad))


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
    return Scan(read.file, tuple(pictures), (*read.bad, *bad), read.notes)


def _pairs_of(subset: Subset, scan: Scan) -> Pairs:
    if subset.conditioning_data_dir is None:
        return Pairs({})
    return pair_masks([picture.path for picture in scan.pictures], subset.conditioning_data_dir)


@dataclass(frozen=True)
class _Mask:
    """One mask looked at; reason is "" for a good one."""

    size: Size
    reason: str


def _look_at_masks(pairs: Sequence[Pairs], progress: Progress | None) -> dict[Path, _Mask]:
    """Every mask once, whichever subsets name it."""
    masks = dict.fromkeys(mask for paired in pairs for mask in paired.paths.values())
    facts = look_at(masks, progress=progress if masks else None)
    return {
        path: _Mask((fact.width, fact.height), fact.reason or (_BLACK if fact.looks is None and is_black(path) else ""))
        for path, fact in facts.items()
    }


def _bad_masks(scan: Scan, paired: Pairs, masks: Mapping[Path, _Mask]) -> Iterator[BadFile]:
    for picture in (picture for picture in scan.pictures if picture.path in paired.paths):
        path = paired.paths[picture.path]
        mask = masks[path]
        if mask.reason:
            yield BadFile(path, mask.reason)
        if mask.reason in ("", _BLACK) and mask.size != picture.size:
            said = f"{mask.size[0]}x{mask.size[1]} pixels, and {picture.path.name} has {picture.width}x{picture.height}"
            yield BadFile(path, f"has {said}; a mask is as large as its picture")


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
    bad = list(map(str, files))
    if bad:
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        head = "1 file or folder cannot be used" if len(bad) == 1 else f"{len(bad)} files or folders cannot be used"
        raise DataError("\n  ".join([f"{head}:", *bad[:_SHOWN], *more]))
