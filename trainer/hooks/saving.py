"""Models and resume points on disk: when they are written, under which names, and which older ones go.

Names are those of sd-scripts: NAME-000004.safetensors after an epoch, NAME-step00000400.safetensors after a step, NAME
at the end, and the same with -state for the folders a run goes on from. A whole model may also end in .ckpt, or be a
folder, whose name has no ending.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from trainer.errors import Problem, RunError
from trainer.events import Checkpoint, Events
from trainer.formats.embedding import EmbeddingKind
from trainer.formats.whole_model import ModelKind
from trainer.hooks.base import Hook, Moment, due
from trainer.run_folder import RunFolder, SavedFile, check_name, list_runs, sha256_file
from trainer.schema import Options, opt


class SavingOptions(Options):
    """What is saved, when and where."""

    title: ClassVar[str] = "Saving"

    output_dir: Path = opt(Path("outputs"), widget="folder")
    """Folder for models and resume points; made if it is missing."""
    output_name: str = opt("last", level="basic", label="Output name")
    """Name of the saved model, without folder and extension."""
    overwrite: bool = opt(False)
    """Let this run replace files of the same names. Otherwise a run whose files would land on others does not start."""
    save_every_n_epochs: int | None = opt(None, ge=1, level="basic", unit="epochs", label="Save every n epochs")
    """Save the model every n epochs, besides at the end."""
    save_every_n_steps: int | None = opt(None, ge=1, unit="steps")
    """Save the model every n steps, besides at the end."""
    save_n_epoch_ratio: int | None = opt(None, ge=1)
    """Save so often that there are at least n saves in the whole run; instead of save_every_n_epochs."""
    save_last_n_epochs: int | None = opt(None, ge=1)
    """Keep the last n epoch saves; older ones are deleted once a new one is safely written."""
    save_last_n_epochs_state: int | None = opt(None, ge=1)
    """Keep the last n resume points of epoch saves. Unset: as many as models."""
    save_last_n_steps: int | None = opt(None, ge=1, unit="steps")
    """Keep step saves no older than n steps; older ones are deleted once a new one is safely written."""
    save_last_n_steps_state: int | None = opt(None, ge=1, unit="steps")
    """Keep resume points of step saves no older than n steps. Unset: as for models."""
    save_precision: Literal["float", "fp16", "bf16"] | None = opt(None)
    """Number format of the saved model: fp16 halves its size. Unset: as trained (float32)."""
    save_state: bool = opt(False)
    """With every model saved, also write a -state folder from which training goes on exactly where it was."""
    save_state_on_train_end: bool = opt(False)
    """Write a -state folder at the end of training."""

    def problems(self) -> Iterator[Problem]:
        """A name that is no file name, and what excludes each other."""
        if self.save_n_epoch_ratio and self.save_every_n_epochs:
            remedy = "Leave one of them unset"
            yield Problem("save_n_epoch_ratio", "goes against save_every_n_epochs", "", remedy=remedy)
        if said := check_name(self.output_name):
            yield Problem("output_name", said, repr(self.output_name))

    @property
    def last_epoch_states(self) -> int | None:
        """How many resume points of epoch saves are kept, None for all."""
        return self.save_last_n_epochs_state or self.save_last_n_epochs

    @property
    def last_step_states(self) -> int | None:
        """How many steps old a resume point of a step save may be, None for any."""
        return self.save_last_n_steps_state or self.save_last_n_steps

    def epochs_between(self, num_epochs: int) -> int | None:
        """Epochs from one save to the next, None for saves at the end only."""
        if self.save_n_epoch_ratio:
            return max(1, num_epochs // self.save_n_epoch_ratio)
        return self.save_every_n_epochs

    @property
    def extension(self) -> str:
        """What the names of saved models end in."""
        return ".safetensors"

    def final(self) -> Path:
        """The finished model's path."""
        return self.output_dir.absolute() / f"{self.output_name}{self.extension}"

    def at_epoch(self, epoch: int) -> Path:
        """The path of an epoch's save."""
        return self.output_dir.absolute() / f"{self.output_name}-{epoch:06d}{self.extension}"

    def at_step(self, step: int) -> Path:
        """The path of a step's save."""
        return self.output_dir.absolute() / f"{self.output_name}-step{step:08d}{self.extension}"

    def state_of(self, model: Path) -> Path:
        """The resume point that goes with a saved model."""
        return model.with_name(f"{model.name.removesuffix(self.extension)}-state")


