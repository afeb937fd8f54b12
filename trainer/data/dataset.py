"""The training set: every picture with its geometry and weight, and what each epoch does with them.

Never imports torch. Everything random about one use of a picture is drawn from (seed, purpose, epoch, slot).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from trainer.data.buckets import Geometry, Size, assign
from trainer.data.captions import caption_lines, draw_caption
from trainer.data.config import Dataset, DatasetConfig, Subset
from trainer.data.faces import crop_to_face, face_of
from trainer.data.images import ColourChange, MaskSource, PixelWork, draw_colour
from trainer.data.sampler import Slot, shuffle_into_batches
from trainer.data.scan import BadFile, Picture, Progress, Scan, scan_folders
from trainer.errors import DataError
from trainer.maths.rng import python_rng

_SHOWN = 20
_CLEAR = "is transparent everywhere, so that alpha_mask leaves nothing to train. Take it out, or turn off alpha_mask"


class LatentKey(NamedTuple):
    """What a cached latent depends on, the VAE aside: the file's bytes, the pixels taken of it, and the mirroring."""

    sha256: str
    geometry: Geometry
    flipped: bool
    interpolation: str | None
    keeps_alpha: bool


@dataclass(frozen=True)
class Sample:
    """One picture of one folder in one dataset. dataset: index of it. repeats: uses per epoch (a regularisation
    picture's are its share of the turns). geometry has the centred crop."""

    picture: Picture
    dataset: int
    subset: Subset
    geometry: Geometry
    repeats: int
    is_reg: bool
    loss_weight: float
    mask_path: Path | None = None

    @property
    def has_mask(self) -> bool:
        return self.mask_path is not None or self.subset.pictures.alpha_mask

    @property
    def caption_text(self) -> str:
        """The text captions are drawn from: the caption file, else class_tokens, else nothing."""
        text = self.subset.class_tokens if self.picture.caption is None else self.picture.caption
        return caption_lines(text, self.subset.pictures)


@dataclass(frozen=True)
class View:
    """One use of a sample with everything random about its pixels and caption settled. step: the optimizer step."""

    slot: int
    index: int
    sample: Sample
    geometry: Geometry
    flipped: bool
    caption: str
    colour: ColourChange | None = None
    step: int = 0

    @property
    def key(self) -> LatentKey:
        work = self.pixel_work
        sha256 = self.sample.picture.sha256
        return LatentKey(sha256, work.geometry, work.flipped, work.interpolation, work.mask == "alpha")

    @property
    def pixel_work(self) -> PixelWork:
        """What `images.load_picture` needs to know of this use."""
        sample, pictures = self.sample, self.sample.subset.pictures
        mask: MaskSource = sample.mask_path or ("alpha" if pictures.alpha_mask else None)
        interpolation = pictures.resize_interpolation
        return PixelWork(sample.picture.path, self.geometry, self.flipped, self.colour, interpolation, mask)


