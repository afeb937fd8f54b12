"""Stable Diffusion 2.x, base (noise) and 768 (velocity): https://github.com/Stability-AI/stablediffusion"""

from __future__ import annotations

from typing import Any

from trainer.families._stable_diffusion import BANG
from trainer.families.sd1 import StableDiffusion1


class StableDiffusion2(StableDiffusion1):
    """As 1.x, with OpenCLIP ViT-H: of its 24 layers diffusers' encoder has the first 23, and the last of those is read.

    Nothing in a file's keys says whether it predicts noise or velocity.
    """

    kind = "sd2"
    base_model_version = "sd_v2"

    paddings = (BANG,)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.prediction_type == "v_prediction":
            self.default_resolution = 768
