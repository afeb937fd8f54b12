"""Read the latents that sd-scripts left beside a picture (.npz), where they are surely of that picture as we train it.

Such a file holds one draw of the latents before the scaling factor, and says the picture's size and crop but neither
its bytes nor its VAE. So besides names and sizes, its time has to be no older than the picture's; pictures that
sd-scripts reads otherwise than we do (turned by EXIF, transparent) are left to the VAE.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.buckets import Geometry
from trainer.data.dataset import View
from trainer.data.decode import DECODE_ERRORS, orientation

Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NpzFormat:
    """What a model family's files are like: `<stem>_<width>x<height>_<suffix>.npz`, and `<stem>.npz` of old."""

    suffix: str
    channels: int
    factor: int
    scale: float

    def find(self, view: View) -> Path | None:
        """The file beside a picture, valid or not; None when there is none."""
        picture = view.sample.picture
        named = f"{picture.path.stem}_{picture.width:04}x{picture.height:04}_{self.suffix}.npz"
        candidates = (picture.path.with_suffix(".npz"), picture.path.with_name(named))  # the order sd-scripts has
        return next((path for path in candidates if path.is_file()), None)

    def read(self, path: Path, view: View) -> Latents | None:
        """The scaled latents [C, H, W] of a view, None when the file does not fit it."""
        picture, geometry = view.sample.picture, view.geometry
        if picture.alpha[0] < 255 or view.sample.subset.pictures.resize_interpolation or _is_older(path, picture.path):
            return None
        try:
            with Image.open(picture.path) as image:
                if orientation(image) != 1:
                    return None
            with np.load(path, allow_pickle=False) as file:
                latents = np.asarray(file["latents_flipped" if view.flipped else "latents"], dtype=np.float32)
                size, crop = file["original_size"].tolist(), file["crop_ltrb"].tolist()
        except (*DECODE_ERRORS, KeyError, zipfile.BadZipFile, zlib.error):
            return None
        width, height = geometry.bucket
        fits = latents.shape == (self.channels, height // self.factor, width // self.factor)
        if not fits or tuple(size) != geometry.source or not np.allclose(crop, _crop_of(geometry), atol=0.01):
            return None
        return latents * np.float32(self.scale) if np.isfinite(latents).all() else None


def _is_older(path: Path, picture: Path) -> bool:
    """Whether the picture may have been changed after the file was made."""
    made, changed = path.stat(), picture.stat()
    return made.st_mtime_ns < changed.st_mtime_ns or made.st_ctime_ns < changed.st_ctime_ns


def _crop_of(geometry: Geometry) -> tuple[float, float, float, float]:
    """crop_ltrb as sd-scripts writes it: the box that the whole picture would fill inside its bucket."""
    (width, height), (bucket_width, bucket_height) = geometry.source, geometry.bucket
    aspect = width / height
    if bucket_width / bucket_height > aspect:
        inner_width, inner_height = bucket_height * aspect, float(bucket_height)
    else:
        inner_width, inner_height = float(bucket_width), bucket_width / aspect
    left, top = (bucket_width - inner_width) // 2, (bucket_height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height