@dataclass(frozen=True)
class Summary:
    """What will be trained, for the plan. buckets: ((dataset, bucket), training uses an epoch) for each.

    reg_uses: regularisation pictures used an epoch, of reg_pictures there are. captions_*: pictures by where their
    caption comes from. batches: of the first epoch with seed 0; regularisation pictures taking turns can change it.
    """

    pictures: int
    uses: int
    reg_pictures: int
    reg_uses: int
    captions_from_files: int
    captions_from_class_tokens: int
    captions_empty: int
    buckets: Mapping[tuple[int, Size], int]
    batches: int
    resized_without_buckets: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TrainingSet:
    """All samples of a run; the same for every process. total_steps: of the run, 0 as long as nobody knows it."""

    datasets: tuple[Dataset, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    total_steps: int = 0

    @classmethod
    def build(cls, config: DatasetConfig, *, progress: Progress | None = None) -> TrainingSet:
        """Scan all folders; raises one DataError that names every bad file. progress(done, total) counts pictures."""
        survey = Survey.of(config, progress=progress)
        _refuse_bad_files(survey.bad_files)
        return survey.training_set

    def epoch_slots(self, seed: int, epoch: int) -> list[tuple[Slot, ...]]:
        """The epoch's batches, each of one dataset and bucket, in the order they are trained."""
        groups: list[tuple[list[int], int]] = []
        for index, dataset in enumerate(self.datasets):
            by_bucket: dict[Size, list[int]] = {}
            for sample in self._uses(index, seed, epoch):
                by_bucket.setdefault(self.samples[sample].geometry.bucket, []).append(sample)
            groups += [(by_bucket[bucket], dataset.batch_size) for bucket in sorted(by_bucket)]
        return shuffle_into_batches(groups, seed=seed, epoch=epoch)

    def view(self, slot: Slot, *, seed: int, epoch: int, step: int = 0) -> View:
        """Crop, mirroring and caption of one use, each drawn from its own stream.

        step: the optimizer step it belongs to; only token warm-up depends on it.
        """
        sample = self.samples[slot.sample]
        pictures = sample.subset.pictures
        geometry = sample.geometry
        if pictures.random_crop:
            rng = python_rng(seed, "crop", epoch, slot.slot)
            geometry = geometry.cropped_at(rng.randint(0, geometry.slack[0]), rng.randint(0, geometry.slack[1]))
        zoom, face = pictures.face_zoom(), face_of(sample.picture.path)
        if zoom and face:
            rng = python_rng(seed, "face", epoch, slot.slot)
            geometry = crop_to_face(sample.geometry, face, zoom=zoom, rng=rng)
        colour = draw_colour(python_rng(seed, "colour", epoch, slot.slot)) if pictures.color_aug else None
        flipped = pictures.flip_aug and python_rng(seed, "flip", epoch, slot.slot).random() < 0.5
        caption = draw_caption(
            sample.caption_text,
            pictures,
            python_rng(seed, "caption", epoch, slot.slot),
            epoch=epoch,
            step=step,
            total_steps=self.total_steps,
        )
        return View(slot.slot, slot.sample, sample, geometry, flipped, caption, colour, step)

    def fixed_views(self) -> list[View]:
        """Every different picture, geometry and mirroring that can occur without random_crop, for caching."""
        found: dict[LatentKey, View] = {}
        for index, sample in enumerate(self.samples):
            for flipped in (False, True) if sample.subset.pictures.flip_aug else (False,):
                view = View(0, index, sample, sample.geometry, flipped, "")
                found.setdefault(view.key, view)
        return list(found.values())

    def summary(self) -> Summary:
        """Counts for the plan."""
        train = [s for s in self.samples if not s.is_reg]
        sources = Counter(
            "file" if s.picture.caption is not None else bool(s.subset.class_tokens) for s in self.samples
        )
        batches = self.epoch_slots(0, 0)
        buckets: Counter[tuple[int, Size]] = Counter()
        for slot in (slot for batch in batches for slot in batch):
            sample = self.samples[slot.sample]
            buckets[sample.dataset, sample.geometry.bucket] += 1
        uses = sum(s.repeats for s in train)
        unbucketed = [s for s in self.samples if not self.datasets[s.dataset].buckets.enable_bucket]
        return Summary(
            pictures=len(train),
            uses=uses,
            reg_pictures=len(self.samples) - len(train),
            reg_uses=sum(map(len, batches)) - uses,
            captions_from_files=sources["file"],
            captions_from_class_tokens=sources[True],
            captions_empty=sources[False],
            buckets=dict(sorted(buckets.items())),
            batches=len(batches),
            resized_without_buckets=sum(s.geometry.source != s.geometry.bucket for s in unbucketed),
            notes=self.notes,
        )

    @cached_property
    def _members(self) -> tuple[tuple[list[int], list[int]], ...]:
        """(training uses, regularisation uses) of each dataset, every sample as often as its repeats."""
        members: tuple[tuple[list[int], list[int]], ...] = tuple(([], []) for _ in self.datasets)
        for index, sample in enumerate(self.samples):
            members[sample.dataset][sample.is_reg].extend([index] * sample.repeats)
        return members

    def _uses(self, dataset: int, seed: int, epoch: int) -> list[int]:
        """Samples used in an epoch: training pictures by their repeats, and as many regularisation pictures.

        Those take turns: what goes evenly into the number is used in every epoch, and the rest is a window that moves
        around one seeded permutation, so all are used equally often and the number is never overshot.
        """
        train, reg = self._members[dataset]
        if not reg:
            return train
        order = list(reg)
        python_rng(seed, "reg", dataset).shuffle(order)
        rounds, rest = divmod(len(train), len(order))
        window = [order[(epoch * rest + i) % len(order)] for i in range(rest)]
        return train + order * rounds + window


@dataclass(frozen=True)
class Survey:
    """A data set looked at, to train it or to report on it: the set that its good pictures make, the scans of its
    folders in their order, and every file that stands in the way of training."""

    training_set: TrainingSet
    scans: tuple[Scan, ...]
    bad_files: tuple[BadFile, ...]

    @classmethod
    def of(cls, config: DatasetConfig, *, progress: Progress | None = None) -> Survey:
        """Scan all folders; progress(done, total) counts pictures."""
        subsets = [(index, subset) for index, dataset in enumerate(config.datasets) for subset in dataset.subsets]
        folders = [(subset.image_dir, subset.pictures.caption_extension) for _, subset in subsets]
        scans = scan_folders(folders, progress=progress)
        samples = [
            _sample(picture, index, config.datasets[index], subset, config.prior_loss_weight)
            for (index, subset), scan in zip(subsets, scans, strict=True)
            for picture in scan.pictures
        ]
        clear = [s for s in samples if s.subset.pictures.alpha_mask and s.picture.alpha[1] == 0]
        bad = [file for scan in scans for file in scan.bad] + [BadFile(s.picture.path, _CLEAR) for s in clear]
        said = [note for scan in scans for note in scan.notes]
        notes = dict.fromkeys([*config.notes, *_caption_notes(subsets, scans), *said])
        training_set = TrainingSet(config.datasets, tuple(s for s in samples if s not in clear), tuple(notes))
        return cls(training_set, scans, tuple(dict.fromkeys(bad)))


def _sample(picture: Picture, index: int, dataset: Dataset, subset: Subset, prior_loss_weight: float) -> Sample:
    return Sample(
        picture=picture,
        dataset=index,
        subset=subset,
        geometry=assign(picture.size, dataset.resolution, dataset.buckets),
        repeats=subset.num_repeats,
        is_reg=subset.is_reg,
        loss_weight=prior_loss_weight if subset.is_reg else 1.0,
    )


def _refuse_bad_files(files: Sequence[BadFile]) -> None:
    if files:
        bad = list(map(str, files))
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        head = "1 file or folder cannot be used" if len(bad) == 1 else f"{len(bad)} files or folders cannot be used"
        raise DataError("\n  ".join([f"{head}:", *bad[:_SHOWN], *more]))


def _caption_notes(subsets: Sequence[tuple[int, Subset]], scans: Sequence[Scan]) -> list[str]:
    notes: list[str] = []
    for (_, subset), scan in zip(subsets, scans, strict=True):
        if scan.num_without_caption and not subset.class_tokens:
            many = f"{scan.num_without_caption} of {len(scan.pictures)} pictures"
            ending = subset.pictures.caption_extension
            notes.append(f"{scan.folder}: {many} have no {ending} file and are trained with an empty caption")
    return list(dict.fromkeys(notes))
