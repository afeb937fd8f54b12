"""Thumbnails look as the pictures train."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kohya_gui import thumbs
from trainer.data.decode import open_picture, to_rgb


def shown(data: str) -> np.ndarray:
    kind, _, content = data.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"), np.float32)


def pictures(folder: Path) -> dict[str, Path]:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(48, 0)
    grey = Image.fromarray((ramp / 257).astype(np.uint8))
    clear = grey.convert("RGBA")
    clear.putalpha(Image.fromarray(np.full((48, 64), 100, np.uint8)))
    made = {"deep": Image.fromarray(ramp), "plain": grey.convert("RGB"), "clear": clear, "cmyk": grey.convert("CMYK")}
    paths = {name: folder / f"{name}.{'jpg' if name == 'cmyk' else 'png'}" for name in made}
    for name, picture in made.items():
        picture.save(paths[name])
    return paths


@pytest.mark.parametrize("name", ["deep", "plain", "clear", "cmyk"])
def test_a_thumbnail_has_the_colours_that_are_trained(tmp_path: Path, name: str) -> None:
    path = pictures(tmp_path)[name]
    trained = np.asarray(to_rgb(open_picture(path)), np.float32)
    assert trained.std() > 20
    assert np.abs(shown(thumbs.thumb(path)) - trained).mean() < 4


def test_what_cannot_be_read_has_none(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert thumbs.thumb(tmp_path / "x.png") == thumbs.preview(tmp_path / "gone.png") == ""
