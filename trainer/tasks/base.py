"""What a task is, and the frame every task runs in: configuration, run folder, log, end state."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import config as run_config
from trainer import host
from trainer.config import C, RunConfig, layered
from trainer.errors import EXIT_CODE, ConfigError, Problem, TrainerError
from trainer.events import Error, Events
from trainer.run_folder import RunFolder, Status, holding, output_lock, write_atomically
from trainer.store import Sourced, make_parser, read_config, read_flags, unknown_flags

log = logging.getLogger("trainer")


@dataclass(frozen=True)
class Command:
    """`python -m trainer NAME ARGS`: main takes the arguments after the name and returns the exit code.

    config: the options it takes, where they are declared as options, for the reference page.
    """

    name: str
    about: str
    main: Callable[[Sequence[str]], int]
    config: type[RunConfig] | None = None


@dataclass(frozen=True)
class Task:
    """A job with a configuration and a run folder.

    run: does it. check: what only torch, the model file or the data can tell is wrong, without loading a model.
    name_of: the output name, for the run folder's name. output_dir_of: the folder it writes to
    and no other run shall write to meanwhile, None where it writes into its run folder alone.
    """

    name: str
    about: str
    config: type[RunConfig]
    run: Callable[[Any, RunFolder, Events], None]
    check: Callable[[Any], list[Problem]]
    name_of: Callable[[Any], str]
    output_dir_of: Callable[[Any], Path | None]

    def command(self) -> Command:
        """The task as a command."""
        return Command(self.name, self.about, lambda argv: run_task(self, argv), self.config)


Check = Callable[[Any], Sequence[Problem]]
"""What of a built configuration only the files and the machine can tell is wrong."""


def read_arguments(
    config: type[RunConfig], about: str, argv: Sequence[str]
) -> tuple[dict[str, Sourced], list[Problem]]:
    """(values, problems) of a command line: its --config_file, and flags over it; unknown flags are problems.

    --help ends here. Raises ConfigError for a file that cannot be read.
    """
    specs = run_config.specs(config)
    parser = make_parser(specs, prog=f"python -m trainer {config.task}", description=about)
    parsed, unknown = parser.parse_known_args(list(argv))
    file = vars(parsed).get("config_file")
    values = layered(read_config(Path(file)) if file else {}, read_flags(specs, parsed))
    return values, list(unknown_flags(unknown, specs)) if unknown else []


def build_or_say_all(
    config: type[C], values: Mapping[str, Sourced], problems: Sequence[Problem] = (), *, check: Check = lambda _: ()
) -> C:
    """The configuration; ConfigError with these problems and all others, where anything is wrong in itself.

    What `check` finds is among them then; where nothing is wrong, it is left to the caller.
    """
    try:
        built = run_config.build(config, values)
    except ConfigError:
        raise ConfigError([*problems, *all_problems(config, values, check)]) from None
    if problems:
        raise ConfigError([*problems, *check(built)])
    return built


def all_problems(config: type[RunConfig], values: Mapping[str, Sourced], check: Check) -> list[Problem]:
    """What is wrong with the options themselves, and with the model, folders and disk as far as they can be judged.

    An option is judged unless its group holds a wrong value, which it may depend on.
    """
    first: list[Problem] = []
    wrong: set[str] = set()
    while True:
        try:
            built = run_config.build(config, {k: v for k, v in values.items() if k not in wrong})
            break
        except ConfigError as error:
            first = first or list(error.problems)
            if not {problem.option for problem in error.problems} - wrong:
                return first
            wrong |= {problem.option for problem in error.problems}
    groups = {spec.name: spec.group for spec in run_config.specs(config)}
    doubtful = {groups[name] for name in wrong & groups.keys()}
    # the keys of a dataset file are no options of the task; they belong to the group that names the file
    home = groups.get("dataset_config", "")
    more = [p for p in check(built) if groups.get(p.option, home) not in doubtful]
    return [p for p in (*first, *more) if p.severity == "error"]


def run_task(task: Task, argv: Sequence[str]) -> int:
    """Run a task to its end; whatever happens is written to the run folder. Returns the exit code."""
    is_main = os.environ.get("RANK", "0") == "0"
    _log_to_console(is_main)
    try:
        config = build_or_say_all(task.config, *read_arguments(task.config, task.about, argv), check=task.check)
    except ConfigError as error:
        _say_config_error(error, argv, is_main)
        return EXIT_CODE
    run_dir = config.flat()["run_dir"]
    folder = RunFolder(Path(run_dir).absolute()) if run_dir else _new_folder(task, config, is_main)
    if is_main and folder.events_file.exists():
        remedy = "Leave run_dir out, or name a new folder; a resumed run has a folder of its own, too"
        return _refuse(TrainerError(f"{folder.path} holds a run already", option="run_dir", remedy=remedy))
    folder.path.mkdir(parents=True, exist_ok=True)
    events = Events(folder.events_file if is_main else None)
    supervised = folder.status() is not None and folder.job_file.exists()
    if is_main and not supervised:
        _log_to_file(folder)
        log.info("run folder %s", folder.path)
        output_dir = task.output_dir_of(config)
        lock = holding([output_lock(output_dir)] if output_dir else [], str(folder.path))
        return _with_status(folder, lambda: _run(task, config, folder, events, lock))
    return _run(task, config, folder, events, contextlib.nullcontext())


def _new_folder(task: Task, config: RunConfig, is_main: bool) -> RunFolder:
    root = Path("runs").absolute()
    return RunFolder.create(root, task.name_of(config)) if is_main else RunFolder(root)


def _run(
    task: Task, config: RunConfig, folder: RunFolder, events: Events, lock: contextlib.AbstractContextManager[None]
) -> int:
    """The outermost frame: every error becomes an event, and only here is a bare Exception caught."""
    try:
        found = [*run_config.warnings_of(config), *task.check(config)]
        for problem in found:
            if problem.severity == "warning":
                events.warning(problem.message, problem.option)
        if problems := [p for p in found if p.severity == "error"]:
            raise ConfigError(problems)
        with lock:
            task.run(config, folder, events)
    except TrainerError as error:
        events.emit(Error(str(error), [p.as_dict() for p in error.problems]))
        return EXIT_CODE
    except KeyboardInterrupt:
        events.emit(
            Error("interrupted at the keyboard; a file named stop in the run folder stops it with a resume point")
        )
        return 130
    except Exception as error:
        log.error("%s", traceback.format_exc())
        events.emit(Error(_in_words(error)))
        return 1
    finally:
        events.close()
    return 0


def _in_words(error: Exception) -> str:
    """An unexpected error as a sentence; memory running out is the one users meet."""
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "not enough memory" in first:
        advice = (
            "gradient_checkpointing, a smaller train_batch_size, a lower resolution, or mixed_precision bf16 or fp16"
        )
        return f"memory ran out ({first}). What helps: {advice}"
    return f"{type(error).__name__}: {first}. This is a fault of the program; the log has the details"


def _refuse(error: TrainerError) -> int:
    """Say what is wrong where there is no run to write it to."""
    for problem in error.problems:
        log.error("%s", problem)
    return EXIT_CODE


def _with_status(folder: RunFolder, run: Callable[[], int]) -> int:
    """Without a supervisor the trainer writes its own status."""
    from trainer.supervise import end_of

    me = os.getpid()
    status = Status("running", me, host.process_started(me) or 0.0, begun=time.time())
    folder.write_status(status)
    code = 1
    try:
        code = run()
    finally:
        folder.write_status(end_of(folder, status, code))
    return code


def _say_config_error(error: ConfigError, argv: Sequence[str], is_main: bool) -> None:
    """A configuration that cannot be built has no run folder yet, unless the command line names one."""
    for problem in error.problems:
        log.error("%s", problem)
    words = list(argv)
    if is_main and "--run_dir" in words[:-1]:
        folder = RunFolder(Path(words[words.index("--run_dir") + 1]))
        if folder.path.is_dir() and not folder.events_file.exists():
            events = Events(folder.events_file)
            events.emit(Error(str(error), [p.as_dict() for p in error.problems]))
            events.close()


def _log_to_console(is_main: bool) -> None:
    level = logging.INFO if is_main else logging.ERROR
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    log.setLevel(level)


def _log_to_file(folder: RunFolder) -> None:
    handler = logging.FileHandler(folder.console_log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger().addHandler(handler)


def with_seed(config: Any, field: str) -> Any:
    """The configuration with its seed drawn where it was left unset; `field` is the group that holds it."""
    options = getattr(config, field)
    if options.seed is not None:
        return config
    drawn = options.model_copy(update={"seed": random.SystemRandom().randrange(2**32)})
    return dataclasses.replace(config, **{field: drawn}, sources={**config.sources, "seed": "drawn"})


def write_record(config: RunConfig, folder: RunFolder, facts: dict[str, Any]) -> None:
    """What makes a run repeatable: its configuration with sources, the machine, the packages, data and model."""
    write_atomically(folder.config_file, config.toml())
    sources = {name: config.sources.get(name, "default") for name in config.flat()}
    write_atomically(folder.sources_file, json.dumps(sources, indent=1))
    write_atomically(folder.environment_file, json.dumps({**host.describe(), **facts}, indent=1))
