"""What a data set would do in training, as plain facts: the plan of every picture, bad files, and warnings.

`Report.as_json` is a stable format (docs/dataset_report.md). Never imports torch. All sizes are (width, height).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.data.buckets import Size
from trainer.data.captions import draw_caption, plain_options
from trainer.data.config import Subset
from trainer.data.dataset import Sample, TrainingSet
from trainer.data.duplicates import find_twins
from trainer.data.gather import Found, bad_files
from trainer.data.sampler import Slot
from trainer.data.scan import BadFile, count_folder
from trainer.maths.rng import python_rng

VERSION = 1
TINY_AREA = 4
"""A picture is tiny when the resolution has more than this many times its pixels: it is more than doubled."""

_WILDCARD_DRAWS = 20

CountTokens = Mapping[str, int]
"""Caption -> its tokens, start and end not counted."""


@dataclass(frozen=True)
class Note:
    """One warning. path: the file or folder it is about, "" for none. fix: options that mend it, {name: value}."""

    kind: str
    path: str
    message: str
    fix: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedPicture:
    """One picture of one folder in one dataset. validation: kept out of training, and in no bucket's count."""

    path: str
    size: Size
    bucket: Size
    resized: Size
    crop: tuple[int, int, int, int]
    repeats: int
    is_reg: bool
    caption: str
    caption_source: str
    subset: int
    validation: bool


@dataclass(frozen=True)
class PlannedFolder:
    """One folder of a dataset. captions: source -> pictures. source: where the folder was named. validation: pictures
    kept out of training; `pictures` and `captions` count the others."""

    image_dir: str
    num_repeats: int
    is_reg: bool
    class_tokens: str
    caption_extension: str
    pictures: int
    captions: Mapping[str, int]
    source: str
    metadata_file: str
    validation: int


@dataclass(frozen=True)
class Bucket:
    """One training size. count: uses in the first epoch, repeats included. pictures: different ones among them."""

    size: Size
    count: int
    pictures: int


@dataclass(frozen=True)
class PlannedDataset:
    """One dataset. steps_per_epoch: its batches in the first epoch, one process and no accumulation."""

    resolution: Size
    batch_size: int
    enable_bucket: bool
    steps_per_epoch: int
    uses: int
    reg_uses: int
    subsets: tuple[PlannedFolder, ...]
    buckets: tuple[Bucket, ...]
    images: tuple[PlannedPicture, ...]


@dataclass(frozen=True)
class Report:
    """Everything found; `notes` are what a run would say of its data set."""

    datasets: tuple[PlannedDataset, ...]
    bad_files: tuple[BadFile, ...]
    warnings: tuple[Note, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "bad_files": [{"path": str(bad.path), "reason": bad.reason} for bad in self.bad_files],
            "warnings": [asdict(note) for note in self.warnings],
            "notes": list(self.notes),
            "problems": [],
        }


def report_of(training_set: TrainingSet, found: Sequence[Found], notes: Iterable[Note] = ()) -> Report:
    """The report of a data set, made of what was found; `notes` are further warnings, from whoever can count tokens."""
    batches = training_set.epoch_slots(0, 0)
    datasets = tuple(_dataset(training_set, i, batches) for i in range(len(training_set.datasets)))
    # a folder of several datasets has each warning once
    warnings = {(n.kind, n.path, n.message): n for n in (*_warnings(training_set, found), *notes)}
    return Report(datasets, bad_files(found), tuple(warnings.values()), training_set.notes)


def captions_of(training_set: TrainingSet) -> dict[str, list[str]]:
    """Path -> what the model would read for it, whole and in order; several where wildcards draw among them."""
    return {str(sample.picture.path): _drawn(sample) for sample in training_set.samples}


def _warnings(training_set: TrainingSet, found: Sequence[Found]) -> Iterator[Note]:
    yield from _extension_notes(found)
    for index, dataset in enumerate(training_set.datasets):
        yield from _surplus_notes(training_set, index)
        area = dataset.resolution[0] * dataset.resolution[1]
        samples = [s for s in training_set.samples if s.dataset == index]
        with_files = {s.subset.image_dir for s in samples if s.picture.caption is not None}
        for sample in samples:
            yield from _caption_notes(sample, has_neighbours=sample.subset.image_dir in with_files)
            yield from _size_notes(sample, area)
    yield from _twin_notes(training_set)


def token_notes(captions: Mapping[str, Sequence[str]], tokens: CountTokens, limit: int) -> Iterator[Note]:
    """Captions that are cut off: those with more than `limit` tokens."""
    for path, drawn in captions.items():
        most = max(tokens[caption] for caption in drawn)
        if most > limit:
            said = f"its caption has {most} tokens; the model reads {limit}, and the rest is cut off"
            yield Note("too_many_tokens", path, said)


def _drawn(sample: Sample) -> list[str]:
    options = plain_options(sample.subset.pictures)
    draws = range(_WILDCARD_DRAWS if options.enable_wildcard else 1)
    drawn = (draw_caption(sample.caption_text, options, python_rng(0, "caption", 0, i), epoch=0, step=0) for i in draws)
    return list(dict.fromkeys(drawn))


