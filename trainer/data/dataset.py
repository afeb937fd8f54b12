"""The training set: every picture with its geometry and weight, and what each epoch does with them.

Never imports torch. Everything random about one use of a picture is drawn from (seed, purpose, epoch, slot).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.data.buckets import Geometry, Size, assign
from trainer.data.captions import caption_lines, draw_caption, plain_options
from trainer.data.config import Dataset, DatasetConfig, Subset
from trainer.data.faces import crop_to_face, face_of
from trainer.data.gather import Found, gather
from trainer.data.images import ColourChange, MaskSource, PixelWork, draw_colour
from trainer.data.sampler import Slot, shuffle_into_batches
from trainer.data.scan import Picture, Progress
from trainer.data.split import choose
from trainer.maths.rng import python_rng

CaptionSource = Literal["file", "metadata", "class_tokens", "empty"]


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
    picture's are its share of the turns). geometry has the centred crop, which mask_path's picture shares."""

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
    def caption_source(self) -> CaptionSource:
        """Where its caption comes from."""
        if self.picture.caption is not None:
            return "file" if self.subset.kind == "folder" else "metadata"
        return "class_tokens" if self.subset.class_tokens else "empty"

    @property
    def caption_text(self) -> str:
        """The text captions are drawn from: the caption file or record, else class_tokens, else nothing."""
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
    def frame(self) -> tuple[int, int, int, int]:
        """The file's height and width, and the rows and columns of the scaled picture cut off above and to the left.

        Of a mirrored picture: to the left after mirroring.
        """
        (width, height), (left, top, right, _) = self.geometry.source, self.geometry.crop
        return height, width, top, self.geometry.resized[0] - right if self.flipped else left

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
    caption comes from, files being caption files and metadata files. batches: of the first epoch with seed 0;
    regularisation pictures taking turns can change it. validation_pictures: kept out of training.
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
    validation_pictures: int = 0


