"""Reach heavy libraries by name without importing them until the first attribute is used.

`from trainer.lazy import torch` costs nothing, so files that hold Options stay importable by the page, which never
loads torch. Type checkers see the real modules.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import accelerate
    import diffusers
    import peft
    import torch
    import transformers

    __all__ = ["accelerate", "diffusers", "peft", "torch", "transformers"]
else:

    class _Lazy(ModuleType):
        """Stands in for a module; the first attribute imports it, and found attributes are kept."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    accelerate = _Lazy("accelerate")
    diffusers = _Lazy("diffusers")
    peft = _Lazy("peft")
    torch = _Lazy("torch")
    transformers = _Lazy("transformers")
