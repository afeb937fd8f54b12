"""kohya's sampler names and the diffusers schedulers they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.errors import ConfigError, Problem
from trainer.lazy import diffusers
from trainer.schema import nearest

SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "k_lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "k_euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "k_euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "k_dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "k_dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
}
"""Name -> (class of diffusers, what it gets beside the model's own scheduler config)."""

SAMPLER_NAMES = tuple(SAMPLERS)


def build_scheduler(sampler: str, config: Mapping[str, Any]) -> Any:
    """The scheduler of that name with the model's betas and prediction type."""
    if sampler not in SAMPLERS:
        near = nearest(sampler, SAMPLER_NAMES)
        remedy = f"Known: {', '.join(SAMPLER_NAMES)}" + (f". Did you mean {near}?" if near else "")
        raise ConfigError([Problem("sample_sampler", "is not a sampler this version knows", sampler, remedy=remedy)])
    name, more = SAMPLERS[sampler]
    # what diffusers' pipeline would put in place of outdated values, with a warning
    expected = {"clip_sample": False, "steps_offset": 1}
    return getattr(diffusers, name).from_config({**config, **expected, **more})