@dataclass(frozen=True)
class TrainingSet:
    """All samples of a run; the same for every process. total_steps: of the run, 0 as long as nobody knows it.

    validation: the samples kept out of training, each once. templates: captions that stand in for those of all pictures
    but regularisation pictures, one drawn for each use.
    """

    datasets: tuple[Dataset, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    total_steps: int = 0
    validation: tuple[Sample, ...] = ()
    templates: tuple[str, ...] = ()

    @classmethod
    def build(cls, config: DatasetConfig, *, progress: Progress | None = None) -> TrainingSet:
        """Scan all folders; raises one DataError that names every bad file. progress(done, total) counts pictures."""
        return cls.of(config, gather(config.subsets, progress=progress))

    @classmethod
    def of(cls, config: DatasetConfig, found: Sequence[Found]) -> TrainingSet:
        """The set that the pictures found make; found: of each of config.subsets."""
        samples: list[Sample] = []
        validation: list[Sample] = []
        indices = [index for index, dataset in enumerate(config.datasets) for _ in dataset.subsets]
        for index, of_subset in zip(indices, found, strict=True):
            dataset = config.datasets[index]
            chosen = _choose_validation(of_subset, dataset)
            for position, picture in enumerate(of_subset.pictures):
                sample = _sample(picture, index, dataset, of_subset, config.prior_loss_weight)
                if position in chosen:
                    validation.append(replace(sample, repeats=1))
                else:
                    samples.append(sample)
        said = [note for of_subset in found for note in of_subset.notes]
        notes = dict.fromkeys([*config.notes, *said, *_validation_notes(config.datasets, samples, validation)])
        return cls(config.datasets, tuple(samples), tuple(notes), validation=tuple(validation))

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
        caption = self._caption(sample, slot, seed=seed, epoch=epoch, step=step)
        return View(slot.slot, slot.sample, sample, geometry, flipped, caption, colour, step)

    def _caption(self, sample: Sample, slot: Slot, *, seed: int, epoch: int, step: int) -> str:
        if self.templates and not sample.is_reg:
            return python_rng(seed, "template", epoch, slot.slot).choice(self.templates)
        return draw_caption(
            sample.caption_text,
            sample.subset.pictures,
            python_rng(seed, "caption", epoch, slot.slot),
            epoch=epoch,
            step=step,
            total_steps=self.total_steps,
        )

    def validation_views(self) -> list[View]:
        """Each picture kept out of training, always the same: centred crop, not mirrored, its caption as it stands.
        slot and index count along `validation`; a caption with wildcards is drawn from a stream of its own."""
        views: list[View] = []
        for index, sample in enumerate(self.validation):
            rng = python_rng(self.datasets[sample.dataset].split.validation_seed or 0, "validation caption", index)
            caption = draw_caption(sample.caption_text, plain_options(sample.subset.pictures), rng, epoch=0, step=0)
            views.append(View(index, index, sample, sample.geometry, False, caption))
        return views

    def fixed_views(self) -> list[View]:
        """Every different picture, geometry and mirroring that can occur without random_crop, for caching; those to
        validate with come last."""
        found: dict[LatentKey, View] = {}
        for index, sample in enumerate(self.samples):
            for flipped in (False, True) if sample.subset.pictures.flip_aug else (False,):
                view = View(0, index, sample, sample.geometry, flipped, "")
                found.setdefault(view.key, view)
        for view in self.validation_views():
            found.setdefault(view.key, view)
        return list(found.values())

    def summary(self) -> Summary:
        """Counts for the plan."""
        train = [s for s in self.samples if not s.is_reg]
        sources = Counter(sample.caption_source for sample in self.samples)
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
            captions_from_files=sources["file"] + sources["metadata"],
            captions_from_class_tokens=sources["class_tokens"],
            captions_empty=sources["empty"],
            buckets=dict(sorted(buckets.items())),
            batches=len(batches),
            resized_without_buckets=sum(s.geometry.source != s.geometry.bucket for s in unbucketed),
            notes=self.notes,
            validation_pictures=len(self.validation),
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


def _sample(picture: Picture, index: int, dataset: Dataset, found: Found, prior_loss_weight: float) -> Sample:
    subset = found.subset
    return Sample(
        picture=picture,
        dataset=index,
        subset=subset,
        geometry=assign(picture.size, dataset.resolution, dataset.buckets),
        repeats=subset.num_repeats,
        is_reg=subset.is_reg,
        loss_weight=prior_loss_weight if subset.is_reg else 1.0,
        mask_path=found.masks.get(picture.path),
    )


def _choose_validation(found: Found, dataset: Dataset) -> frozenset[int]:
    """Positions of the pictures to keep out of training; keyed so that a moved data set is split the same."""
    if found.subset.is_reg or not dataset.split.validation_split:
        return frozenset()
    folder = found.subset.image_dir
    paths = [picture.path for picture in found.pictures]
    keys = [(p.relative_to(folder) if p.is_relative_to(folder) else p).as_posix() for p in paths]
    return choose(keys, dataset.split)


def _validation_notes(
    datasets: Sequence[Dataset], samples: Sequence[Sample], validation: Sequence[Sample]
) -> Iterator[str]:
    if not any(dataset.split.validation_split for dataset in datasets):
        return
    pictures = len(validation) + sum(not sample.is_reg for sample in samples)
    yield f"validation_split keeps {len(validation)} of {pictures} pictures out of training"
    trained = {sample.picture.sha256 for sample in samples}
    if leaked := sorted({str(s.picture.path) for s in validation if s.picture.sha256 in trained}):
        yield (
            f"{len(leaked)} of the pictures kept out of training are trained all the same, from a copy or by another "
            f"dataset, such as {leaked[0]}; give the datasets the same validation_split and validation_seed"
        )


def preview_captions(sample: Sample, *, seed: int, draws: int = 10) -> list[str]:
    """What the model would read for a picture in each of the first epochs; token warm-up, which grows, at its end."""
    options = sample.subset.pictures.model_copy(update={"token_warmup_step": 0})
    return [
        draw_caption(sample.caption_text, options, python_rng(seed, "caption preview", epoch), epoch=epoch, step=0)
        for epoch in range(draws)
    ]
