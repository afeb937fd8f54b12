"""Look at a data set without training it: `python -m trainer dataset_report --dataset_config X.toml`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from trainer.config import RunConfig
from trainer.data.config import DataOptions, read_dataset
from trainer.data.dataset import TrainingSet
from trainer.data.gather import survey
from trainer.data.report import VERSION, Note, PlannedDataset, Report, captions_of, report_of, token_notes
from trainer.errors import EXIT_CODE, Problem, TrainerError
from trainer.families.components import VOCABULARY
from trainer.lazy import transformers
from trainer.run_folder import write_atomically
from trainer.schema import Options, opt
from trainer.tasks.base import Command, build_or_say_all, read_arguments

SHOWN = 5
BAR = 40
TITLES = {
    "missing_caption": "pictures without a caption of their own",
    "caption_extension": "captions under another extension",
    "upscaled": "pictures that are enlarged",
    "tiny": "tiny pictures",
    "near_duplicate": "pictures that look alike",
    "too_many_tokens": "captions that are too long",
    "tokens_not_counted": "captions were not measured",
    "reg_surplus": "more regularisation pictures than are used",
}
"""Kind of a warning -> its heading for people."""


class ReportOptions(Options):
    """What the report is written to, and what it measures captions by."""

    title: ClassVar[str] = "Report"

    json_file: Path | None = opt(None, widget="path", aliases=("json",))
    """File to write the report to as JSON (its format: docs/dataset_report.md), beside the text on the screen."""

    progress_json: bool = opt(False)
    """Say on the error stream how far it is, one JSON object a line: {"done": 12, "total": 300}."""

    pretrained_model_name_or_path: str | None = opt(None, widget="model", label="Base model")
    """The base model the pictures are for: captions are measured by its tokenizer, where its folder has one. Unset:
    the tokenizer of Stable Diffusion 1, which most models share."""

    max_token_length: Literal[75, 150, 225] | None = opt(None)
    """Tokens of a caption that the model reads; longer captions are named. Unset: 75."""


@dataclass(frozen=True)
class ReportConfig(RunConfig):
    """Every option of dataset_report."""

    task = "dataset_report"

    data: DataOptions
    report: ReportOptions


def main(argv: Sequence[str]) -> int:
    """Print the report; exit code 2 when files or settings are bad."""
    json_file: Path | None = None
    try:
        values, problems = read_arguments(ReportConfig, COMMAND.about, argv)
        json_file = Path(values["json_file"].value) if "json_file" in values else None
        config = build_or_say_all(ReportConfig, values, problems)
        report = look(config, progress=_say_progress if config.report.progress_json else None)
    except TrainerError as error:
        sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
        _write(json_file, _nothing_but(error.problems))
        return EXIT_CODE
    sys.stdout.write("\n".join(text(report)) + "\n")
    _write(json_file, report.as_json())
    return EXIT_CODE if report.bad_files else 0


def look(config: ReportConfig, *, progress: Callable[[int, int], None] | None = None) -> Report:
    """Scan and plan; bad files are in the report, settings that cannot be right raise."""
    dataset = read_dataset(config.data, sources=config.sources)
    found = survey(dataset.subsets, progress=progress and _Throttle(progress))
    training_set = TrainingSet.of(dataset, found)
    model = config.report.pretrained_model_name_or_path
    return report_of(training_set, found, _long_captions(training_set, model, config.report.max_token_length or 75))


def _long_captions(training_set: TrainingSet, model: str | None, limit: int) -> Iterator[Note]:
    captions = captions_of(training_set)
    texts = list(dict.fromkeys(text for drawn in captions.values() for text in drawn))
    if not any(texts):
        return
    try:
        counts = count_tokens(tokenizer_folder(model), texts)
    except (ImportError, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        yield Note("tokens_not_counted", "", f"the length of captions is not known: no tokenizer ({first})")
        return
    yield from token_notes(captions, dict(zip(texts, counts, strict=True)), limit)


def tokenizer_folder(model: str | None) -> Path:
    """Where the tokenizer of a model lies: in its folder, else the one every Stable Diffusion 1 model has."""
    own = Path(model) / "tokenizer" if model else VOCABULARY
    return own if own.is_dir() else VOCABULARY


def count_tokens(folder: Path, captions: Sequence[str]) -> list[int]:
    """Tokens of each caption, start and end not counted; loads no torch."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    # a caption over the limit is what is looked for, so the warning about it is not wanted
    tokenizer.model_max_length = sys.maxsize
    return [len(ids) for ids in tokenizer(list(captions), add_special_tokens=False).input_ids]


