"""What the model will read for one picture: draws of its final caption, with their tokens."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from kohya_gui import tokens
from kohya_gui.dataset_report import Picture as Planned
from kohya_gui.dataset_report import Report
from trainer.data.buckets import Geometry
from trainer.data.config import DataOptions, DatasetConfig, Subset, read_dataset
from trainer.data.dataset import Sample, preview_captions
from trainer.data.scan import Picture

DRAWS = 10


def draws(dataset_file: Path, report: Report, planned: Planned, *, caption: str | None = None) -> list[tuple[str, int]]:
    """(caption, tokens) of the first epochs' draws. caption: a text to try instead of the one in the report."""
    subset = _subset(_config(dataset_file, dataset_file.stat().st_mtime_ns), report, planned)
    if subset is None:
        return []
    width, height = planned.size
    text = planned.caption if caption is None else caption
    sample = Sample(
        picture=Picture(planned.path, width, height, "", text),
        dataset=planned.place[0],
        subset=subset,
        geometry=Geometry(planned.size, planned.resized, planned.crop),
        repeats=planned.repeats,
        is_reg=planned.is_reg,
        loss_weight=1.0,
    )
    return [(text, tokens.count(text)) for text in preview_captions(sample, seed=0, draws=DRAWS)]


@lru_cache(maxsize=4)
def _config(dataset_file: Path, _changed: int) -> DatasetConfig:
    return read_dataset(DataOptions(dataset_config=dataset_file))


def _subset(config: DatasetConfig, report: Report, planned: Planned) -> Subset | None:
    """The folder as the trainer settled it."""
    named = report.subset_of(planned)
    wanted = (str(named["image_dir"]), bool(named["is_reg"]), str(named["source"]))
    subsets = config.datasets[planned.place[0]].subsets
    return next((s for s in subsets if (str(s.image_dir), s.is_reg, s.source) == wanted), None)
