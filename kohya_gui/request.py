"""What a person asks for on the Train page: checked at once, and written as the files a run is started from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from kohya_gui import pictures
from kohya_gui.settings import Settings
from trainer import host
from trainer.config import build, specs
from trainer.data.config import SubsetOptions
from trainer.errors import ConfigError, Problem, TrainerError
from trainer.formats import prompts
from trainer.formats.model_facts import inspect_model
from trainer.run_folder import ENDED, RunFolder, check_name, list_runs
from trainer.schema import OptionSpec, specs_of, validate
from trainer.store import Sourced, read_config
from trainer.tasks.train_network import TrainNetworkConfig

MODEL = "pretrained_model_name_or_path"
WRITTEN_BY_PAGE = ("train_data_dir", "reg_data_dir", "in_json", "dataset_repeats", "dataset_config", "sample_prompts")
SCHEDULE = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
PROMPT_COLUMNS = ("prompt", "negative", "size", "seed", "steps", "scale")
CLASS_DIR = "reg_image_dir"
PATH_KEYS = ("image_dir", "metadata_file", "conditioning_data_dir")


@dataclass(frozen=True)
class Request:
    """The Train page as typed. options: what the form read; the rest has no option of its own in the task."""

    options: Mapping[str, Sourced]
    pictures: str = ""
    trigger: str = ""
    num_repeats: str = ""
    class_pictures: str = ""
    class_word: str = ""
    prompts: Sequence[Sequence[Any]] = ()

    def value(self, name: str, default: Any = None) -> Any:
        """A typed option, or the default."""
        return self.options[name].value if name in self.options else default

    @property
    def is_dataset(self) -> bool:
        return self.pictures.strip().lower().endswith(".toml")


def spec(name: str) -> OptionSpec:
    """An option of the task, or of a folder of pictures."""
    found = {s.name: s for s in (*specs_of(SubsetOptions), *specs(TrainNetworkConfig))}
    return found[name]


def prepare(request: Request, folder: Path, settings: Settings) -> TrainNetworkConfig:
    """Write config.toml, dataset.toml and prompts.txt into a folder; ConfigError holds every problem at once."""
    run = RunFolder(folder)
    lines, problems = read_prompts(request.prompts)
    problems += list(_picture_problems(request, settings))
    problems += list(_model_problems(request, settings))
    problems += list(_output_problems(request, settings))
    run.prompts_file.write_text("".join(prompts.format_prompt(line) + "\n" for line in lines), encoding="utf-8")
    config: TrainNetworkConfig | None = None
    try:
        config = build(TrainNetworkConfig, option_values(request, run, settings, has_prompts=bool(lines)))
    except ConfigError as error:
        known = {p.option for p in problems}
        problems = [p for p in error.problems if p.option not in known] + problems
    if any(p.severity == "error" for p in problems) or config is None:
        raise ConfigError([p for p in problems if p.severity == "error"])
    run.dataset_file.write_text(dataset_toml(request, settings), encoding="utf-8")
    run.config_file.write_text(config.toml(), encoding="utf-8")
    return config


def option_values(request: Request, run: RunFolder, settings: Settings, *, has_prompts: bool) -> dict[str, Sourced]:
    """The run's options: what was typed, with paths made whole, and the files the page writes."""
    known = {s.name: s for s in specs(TrainNetworkConfig)}
    values = {
        name: Sourced(absolute(str(v.value), settings), v.source) if _is_path(known.get(name)) and v.value else v
        for name, v in request.options.items()
    }
    values.setdefault("output_dir", Sourced(str(settings.outputs), "page"))
    values["dataset_config"] = Sourced(str(run.dataset_file), "page")
    if has_prompts:
        values["sample_prompts"] = Sourced(str(run.prompts_file), "page")
    else:  # an empty table means no sample pictures, and the plan says so
        values = {name: v for name, v in values.items() if name not in SCHEDULE}
    return values


def _is_path(option: OptionSpec | None) -> bool:
    return option is not None and (option.type is Path or option.widget == "model")


def absolute(text: str, settings: Settings) -> str:
    """A typed path, relative ones from the page's home folder."""
    return str(settings.home / Path(text).expanduser()) if text else text


def path_of(text: str, settings: Settings) -> Path:
    return Path(absolute(text.strip(), settings))


# prompts


