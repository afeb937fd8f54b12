"""An option is a typed field with a docstring in an `Options` class; this module reads such classes.

Everything else (form field, flag, TOML key, preset key, reference page, range check) is derived from the `OptionSpec`
that `specs_of` makes of each field.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_json

from trainer.errors import Problem

Level = Literal["basic", "advanced"]
Widget = Literal["", "path", "folder", "model", "text", "prompts", "slider"]


class Options(BaseModel):
    """A group of options standing beside the code that uses them. Frozen, strict, unknown names refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    title: ClassVar[str] = ""
    """Heading of the group in the form, in `--help` and in the reference page."""

    def problems(self) -> Iterator[Problem]:
        """What is wrong between the options of this group; ranges and types are checked before."""
        yield from ()


def opt(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    step: float | None = None,
    unit: str = "",
    level: Level = "advanced",
    label: str = "",
    widget: Widget = "",
    secret: bool = False,
    aliases: Sequence[str] = (),
    min_length: int | None = None,
) -> Any:
    """Declare an option: its default, bounds, and how it is shown. `...` as default means required."""
    extra: dict[str, Any] = {
        "step": step,
        "unit": unit,
        "level": level,
        "label": label,
        "widget": widget,
        "secret": secret,
        "aliases": list(aliases),
    }
    bounds: dict[str, Any] = {"ge": ge, "gt": gt, "le": le, "lt": lt, "min_length": min_length}
    return Field(default, json_schema_extra={"studio": extra}, **{k: v for k, v in bounds.items() if v is not None})


@dataclass(frozen=True)
class OptionSpec:
    """One option as every derived form sees it.

    type: bool, int, float, str or Path; of the elements when `many`. default: PydanticUndefined when required.
    when: option name -> values for which this option has a meaning; empty means always.
    """

    name: str
    group: str
    field: str
    owner: type[Options]
    type: type
    many: bool
    optional: bool
    default: Any
    help: str
    label: str
    unit: str
    choices: tuple[Any, ...]
    ge: float | None
    gt: float | None
    le: float | None
    lt: float | None
    step: float | None
    level: Level
    widget: Widget
    secret: bool
    aliases: tuple[str, ...]
    when: Mapping[str, tuple[str, ...]]

    @property
    def required(self) -> bool:
        return self.default is PydanticUndefined

    @property
    def bounds_text(self) -> str:
        """ "0 to 1", "at least 1", "more than 0" or "" - for help and messages."""
        low = self.ge if self.ge is not None else self.gt
        high = self.le if self.le is not None else self.lt
        low_word = "at least" if self.gt is None else "more than"
        high_word = "at most" if self.lt is None else "less than"
        if low is not None and high is not None and self.gt is None and self.lt is None:
            return f"{low:g} to {high:g}"
        parts = [f"{low_word} {low:g}"] if low is not None else []
        parts += [f"{high_word} {high:g}"] if high is not None else []
        return ", ".join(parts)

    def parse(self, text: str) -> Any:
        """One text (a flag's argument, a form's box) as a value of this option's type; wrong text stays text,
        so that validation reports it in the same words as everywhere else."""
        text = text.strip() if self.type in (int, float, bool) else text
        if self.type is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if self.type in (int, float) or (self.choices and all(isinstance(c, int) for c in self.choices)):
            for convert in (int, float):
                try:
                    number = convert(text)
                except ValueError:
                    continue
                return number
        return text


def specs_of(
    owner: type[Options], group: str = "", when: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[OptionSpec, ...]:
    """The options of one class in order of declaration."""
    return tuple(_spec(owner, name, info, group, when or {}) for name, info in owner.model_fields.items())


def _spec(
    owner: type[Options], name: str, info: FieldInfo, group: str, when: Mapping[str, tuple[str, ...]]
) -> OptionSpec:
    kind, many, optional, choices = _read_annotation(info.annotation)
    extra = info.json_schema_extra
    studio = extra["studio"] if isinstance(extra, dict) else {}
    assert isinstance(studio, dict), f"{owner.__name__}.{name} is not declared with opt()"
    bounds = {key: getattr(m, key) for m in info.metadata for key in ("ge", "gt", "le", "lt") if hasattr(m, key)}
    assert info.description, f"{owner.__name__}.{name} needs a docstring: it is the option's help"
    return OptionSpec(
        name=name,
        group=group,
        field=group,
        owner=owner,
        type=kind,
        many=many,
        optional=optional,
        default=info.default,
        help=" ".join(info.description.split()),
        label=str(studio.get("label") or name.replace("_", " ").capitalize()),
        unit=str(studio.get("unit") or ""),
        choices=choices,
        ge=bounds.get("ge"),
        gt=bounds.get("gt"),
        le=bounds.get("le"),
        lt=bounds.get("lt"),
        step=typing.cast("float | None", studio.get("step")),
        level=typing.cast("Level", studio.get("level") or "advanced"),
        widget=typing.cast("Widget", studio.get("widget") or ""),
        secret=bool(studio.get("secret")),
        aliases=tuple(typing.cast("Sequence[str]", studio.get("aliases") or ())),
        when=when,
    )


def _read_annotation(annotation: Any) -> tuple[type, bool, bool, tuple[Any, ...]]:
    """(type, many, optional, choices) of `X`, `X | None`, `list[X]` and Literals."""
    optional, many = False, False
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        optional = len(members) < len(typing.get_args(annotation))
        # `int | float` (a count or a fraction) reads as float: both are accepted and kept as typed
        annotation = float if set(members) == {int, float} else members[0]
    if typing.get_origin(annotation) is list:
        many = True
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return type(choices[0]), many, optional, choices
    assert annotation in (bool, int, float, str, Path), f"options cannot be of type {annotation}"
    return annotation, many, optional, ()


def validate(owner: type[Options], values: Mapping[str, Any]) -> tuple[Options | None, list[Problem]]:
    """Build one group from plain values, strictly; on failure None and every problem (without sources)."""
    try:
        return owner.model_validate_json(to_json(dict(values)), strict=True), []
    except ValidationError as error:
        specs = {s.name: s for s in specs_of(owner)}
        found: dict[str, Problem] = {}
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            found.setdefault(name, _problem(specs.get(name), name, values, item["type"]))
        return None, list(found.values())


def _problem(spec: OptionSpec | None, name: str, values: Mapping[str, Any], kind: str) -> Problem:
    given = None if name not in values else repr(values[name]) if values[name] != "" else "nothing"
    if spec is None:
        return Problem(name, "is not an option here", given)
    if kind == "missing":
        return Problem(name, "is needed and not set", remedy=spec.help)
    if kind in ("too_short", "string_too_short"):
        return Problem(name, "must not be empty", remedy=spec.help)
    if spec.choices:
        return Problem(name, f"should be one of {', '.join(map(str, spec.choices))}", given)
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        return Problem(name, f"should be {spec.bounds_text}", given)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}[spec.type]
    return Problem(name, f"should be {'a list, each ' if spec.many else ''}{wanted}", given)


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name a mistyped one most likely meant, "" when none is near."""
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), "")
