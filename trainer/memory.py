"""Precision and memory savers, applied once before the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.errors import Problem
from trainer.lazy import torch
from trainer.schema import Options, opt

if TYPE_CHECKING:
    from torch import dtype

Precision = Literal["no", "fp16", "bf16"]


class MemoryOptions(Options):
    """What trades speed, memory and exactness against one another."""

    title: ClassVar[str] = "Speed and memory"

    mixed_precision: Precision = opt("no")
    """Number format of the calculations: no is float32, bf16 halves the memory on cards from RTX 30 on, fp16 does so on
    older ones. What trains is kept in float32 in any case."""
    gradient_checkpointing: bool = opt(False)
    """Calculates activations twice instead of keeping them: much less memory, up to a third slower, same result."""
    num_cpu_threads: int | None = opt(None, ge=1, le=256)
    """Threads of each training process. Unset: what the launcher gives. A resumed run keeps the number it began with,
    since sums in another order end in other last digits."""

    @property
    def weight_dtype(self) -> dtype:
        """The number format of frozen weights."""
        return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.mixed_precision]


def device_problems(options: MemoryOptions) -> list[Problem]:
    """What this machine cannot do (asks torch, loads no model)."""
    if torch.cuda.is_available():
        if options.mixed_precision == "bf16" and not torch.cuda.is_bf16_supported():
            return [Problem("mixed_precision", "this card cannot calculate in bf16", "bf16", remedy="Use fp16")]
        return []
    if options.mixed_precision == "fp16":
        remedy = "Use mixed_precision no (or bf16), or train on a machine with a graphics card"
        return [Problem("mixed_precision", "no graphics card was found, and fp16 needs one", "fp16", remedy=remedy)]
    return []


def memory_used_mb() -> float:
    """Peak memory in MB: of the graphics card, or of this process where there is none."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e6
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6