def read_prompts(rows: Sequence[Sequence[Any]]) -> tuple[list[prompts.PromptLine], list[Problem]]:
    """The table's rows as prompts; rows without a prompt are left out when nothing else stands in them."""
    lines: list[prompts.PromptLine] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows, start=1):
        cells = [" ".join(str("" if cell is None else cell).split()) for cell in row]
        if not any(cells):
            continue
        if not cells[0]:
            problems.append(
                Problem("sample_prompts", f"row {number} has no prompt", remedy="Write one or clear the row")
            )
            continue
        line, found = prompts.parse_line(_prompt_text(cells), source=f"row {number}")
        lines.append(line)
        problems += found
    return lines, problems


def _prompt_text(cells: Sequence[str]) -> str:
    prompt, negative, size, seed, steps, scale = (*cells, *[""] * len(PROMPT_COLUMNS))[: len(PROMPT_COLUMNS)]
    width, _, height = re.sub(r"[×,*]", "x", size.lower()).partition("x")
    options = {"n": negative, "w": width, "h": height or width, "d": seed, "s": steps, "l": scale}
    return prompt + "".join(f" --{letter} {value.strip()}" for letter, value in options.items() if value.strip())


def prompt_rows(lines: Sequence[prompts.PromptLine]) -> list[list[str]]:
    """Prompts as rows of the table."""
    rows = []
    for line in lines:
        size = (
            ""
            if line.width is None
            else f"{line.width}"
            if line.width == line.height
            else f"{line.width}x{line.height}"
        )
        numbers = [
            "" if n is None else f"{n:g}" if isinstance(n, float) else str(n)
            for n in (line.seed, line.steps, line.scale)
        ]
        rows.append([line.prompt, line.negative_prompt or "", size, *numbers])
    return rows


# what can be seen at once


def _picture_problems(request: Request, settings: Settings) -> Iterator[Problem]:
    if not request.pictures.strip():
        remedy = "Choose a folder, or drop pictures into the box beside it"
        yield Problem("image_dir", "no pictures are chosen", remedy=remedy)
        return
    seen = pictures.look(path_of(request.pictures, settings))
    if seen.problem:
        yield Problem("image_dir", seen.problem, request.pictures)
        return
    if request.is_dataset:
        return
    if seen.captions < seen.pictures and not request.trigger.strip():
        count = (
            f"{seen.pictures - seen.captions} of {seen.pictures} pictures have"
            if seen.captions
            else "the pictures have"
        )
        remedy = "Write the words that shall call up what is in them, such as: sks house"
        yield Problem("class_tokens", f"{count} no captions", remedy=remedy)
    repeats = spec("num_repeats").parse(request.num_repeats) if request.num_repeats.strip() else 1
    found = validate(SubsetOptions, {"image_dir": "x", "num_repeats": repeats})[1]
    yield from (p for p in found if p.option == "num_repeats")
    if repeats == 0:
        yield Problem("num_repeats", "with 0 repeats no picture is used", "0", remedy="Write 1 or more")
    yield from _class_problems(request, settings)


def _class_problems(request: Request, settings: Settings) -> Iterator[Problem]:
    if not request.class_pictures.strip():
        return
    seen = pictures.look(path_of(request.class_pictures, settings))
    if seen.problem:
        yield Problem(CLASS_DIR, seen.problem, request.class_pictures)
    elif seen.captions < seen.pictures and not request.class_word.strip():
        remedy = "Write what they show in general, such as: house"
        yield Problem("class_word", "the class pictures have no captions of their own", remedy=remedy)


def _model_problems(request: Request, settings: Settings) -> Iterator[Problem]:
    text = str(request.value(MODEL, ""))
    if not text.strip():
        return  # the missing option is reported by its own declaration
    try:
        inspect_model(path_of(text, settings))
    except TrainerError as error:
        yield from (dataclasses.replace(p, option=MODEL) for p in error.problems)


def _output_problems(request: Request, settings: Settings) -> Iterator[Problem]:
    folder = output_folder(request, settings)
    name = str(request.value("output_name", spec("output_name").default))
    above = folder
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        yield Problem("output_dir", f"{above} is a file, not a folder", str(folder), remedy="Choose another folder")
    elif not host.is_writable(folder):
        yield Problem("output_dir", "cannot be written to", str(folder), remedy="Choose a folder of your own")
    elif not check_name(name) and not request.value("overwrite", False):
        yield from _name_problems(folder, name, settings)