# ---------------------------------------------------------------- JSON and progress


def _nothing_but(problems: Iterable[Problem]) -> dict[str, object]:
    """The report of a data set that could not be looked at."""
    empty: dict[str, object] = {"version": VERSION, "datasets": [], "bad_files": [], "warnings": [], "notes": []}
    return {**empty, "problems": [problem.as_dict() for problem in problems]}


def _write(path: Path | None, report: dict[str, object]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(report, ensure_ascii=False) + "\n")


class _Throttle:
    """Passes on at most ten counts a second, and the last."""

    def __init__(self, say: Callable[[int, int], None]) -> None:
        self._say = say
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last >= 0.1:
            self._last = now
            self._say(done, total)


def _say_progress(done: int, total: int) -> None:
    sys.stderr.write(json.dumps({"done": done, "total": total}) + "\n")
    sys.stderr.flush()


# ---------------------------------------------------------------- text for people


def text(report: Report) -> Iterator[str]:
    """The report as lines."""
    for number, dataset in enumerate(report.datasets, start=1):
        yield from _dataset_text(number, dataset)
    if report.bad_files:
        yield f"{len(report.bad_files)} files or folders cannot be used:"
        yield from (f"  {bad}" for bad in report.bad_files)
        yield ""
    for kind, count in Counter(note.kind for note in report.warnings).items():
        yield f"warning: {TITLES.get(kind, kind)} ({count})"
        notes = [note for note in report.warnings if note.kind == kind]
        yield from (f"  {note.path}: {note.message}" if note.path else f"  {note.message}" for note in notes[:SHOWN])
        if count > SHOWN:
            yield f"  and {count - SHOWN} more"
    yield from (f"note: {note}" for note in report.notes)
    if not (report.bad_files or report.warnings):
        yield "nothing to complain about"


def _dataset_text(number: int, dataset: PlannedDataset) -> Iterator[str]:
    size = f"{dataset.resolution[0]}x{dataset.resolution[1]}"
    yield f"Dataset {number}: resolution {size}, batch size {dataset.batch_size}, " + (
        f"{dataset.steps_per_epoch} steps per epoch"
    )
    for folder in dataset.subsets:
        kind = "regularisation pictures" if folder.is_reg else "pictures"
        captions = ", ".join(f"{count} from {name}" if name != "empty" else f"{count} empty"
                             for name, count in folder.captions.items())  # fmt: skip
        kept_out = f" ({folder.validation} more kept out for validation)" if folder.validation else ""
        place = folder.metadata_file or folder.image_dir
        yield f"  {place}: {folder.pictures} {kind} x {folder.num_repeats}{kept_out}; captions: {captions or 'none'}"
    yield f"  an epoch uses {dataset.uses} pictures and {dataset.reg_uses} regularisation pictures, repeats included"
    most = max((bucket.count for bucket in dataset.buckets), default=0)
    for bucket in dataset.buckets:
        bar = "#" * max(1, round(BAR * bucket.count / most)) if bucket.count else ""
        yield f"  {bucket.size[0]:>5} x {bucket.size[1]:<5} {bucket.count:>6} {bar}".rstrip()
    yield ""


COMMAND = Command(
    ReportConfig.task, "Say what a data set would do in training, and what is wrong with it.", main, ReportConfig
)
