"""Declaring options and reading them back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from trainer.errors import Problem
from trainer.schema import Options, nearest, opt, specs_of, validate


class Fruit(Options):
    title = "Fruit"

    count: int = opt(3, ge=1, le=9, step=1, level="basic", unit="pieces")
    """How many."""
    weight: float | None = opt(None, gt=0)
    """How heavy, of
    each."""
    kind: Literal["apple", "pear"] = opt("apple")
    """Which."""
    peeled: bool = opt(False)
    """Whether."""
    basket: Path = opt(Path("basket"), widget="folder")
    """Where."""
    names: list[str] = opt([])
    """Their names."""
    share: int | float = opt(0, ge=0)
    """A count or a part."""
    tag: str = opt(..., min_length=1)
    """Needed."""

    def problems(self) -> Iterator[Problem]:
        if self.peeled and self.kind == "pear":
            yield Problem("peeled", "pears are not peeled")


SPECS = {spec.name: spec for spec in specs_of(Fruit)}


def test_specs_say_everything_a_form_needs() -> None:
    count = SPECS["count"]
    assert (count.type, count.default, count.ge, count.le, count.step) == (int, 3, 1, 9, 1)
    assert (count.level, count.unit, count.help, count.bounds_text) == ("basic", "pieces", "How many.", "1 to 9")
    assert SPECS["weight"].optional and SPECS["weight"].type is float
    assert SPECS["weight"].help == "How heavy, of each."
    assert SPECS["weight"].bounds_text == "more than 0"
    assert SPECS["kind"].choices == ("apple", "pear")
    assert SPECS["names"].many and SPECS["names"].type is str
    assert SPECS["tag"].required and not SPECS["count"].required


def test_options_are_frozen() -> None:
    fruit = Fruit(tag="x")
    with pytest.raises(Exception, match="frozen"):
        fruit.count = 4  # type: ignore[misc]


def test_all_problems_come_at_once_with_the_value() -> None:
    options, problems = validate(Fruit, {"count": 12, "weight": 0, "kind": "plum", "peeled": "yes", "colour": 1})
    assert options is None
    said = {p.option: str(p) for p in problems}
    assert said["count"] == "count: should be 1 to 9 (got 12)"
    assert said["weight"] == "weight: should be more than 0 (got 0)"
    assert "apple, pear" in said["kind"] and "'plum'" in said["kind"]
    assert "true or false" in said["peeled"]
    assert "colour" in said
    assert "is needed" in said["tag"]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("count", True), ("count", 1.5), ("count", "3"), ("peeled", 1), ("peeled", "on"), ("names", "a"), ("tag", ""),
     ("weight", float("inf")), ("weight", True)],
)  # fmt: skip
def test_nothing_is_silently_changed(name: str, wrong: object) -> None:
    options, problems = validate(Fruit, {"tag": "x", name: wrong})
    assert options is None and [p.option for p in problems] == [name]


def test_a_whole_number_is_a_number_and_a_share_keeps_its_form() -> None:
    options, _ = validate(Fruit, {"tag": "x", "weight": 2, "share": 5})
    assert isinstance(options, Fruit)
    assert options.weight == 2.0 and options.share == 5 and isinstance(options.share, int)


def test_zero_and_empty_are_not_unset() -> None:
    options, _ = validate(Fruit, {"tag": "x", "share": 0})
    assert isinstance(options, Fruit)
    assert options.share == 0 and "share" in options.model_fields_set


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("count", "4", 4), ("count", "1.5", 1.5), ("count", "many", "many"), ("weight", "1e-4", 1e-4),
     ("share", "0.5", 0.5), ("share", "10", 10), ("peeled", "true", True), ("peeled", "yes", "yes"),
     ("tag", " a b ", " a b "), ("kind", "pear", "pear")],
)  # fmt: skip
def test_texts_become_values_once(name: str, text: str, value: object) -> None:
    parsed = SPECS[name].parse(text)
    assert parsed == value and type(parsed) is type(value)


def test_nearest() -> None:
    assert nearest("lerning_rate", ["learning_rate", "seed"]) == "learning_rate"
    assert nearest("zzz", ["learning_rate", "seed"]) == ""


def test_an_option_without_help_is_refused() -> None:
    class Bare(Options):
        x: int = opt(1)

    with pytest.raises(AssertionError, match="help"):
        specs_of(Bare)