def _name_problems(folder: Path, name: str, settings: Settings) -> Iterator[Problem]:
    free = f"The name {free_name(folder, name, settings)} is free"
    if running := living_run(folder, name, settings):
        yield Problem("output_name", f"the run {running} is training a model of this name right now", name, remedy=free)
    elif taken := taken_by(folder, name):
        yield Problem("output_name", f"{taken} exists already and is not overwritten", name, remedy=free)


# names


def output_folder(request: Request, settings: Settings) -> Path:
    """Where the finished model goes."""
    typed = str(request.value("output_dir", ""))
    return path_of(typed, settings) if typed else settings.outputs


def taken_by(folder: Path, name: str) -> Path | None:
    """A file or resume point that a run of this name made earlier."""
    ours = re.compile(rf"{re.escape(name)}(-\d{{6}}|-step\d{{8}})?(-state|\.safetensors)", re.IGNORECASE)
    if not folder.is_dir():
        return None
    try:
        return next((p for p in sorted(folder.iterdir()) if ours.fullmatch(p.name)), None)
    except OSError:
        return None


def living_run(folder: Path, name: str, settings: Settings) -> str:
    """The name of a run that is under way (or queued) and will write files of this name, "" when none is."""
    for run in list_runs(settings.runs):
        status = run.status()
        if status is None or status.state in ENDED:
            continue
        try:
            values = read_config(run.config_file)
        except TrainerError:
            continue
        same = values.get("output_name"), values.get("output_dir")
        if all(same) and (str(same[0].value), Path(str(same[1].value))) == (name, folder):  # type: ignore[union-attr]
            return run.path.name
    return ""


def free_name(folder: Path, name: str, settings: Settings) -> str:
    """name, or name-2, name-3, ... : the first that no file and no living run has; name-2 is followed by name-3."""
    counted = re.fullmatch(r"(.+)-([2-9]|[1-9]\d)", name)
    stem, first = (counted[1], int(counted[2])) if counted else (name, 1)
    for number in range(first, 10_000):
        tried = stem if number == 1 else f"{stem}-{number}"
        if taken_by(folder, tried) is None and not living_run(folder, tried, settings):
            return tried
    raise AssertionError(f"ten thousand models named {name}")


# the dataset file


def dataset_toml(request: Request, settings: Settings) -> str:
    """The dataset file of a run, in kohya's keys; of a saved data set a copy with whole paths."""
    source = path_of(request.pictures, settings)
    if request.is_dataset:
        return _copied_dataset(source)
    seen = pictures.look(source)
    extension = str(request.value("caption_extension", "")) or seen.extension
    repeats = spec("num_repeats").parse(request.num_repeats) if request.num_repeats.strip() else 1
    subsets = [_subset(source, num_repeats=repeats, class_tokens=request.trigger.strip(), caption_extension=extension)]
    if request.class_pictures.strip():
        folder = path_of(request.class_pictures, settings)
        own = pictures.look(folder).extension
        word = request.class_word.strip()
        subsets.append(_subset(folder, is_reg=True, num_repeats=1, class_tokens=word, caption_extension=own))
    document = tomlkit.document()
    document.add(tomlkit.comment("written by the Train page; size and batch stand in config.toml"))
    tables = tomlkit.aot()
    for values in subsets:
        tables.append(tomlkit.item(values))
    dataset = tomlkit.table()
    dataset["subsets"] = tables
    datasets = tomlkit.aot()
    datasets.append(dataset)
    document["datasets"] = datasets
    return tomlkit.dumps(document)


def _subset(folder: Path, **values: Any) -> dict[str, Any]:
    """A subset's table; empty texts are left out, so that the defaults count."""
    return {"image_dir": str(folder), **{k: v for k, v in values.items() if v != ""}}


def _copied_dataset(path: Path) -> str:
    document = tomlkit.parse(path.read_text(encoding="utf-8-sig"))
    for dataset in document.get("datasets", []):
        for subset in dataset.get("subsets", []):
            for key in (key for key in PATH_KEYS if subset.get(key)):
                given = Path(str(subset[key]))
                if not given.is_absolute():
                    here = given.absolute()
                    subset[key] = str(here if here.exists() else (path.parent / given).resolve())
    return tomlkit.dumps(document)
