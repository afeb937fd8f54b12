"""The metadata a trained file carries: kohya's `ss_*` table and modelspec."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.formats import kohya
from trainer.formats.model_facts import kohya_model_hashes
from trainer.hooks.base import Moment
from trainer.optim.optimizers import OptimizerOptions, described
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from trainer.data.dataset import TrainingSet
    from trainer.families.base import Family
    from trainer.methods.base import Method
    from trainer.tasks.schedule import Schedule


class MetadataOptions(Options):
    """What a saved model tells of itself, for programs that show such cards (https://github.com/Stability-AI/ModelSpec)."""

    title: ClassVar[str] = "Metadata"

    metadata_title: str = opt("")
    """Title of the model. Unset: the file's name."""
    metadata_author: str = opt("")
    """Who made the model."""
    metadata_description: str = opt("", widget="text")
    """What the model is for, and how it is used best."""
    metadata_license: str = opt("")
    """The licence the model is given under, such as CC-BY-4.0."""
    metadata_tags: str = opt("")
    """Words that describe the model, separated by commas."""
    no_metadata: bool = opt(False)
    """Leave out how the model was trained (settings, names of folders, tags of captions); the card above and what
    programs need to load it stay."""

    def card(self) -> dict[str, str]:
        """What is filled in, by modelspec's names, without the title."""
        names = ("author", "description", "license", "tags")
        values = {name: getattr(self, f"metadata_{name}") for name in names}
        return {name: value for name, value in values.items() if value}


class Export:
    """Writes what was trained, with the metadata. values: every option of the run by its flat name."""

    def __init__(
        self,
        options: MetadataOptions,
        optimizer: OptimizerOptions,
        values: Mapping[str, Any],
        *,
        family: Family,
        method: Method,
        training_set: TrainingSet,
        schedule: Schedule,
    ) -> None:
        self._options = options
        self._optimizer = optimizer
        self._values = values
        self._family = family
        self._method = method
        self._training_set = training_set
        self._schedule = schedule
        self._started = time.time()

    def __call__(self, path: Path, moment: Moment) -> Path:
        precision = self._values["save_precision"] or "float"
        return self._method.export(path, precision=precision, metadata=self._metadata(path, moment))

    def _metadata(self, path: Path, moment: Moment) -> dict[str, str]:
        summary = self._training_set.summary()
        values = {**self._values, "v2": self._family.kind == "sd2"}
        legacy, new = self._model_hashes
        facts = kohya.RunFacts(
            session_id=int(self._started * 1000) % 2**32,
            started_at=self._started,
            finished_at=time.time(),
            output_name=values["output_name"],
            num_train_images=summary.uses,
            num_reg_images=summary.reg_uses,
            num_batches_per_epoch=summary.batches,
            num_epochs=self._schedule.epochs,
            epoch=moment.epoch,
            steps=moment.step,
            max_train_steps=self._schedule.total_steps,
            base_model_version=self._family.base_model_version,
            optimizer=described(self._optimizer),
            model_name=self._model.name,
            model_hash=legacy,
            new_model_hash=new,
            datasets=self._datasets(),
            dataset_dirs=self._folders(),
            tag_frequency=self._tags(),
        )
        spec = kohya.modelspec_metadata(
            architecture=self._family.architecture + self._method.architecture_suffix,
            title=self._options.metadata_title or path.stem,
            resolution=self._training_set.datasets[0].resolution,
            prediction_type=self._family.prediction_type,
            saved_at=time.time(),
            encoder_layer=values["clip_skip"],
            extra=self._options.card(),
        )
        whole = {**self._method.metadata(kohya.training_metadata(values, facts)), **spec}
        return kohya.minimal_metadata(whole) if self._options.no_metadata else whole

    @property
    def _model(self) -> Path:
        return Path(self._values["pretrained_model_name_or_path"])

    @cached_property
    def _model_hashes(self) -> tuple[str, str]:
        """Read once: a base model has gigabytes, and a run saves many times."""
        return kohya_model_hashes(self._model)

    def _folders(self) -> dict[str, Any]:
        counts: dict[str, Any] = {}
        for sample in self._training_set.samples:
            entry = counts.setdefault(sample.subset.image_dir.name, {"n_repeats": sample.repeats, "img_count": 0})
            entry["img_count"] += 1
        return counts

    def _tags(self) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        for sample in self._training_set.samples:
            tags = counts.setdefault(sample.subset.image_dir.name, {})
            for tag in filter(None, (part.strip().lower() for part in sample.caption_text.split(","))):
                tags[tag] = tags.get(tag, 0) + 1
        return counts

    def _datasets(self) -> list[dict[str, Any]]:
        return [
            {
                "is_dreambooth": all(subset.kind == "folder" for subset in dataset.subsets),
                "batch_size_per_device": dataset.batch_size,
                "resolution": list(dataset.resolution),
                "enable_bucket": dataset.buckets.enable_bucket,
                "subsets": [
                    {
                        "image_dir": subset.image_dir.name,
                        "num_repeats": subset.num_repeats,
                        "is_reg": subset.is_reg,
                        "class_tokens": subset.class_tokens,
                    }
                    for subset in dataset.subsets
                ],
            }
            for dataset in self._training_set.datasets
        ]