class ModelSavingOptions(SavingOptions):
    """What is saved of a model that is trained whole."""

    save_model_as: ModelKind = opt("safetensors", level="basic", label="Save the model as")
    """Form of the saved model: safetensors, one file that every program opens; ckpt, the older kind of file; diffusers
    or diffusers_safetensors, a folder in the diffusers layout (both hold safetensors files here)."""

    @property
    def extension(self) -> str:
        """A folder's name has none."""
        return {"safetensors": ".safetensors", "ckpt": ".ckpt"}.get(self.save_model_as, "")


class EmbeddingSavingOptions(SavingOptions):
    """What is saved of a new word."""

    save_model_as: EmbeddingKind = opt("safetensors", label="Save the word as")
    """Form of the saved word: safetensors, which tells how it was trained; pt, the older kind of file. Programs that
    draw read both."""

    @property
    def extension(self) -> str:
        """One file either way."""
        return f".{self.save_model_as}"


@dataclass(frozen=True)
class Plan:
    """Which saves a run will make, known before it starts."""

    models: tuple[Path, ...]
    states: tuple[Path, ...]

    @property
    def clashes(self) -> list[Path]:
        """Planned paths where something already is."""
        return [path for path in (*self.models, *self.states) if path.exists()]


def plan_saves(options: SavingOptions, epoch_ends: Mapping[int, int], *, first_step: int, total_steps: int) -> Plan:
    """All saves of a run. epoch_ends: epoch (from 1) -> the step it ends with."""
    models: list[Path] = []
    if n := options.save_every_n_steps:
        models += [options.at_step(s) for s in range(n, total_steps, n) if s > first_step]
    if n := options.epochs_between(len(epoch_ends)):
        models += [options.at_epoch(e) for e, s in epoch_ends.items() if e % n == 0 and first_step < s < total_steps]
    states = [options.state_of(m) for m in models] if options.save_state else []
    final = options.final()
    if options.save_state or options.save_state_on_train_end:
        states.append(options.state_of(final))
    return Plan((*models, final), tuple(states))


def clash_problem(options: SavingOptions, plan: Plan, *, again: Collection[Path] = ()) -> Problem | None:
    """Another run's file is never overwritten; `again`: what a resumed run may write once more."""
    clashes = [path for path in plan.clashes if path not in again]
    if options.overwrite or not clashes:
        return None
    first, more = clashes[0], len(clashes) - 1
    said = f"{first} exists already" + (f", and {more} more" if more else "")
    return Problem("output_name", said, remedy="Choose another output_name, or set overwrite to replace the files")


def written_again(options: SavingOptions, plan: Plan, parents: Sequence[str], *, first_step: int) -> frozenset[Path]:
    """What a resumed run may write once more: saves past its resume point, made by the runs before it or by others that
    went on from those, as long as they are as they were written. A finished model is never among them."""
    final = options.final()
    asked = set(plan.clashes) - {final, options.state_of(final)}
    if not asked:
        return frozenset()
    found = [entry for folder in _relatives(parents) for entry in folder.files() if entry.step > first_step]
    return frozenset(Path(e.path) for e in found if Path(e.path) in asked and _is_untouched(e))


def _relatives(parents: Sequence[str]) -> list[RunFolder]:
    """The runs before a resumed one, and those that say that they went on from one of them."""
    roots = dict.fromkeys(Path(parent).parent for parent in parents)
    others = [run for root in roots for run in list_runs(root) if set(_parents_of(run)) & set(parents)]
    return [*(RunFolder(Path(parent)) for parent in parents), *others]


def _parents_of(run: RunFolder) -> list[str]:
    try:
        return list(json.loads(run.environment_file.read_text(encoding="utf-8")).get("parents", []))
    except (OSError, json.JSONDecodeError):
        return []


def _is_untouched(entry: SavedFile) -> bool:
    path = Path(entry.path)
    if not path.exists() or path_size(path) != entry.size_bytes:
        return False
    return not entry.sha256 or sha256_file(path) == entry.sha256


