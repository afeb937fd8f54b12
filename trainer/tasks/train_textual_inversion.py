"""Teach a Stable Diffusion model a new word (textual inversion): `python -m trainer train_textual_inversion`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.data.captions import with_affixes
from trainer.errors import Problem
from trainer.formats.embedding import word_pattern
from trainer.hooks.saving import EmbeddingSavingOptions
from trainer.methods.textual_inversion import TextualInversionMethod, TextualInversionOptions
from trainer.tasks.training import training_task
from trainer.tasks.training_config import TrainingConfig

if TYPE_CHECKING:
    from trainer.data.dataset import Sample, TrainingSet
    from trainer.families.base import Family

NUM_NAMED = 3
"""So many pictures whose captions lack the word are named."""

_WRITE_IT = "Write the word into their captions, or set use_object_template or use_style_template"
_LEAVE_THEM_OUT = "They only take time: leave them out"


@dataclass(frozen=True)
class TrainTextualInversionConfig(TrainingConfig):
    """Every option of train_textual_inversion."""

    task = "train_textual_inversion"

    method: TextualInversionOptions
    saving: EmbeddingSavingOptions

    def build_method(self, family: Family) -> TextualInversionMethod:
        """Vectors of a new word in the frozen text encoders."""
        return TextualInversionMethod(family, self.method, self.optimizer, seed=self.length.seed or 0)

    @property
    def keeps_text_encoder_by(self) -> str:
        """Nothing: the word is taught to the text encoder."""
        return "Train a LoRA of the U-Net alone"

    def problems(self) -> Iterator[Problem]:
        """Besides what goes for every training: a rate, where the word begins, and brackets that mean weights."""
        yield from super().problems()
        if not self.optimizer.learning_rate:
            yield Problem("learning_rate", "nothing would train", "0")
        if self.resume.resume and self.method.weights:
            remedy = "resume goes on with a run; weights begins a new one from an embedding"
            yield Problem("weights", "cannot go with resume", str(self.method.weights), remedy=remedy)
        word = self.method.token_string
        if self.model.weighted_captions and any(bracket in word for bracket in "()[]\\:"):
            remedy = "Write it without them, or turn weighted_captions off"
            yield Problem("token_string", "holds brackets, which weigh words in captions", word, remedy=remedy)

    def adapt(self, training_set: TrainingSet) -> TrainingSet:
        """Captions from templates where they are asked for; a note on pictures that teach nothing."""
        templates = self.method.templates
        lacking = [sample for sample in training_set.samples if not self._has_word(sample)]
        notes = [
            *self._note("pictures", [] if templates else [s for s in lacking if not s.is_reg], _WRITE_IT),
            *self._note("regularisation pictures", [s for s in lacking if s.is_reg], _LEAVE_THEM_OUT),
        ]
        return dataclasses.replace(training_set, templates=templates, notes=(*training_set.notes, *notes))

    def _has_word(self, sample: Sample) -> bool:
        text = with_affixes(sample.caption_text, sample.subset.pictures)
        return word_pattern(self.method.token_string).search(text) is not None

    def _note(self, what: str, lacking: list[Sample], remedy: str) -> Iterator[str]:
        if lacking:
            named = ", ".join(str(sample.picture.path) for sample in lacking[:NUM_NAMED])
            more = ", ..." if len(lacking) > NUM_NAMED else ""
            said = f"captions without {self.method.token_string}, and teach it nothing"
            yield f"{len(lacking)} {what} have {said}: {named}{more}. {remedy}"


TASK = training_task(TrainTextualInversionConfig, about="Teach a Stable Diffusion model a new word.")
COMMAND = TASK.command()
