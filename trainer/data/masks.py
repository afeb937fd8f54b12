"""Find the mask (or conditioning picture) of each picture: the file of the same name in another folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.scan import BadFile, list_pictures

_SHOWN = 5


@dataclass(frozen=True)
class Pairs:
    """paths: picture -> its mask."""

    paths: Mapping[Path, Path]
    bad: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()


def pair_masks(pictures: Sequence[Path], folder: Path) -> Pairs:
    """Pair pictures with the pictures of a folder by their names without endings."""
    by_stem: dict[str, list[Path]] = {}
    for mask in list_pictures(folder):
        by_stem.setdefault(mask.stem, []).append(mask)
    paths: dict[Path, Path] = {}
    bad: list[BadFile] = []
    for picture in pictures:
        found = by_stem.get(picture.stem, [])
        if len(found) == 1:
            paths[picture] = found[0]
        elif found:
            names = " and ".join(mask.name for mask in found)
            bad.append(BadFile(picture, f"has more than one mask in {folder}: {names}. Keep one"))
        else:
            bad.append(BadFile(picture, f"has no mask in {folder}. Add {picture.stem}.png to it"))
    stems = {picture.stem for picture in pictures}
    extra = [mask.name for stem, masks in by_stem.items() if stem not in stems for mask in masks]
    said = ", ".join(extra[:_SHOWN]) + (", ..." if len(extra) > _SHOWN else "")
    notes = (f"{folder}: {len(extra)} masks belong to no picture and are not used: {said}",) if extra else ()
    return Pairs(paths, tuple(bad), notes)