class Saving(Hook):
    """Writes models and resume points, lists them in the run folder, and deletes the older ones asked to go."""

    def __init__(
        self,
        options: SavingOptions,
        events: Events,
        folder: RunFolder,
        *,
        export: Callable[[Path, Moment], Path],
        save_state: Callable[[Path, Moment], Path],
        num_epochs: int,
        is_main: bool,
    ) -> None:
        self._options = options
        self._every_n_epochs = options.epochs_between(num_epochs)
        self._events = events
        self._folder = folder
        self._export = export
        self._save_state = save_state
        self._is_main = is_main
        self._epoch_saves = _Kept()
        self._step_saves = _Kept()
        self.final_path = options.final()
        self.state_path: Path | None = None

    def after_step(self, moment: Moment) -> None:
        """The saves that are due; the last step's is `end`."""
        if moment.last:
            return
        options = self._options
        if due(moment, every_n_steps=options.save_every_n_steps, every_n_epochs=None) or "save" in moment.wanted:
            self._save(options.at_step(moment.step), moment, state=options.save_state)
            self._step_saves.add(moment.step, options.at_step(moment.step))
            self._delete(self._step_saves.models.older_than(moment.step, options.save_last_n_steps))
            self._delete_states(self._step_saves.states.older_than(moment.step, options.last_step_states))
        if due(moment, every_n_steps=None, every_n_epochs=self._every_n_epochs):
            self._save(options.at_epoch(moment.epoch), moment, state=options.save_state)
            self._epoch_saves.add(moment.epoch, options.at_epoch(moment.epoch))
            self._delete(self._epoch_saves.models.but_last(options.save_last_n_epochs))
            self._delete_states(self._epoch_saves.states.but_last(options.last_epoch_states))

    def end(self, moment: Moment, *, stopped: bool) -> None:
        """The finished model, or the resume point of a run that was asked to stop."""
        options = self._options
        if stopped:
            self.state_path = options.state_of(options.at_step(moment.step))
            self._write_state(self.state_path, moment)
        else:
            self._save(options.final(), moment, state=options.save_state or options.save_state_on_train_end)

    def _save(self, path: Path, moment: Moment, *, state: bool) -> None:
        self._events.phase("saving")
        if self._is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _disk_errors(path):
                self._export(path, moment)
            self._list(path, "model", moment.step)
        if state:
            self._write_state(self._options.state_of(path), moment)
        if not moment.last:
            self._events.phase("training")

    def _write_state(self, path: Path, moment: Moment) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _disk_errors(path):
            self._save_state(path, moment)
        if self._is_main:
            self._list(path, "state", moment.step)

    def _list(self, path: Path, what: str, step: int) -> None:
        size = path_size(path)
        digest = sha256_file(path) if path.is_file() else ""
        self._folder.add_file(SavedFile(str(path), what, step, size, digest))
        self._events.emit(Checkpoint(step, what, str(path), size, digest))

    def _delete(self, models: Sequence[Path]) -> None:
        """Called only after the newest save is written and verified."""
        if self._is_main:
            for path in models:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                self._folder.remove_file(str(path))

    def _delete_states(self, models: Sequence[Path]) -> None:
        """The resume points that go with these models."""
        if self._is_main:
            for state in map(self._options.state_of, models):
                shutil.rmtree(state, ignore_errors=True)
                self._folder.remove_file(str(state))


class _Saves:
    """Saves that still stand, by the epoch or step they were made at, oldest first."""

    def __init__(self) -> None:
        self._made: list[tuple[int, Path]] = []

    def add(self, when: int, path: Path) -> None:
        self._made.append((when, path))

    def older_than(self, now: int, keep: int | None) -> list[Path]:
        """Take out what is more than `keep` steps old; nothing where that is None."""
        return self._take(sum(when < now - keep for when, _ in self._made) if keep else 0)

    def but_last(self, keep: int | None) -> list[Path]:
        """Take out all but the last `keep`; nothing where that is None."""
        return self._take(max(0, len(self._made) - keep) if keep else 0)

    def _take(self, count: int) -> list[Path]:
        taken, self._made = self._made[:count], self._made[count:]
        return [path for _, path in taken]


class _Kept:
    """The models and, since they may be kept longer or shorter, the resume points of one kind of save."""

    def __init__(self) -> None:
        self.models, self.states = _Saves(), _Saves()

    def add(self, when: int, model: Path) -> None:
        self.models.add(when, model)
        self.states.add(when, model)


class _disk_errors:
    """Turns a full or vanished disk into a sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            remedy = "Make room or choose another output_dir; what was saved before is untouched"
            raise RunError(f"{self._path} could not be written: {error}", option="output_dir", remedy=remedy) from error


def path_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
