"""Masks are found by name; missing, doubled and left-over ones are told apart."""

from __future__ import annotations

from pathlib import Path

from tests.data.conftest import MakePicture
from trainer.data.masks import pair_masks


def test_pairs_and_what_is_wrong(picture: MakePicture, tmp_path: Path) -> None:
    pictures = [picture(f"pics/{name}") for name in ("a.png", "b.jpg", "c.png", "d.e.png")]
    for name in ("a.PNG.png", "a.jpg", "b.png", "b.webp", "d.e.bmp", "x.png"):
        picture(f"masks/{name}")
    found = pair_masks(pictures, tmp_path / "masks")
    assert found.paths == {
        pictures[0]: tmp_path / "masks" / "a.jpg",
        pictures[3]: tmp_path / "masks" / "d.e.bmp",
    }
    said = {bad.path.name: bad.reason for bad in found.bad}
    assert set(said) == {"b.jpg", "c.png"}
    assert "b.png and b.webp" in said["b.jpg"] and "Add c.png" in said["c.png"]
    assert "2 masks belong to no picture" in found.notes[0] and "x.png" in found.notes[0]
