"""Find the one-file plug-ins of a package: every class with a `kind` in `trainer/adapters/*.py`, say.

Adding a plug-in is adding its file; nothing else lists it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import TypeVar

T = TypeVar("T")


@cache
def discover(package: str, base: type[T]) -> dict[str, type[T]]:
    """kind -> class for all non-abstract subclasses of `base` in the package's modules, sorted by kind.

    Private modules (`_x.py`) and `base` are not searched. Two plug-ins of one kind are a programmer's error.
    """
    found: dict[str, type[T]] = {}
    root = importlib.import_module(package)
    for info in pkgutil.iter_modules(root.__path__):
        if info.name.startswith("_") or info.name == "base" or info.ispkg:
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for _, candidate in inspect.getmembers(module, inspect.isclass):
            if issubclass(candidate, base) and candidate.__module__ == module.__name__:
                kind: str = vars(candidate)["kind"]
                assert kind not in found, f"{kind} is declared by {found.get(kind)} and {candidate}"
                found[kind] = candidate
    return dict(sorted(found.items()))
