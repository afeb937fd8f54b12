"""The errors a user can meet; each says what is wrong, the value, where it was set and what to do.

    TrainerError                one line for people, exit code 2
    ├── ConfigError             every problem of a configuration at once
    ├── DataError               the pictures or captions
    ├── ModelError              a model file or folder
    ├── RunError                run folders, locks, saving, disk
    └── DependencyError         a package that is missing or does not work here
Programmers' mistakes are `assert`s, never one of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

EXIT_CODE = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration.

    option: flat option name, "" where none fits. value: what was given, as text, None when nothing was.
    source: where it was set ("--seed", "run.toml line 4", "form"). remedy: what to do about it.
    severity: "error" stops a run, "warning" is said and the run goes on.
    """

    option: str
    message: str
    value: str | None = None
    source: str = ""
    remedy: str = ""
    severity: str = "error"

    def __str__(self) -> str:
        got = f" (got {self.value})" if self.value is not None else ""
        where = f", set in {self.source}" if self.source else ""
        remedy = f". {self.remedy}" if self.remedy else ""
        head = f"{self.option}: " if self.option else ""
        return f"{head}{self.message}{got}{where}{remedy}"

    def as_dict(self) -> dict[str, str | None]:
        return asdict(self)


class TrainerError(Exception):
    """Something the user can mend; shown as one line without a traceback."""

    option: str = ""

    def __init__(self, message: str, *, option: str = "", remedy: str = "") -> None:
        super().__init__(f"{message}. {remedy}" if remedy else message)
        self.option = option
        self.problem = Problem(option=option, message=message, remedy=remedy)

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (self.problem,)


class ConfigError(TrainerError):
    """All problems found in one configuration."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._problems = tuple(problems)
        assert self._problems, "a ConfigError needs at least one problem"
        super().__init__("\n".join(str(p) for p in self._problems), option=self._problems[0].option)

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._problems


class DataError(TrainerError):
    """Pictures or captions cannot be used."""


class ModelError(TrainerError):
    """A model file or folder cannot be used."""


class RunError(TrainerError):
    """A run folder, lock, saved file or disk stands in the way."""


class DependencyError(TrainerError):
    """A package is missing or does not work on this machine."""
