"""Free arguments as people write them, `weight_decay=0.01 betas=0.9,0.99`, checked against what takes them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

from trainer.errors import Problem


def parse(option: str, texts: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """key=value texts as keyword arguments, and what is wrong with them. option: where they were written."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            problems.append(Problem(option, "should be key=value", text, remedy="As in weight_decay=0.01"))
            continue
        if key in values:
            problems.append(Problem(option, f"{key} is given twice", text))
        try:
            values[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            remedy = f'Text needs quotes: {key}="..."'
            problems.append(Problem(option, "the value cannot be read", text, remedy=remedy))
    return values, problems


def unknown(
    option: str, values: dict[str, Any], takes: Callable[..., object], *, ours: Collection[str]
) -> list[Problem]:
    """Arguments that this class or function does not have. ours: those that other options or the program itself set."""
    allowed = [name for name in inspect.signature(takes).parameters if name not in ours]
    return [
        Problem(
            option,
            f"{takes.__name__} has no argument {key} to set here",
            f"{key}={value!r}",
            remedy="The rate is set with learning_rate" if key == "lr" else f"It has {', '.join(allowed)}",
        )
        for key, value in values.items()
        if key not in allowed
    ]
