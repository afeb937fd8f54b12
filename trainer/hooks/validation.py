"""Validation while a run goes: the loss of pictures that do not train, always at the same noise and timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from trainer.errors import Problem
from trainer.events import Events, Validation
from trainer.hooks.base import Hook, Moment, due
from trainer.schema import Options, opt


class ValidationOptions(Options):
    """When the pictures that validation_split keeps out of training are measured."""

    title: ClassVar[str] = "Validation"

    validate_every_n_steps: int | None = opt(None, ge=1, unit="steps")
    """Measure the validation loss every n steps, and before the first step and after the last. It needs pictures that
    validation_split keeps out of training. Where neither this nor validate_every_n_epochs is set, every epoch."""
    validate_every_n_epochs: int | None = opt(None, ge=1, unit="epochs")
    """Measure the validation loss every n epochs; with validate_every_n_steps, at both."""
    max_validation_steps: int | None = opt(None, ge=1, label="Pictures to validate with")
    """Measure at most so many of the pictures kept out of training, taken evenly from all of them. Unset: all."""

    @property
    def epochs_between(self) -> int | None:
        """Epochs from one measurement to the next; every epoch where nothing is said."""
        said = self.validate_every_n_epochs
        return 1 if said is None and self.validate_every_n_steps is None else said

    def unused(self) -> Iterator[Problem]:
        """What is set and does nothing where no picture is kept out of training."""
        for name, value in self.model_dump().items():
            if value is not None:
                remedy = "Set validation_split (0.1 is usual), or leave this unset"
                yield Problem(name, "needs pictures that are kept out of training", str(value), remedy=remedy)


class Validating(Hook):
    """Says what `measure` finds, when it is due. Each process measures, since wrapped modules expect all of them."""

    def __init__(
        self,
        options: ValidationOptions,
        events: Events,
        *,
        measure: Callable[[], float],
        num_pictures: int,
        write: Callable[[Mapping[str, float], int], None],
    ) -> None:
        self._options = options
        self._events = events
        self._measure = measure
        self._num_pictures = num_pictures
        self._write = write

    def begin(self, moment: Moment) -> None:
        """The loss from before, to compare with; a resumed run had it."""
        if moment.step == 0:
            self._validate(moment)

    def after_step(self, moment: Moment) -> None:
        """The measurements that are due, and the last."""
        steps, epochs = self._options.validate_every_n_steps, self._options.epochs_between
        if moment.last or due(moment, every_n_steps=steps, every_n_epochs=epochs):
            self._validate(moment)

    def _validate(self, moment: Moment) -> None:
        loss = self._measure()
        self._events.emit(Validation(moment.step, moment.epoch, loss, self._num_pictures))
        self._write({"loss/validation": loss}, moment.step)
        self._events.phase("training")