def _dataset(training_set: TrainingSet, index: int, epoch: Sequence[Sequence[Slot]]) -> PlannedDataset:
    dataset = training_set.datasets[index]
    members = {i: s for i, s in enumerate(training_set.samples) if s.dataset == index}
    kept_out = [sample for sample in training_set.validation if sample.dataset == index]
    batches = [batch for batch in epoch if batch[0].sample in members]
    used = Counter(slot.sample for batch in batches for slot in batch)
    uses, pictures = Counter[Size](), Counter[Size]()
    for i, sample in members.items():
        uses[sample.geometry.bucket] += used[i]
        pictures[sample.geometry.bucket] += 1
    places = {id(subset): position for position, subset in enumerate(dataset.subsets)}
    reg_uses = sum(used[i] for i, sample in members.items() if sample.is_reg)
    return PlannedDataset(
        resolution=dataset.resolution,
        batch_size=dataset.batch_size,
        enable_bucket=dataset.buckets.enable_bucket,
        steps_per_epoch=len(batches),
        uses=used.total() - reg_uses,
        reg_uses=reg_uses,
        subsets=tuple(_folder(subset, members.values(), kept_out) for subset in dataset.subsets),
        buckets=tuple(Bucket(size, uses[size], pictures[size]) for size in sorted(pictures)),
        images=tuple(
            _picture(sample, places[id(sample.subset)], validation=validation)
            for validation, samples in ((False, members.values()), (True, kept_out))
            for sample in samples
        ),
    )


def _folder(subset: Subset, members: Iterable[Sample], kept_out: Iterable[Sample]) -> PlannedFolder:
    own = [sample for sample in members if sample.subset is subset]
    return PlannedFolder(
        image_dir=str(subset.image_dir),
        num_repeats=subset.num_repeats,
        is_reg=subset.is_reg,
        class_tokens=subset.class_tokens,
        caption_extension=subset.pictures.caption_extension,
        pictures=len(own),
        captions=dict(sorted(Counter(sample.caption_source for sample in own).items())),
        source=subset.source,
        metadata_file=str(subset.metadata_file or ""),
        validation=sum(sample.subset is subset for sample in kept_out),
    )


def _picture(sample: Sample, subset: int, *, validation: bool) -> PlannedPicture:
    return PlannedPicture(
        path=str(sample.picture.path),
        size=sample.geometry.source,
        bucket=sample.geometry.bucket,
        resized=sample.geometry.resized,
        crop=sample.geometry.crop,
        repeats=sample.repeats,
        is_reg=sample.is_reg,
        caption=sample.caption_text.strip(),
        caption_source=sample.caption_source,
        subset=subset,
        validation=validation,
    )


# ---------------------------------------------------------------- warnings


def _extension_notes(found: Sequence[Found]) -> Iterator[Note]:
    """Captions that lie there under another ending than the one set; the scan names them as bad, this adds the fix."""
    for of_subset in found:
        folder, wanted = of_subset.subset.image_dir, of_subset.subset.pictures.caption_extension
        if all(bad.path != folder for bad in of_subset.bad):
            continue
        counts = count_folder(folder, wanted).captions
        if counts and wanted not in counts:
            other = max(counts, key=lambda ending: counts[ending])
            said = f"{counts[other]} captions end in {other} and none in {wanted}; set caption_extension to {other}"
            yield Note("caption_extension", str(folder), said, {"caption_extension": other})


def _surplus_notes(training_set: TrainingSet, index: int) -> Iterator[Note]:
    """More regularisation pictures than an epoch uses."""
    samples = [s for s in training_set.samples if s.dataset == index]
    uses = sum(s.repeats for s in samples if not s.is_reg)
    reg = [s for s in samples if s.is_reg]
    offered = sum(s.repeats for s in reg)
    if offered > uses:
        folders = dict.fromkeys(str(s.subset.image_dir) for s in reg)
        said = f"{offered} regularisation pictures for {uses} uses of training pictures an epoch: they take turns"
        yield Note("reg_surplus", next(iter(folders)), f"{said}. More repeats of the training pictures use all of them")


def _caption_notes(sample: Sample, *, has_neighbours: bool) -> Iterator[Note]:
    """A picture without a caption of its own, where that is no choice for the whole folder."""
    source = sample.caption_source
    ending = sample.subset.pictures.caption_extension
    missing = f"has no {ending} file" if sample.subset.kind == "folder" else "has neither caption nor tags"
    if source == "empty":
        said = f"{missing}, and there are no class_tokens: it is trained with an empty caption"
        yield Note("missing_caption", str(sample.picture.path), said)
    elif source == "class_tokens" and has_neighbours:
        said = f'{missing}, as others beside it have: "{sample.subset.class_tokens}" is used'
        yield Note("missing_caption", str(sample.picture.path), said)


def _size_notes(sample: Sample, area: int) -> Iterator[Note]:
    """A picture that is enlarged, or so small that there is little to learn from."""
    source, resized, path = sample.geometry.source, sample.geometry.resized, str(sample.picture.path)
    if source[0] * source[1] * TINY_AREA < area:
        said = f"is tiny: {_by(source)}, where training has about {_by(sample.geometry.bucket)} in view"
        yield Note("tiny", path, said if resized != source else f"is tiny: {_by(source)}, and is not enlarged")
    if resized[0] > source[0] or resized[1] > source[1]:
        scale = max(resized[0] / source[0], resized[1] / source[1])
        yield Note("upscaled", path, f"is enlarged {scale:.2f} times, from {_by(source)} to {_by(resized)}")


def _twin_notes(training_set: TrainingSet) -> Iterator[Note]:
    """Pictures that are copies of each other, or nearly; of regularisation pictures nobody minds."""
    pictures = [sample.picture for sample in training_set.samples if not sample.is_reg]
    for twins in find_twins(pictures):
        how = "is the same file as" if twins.same_bytes else "looks almost like"
        yield Note("near_duplicate", str(twins.second.path), f"{how} {twins.first.path}")


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
