"""The record of a run: step events for the page, scalars for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.events import Events, Step
from trainer.hooks.base import Hook, Moment
from trainer.memory import memory_used_mb
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TrackingOptions(Options):
    """Where numbers go."""

    title: ClassVar[str] = "Logging"

    log_with: Literal["none", "tensorboard"] = opt("tensorboard")
    """Log of loss and rates beside the run folder's own: TensorBoard files, or none."""
    logging_dir: Path | None = opt(None, widget="folder")
    """Folder for TensorBoard logs, a new dated folder for each run in it. Unset: in the run's own folder."""
    log_prefix: str = opt("")
    """Put before the date in the name of the log folder."""

    def folder(self, run_folder: Path) -> Path:
        """This run's log folder."""
        if self.logging_dir is None:
            return run_folder / "tensorboard"
        return self.logging_dir / f"{self.log_prefix}{datetime.now():%Y%m%d%H%M%S}"


class Tracking(Hook):
    """Says each step as an event and to TensorBoard, whose library is loaded only when the first number comes."""

    def __init__(self, options: TrackingOptions, events: Events, run_folder: Path, *, is_main: bool) -> None:
        self._events = events
        self._folder = options.folder(run_folder) if is_main and options.log_with == "tensorboard" else None
        self._writer: SummaryWriter | None = None

    def after_step(self, moment: Moment) -> None:
        """Write the step's numbers."""
        lr = dict(moment.lr or {})
        self._events.emit(
            Step(
                step=moment.step,
                epoch=moment.epoch,
                loss=moment.loss,
                loss_average=moment.loss_average,
                lr=lr,
                grad_norm=moment.grad_norm,
                seconds=round(moment.seconds, 4),
                memory_mb=round(memory_used_mb(), 1),
            )
        )
        scalars = {"loss/current": moment.loss, "loss/average": moment.loss_average}
        scalars |= {f"lr/{name}": rate for name, rate in lr.items()}
        scalars |= moment.figures
        if moment.epoch_ended:
            scalars["loss/epoch_average"] = moment.loss_average
        self.write(scalars, moment.step)

    def end(self, moment: Moment, *, stopped: bool) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Numbers for the log alone, by TensorBoard name."""
        if self._folder is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step, walltime=time.time())
