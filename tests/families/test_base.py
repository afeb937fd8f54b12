"""Finding the family of a model, early errors, and that none of it imports torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.formats.test_model_facts import REFINER_KEYS, SD1_KEYS, write
from trainer.errors import ConfigError, ModelError
from trainer.families.base import ModelOptions, find_family
from trainer.families.sd1 import StableDiffusion1
from trainer.schema import specs_of, validate


def options(path: Path, **more: bool) -> ModelOptions:
    return ModelOptions(pretrained_model_name_or_path=str(path), **more)


def test_nothing_heavy_is_imported(tiny_folder: Path) -> None:
    code = (
        "import sys\n"
        "import trainer.families.base as families, trainer.adapters.lora, trainer.optim.optimizers\n"
        "import trainer.optim.schedules, trainer.methods.adapter, trainer.formats.single_file\n"
        f"families.find_family(families.ModelOptions(pretrained_model_name_or_path={str(tiny_folder)!r}))\n"
        "list(trainer.adapters.lora.AdapterOptions().problems())\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'peft', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_find(tiny_folder: Path) -> None:
    family, facts = find_family(options(tiny_folder))
    assert family is StableDiffusion1
    assert facts.kind == family.kind == "sd1"


def test_models_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is the Stable Diffusion XL refiner, which this version cannot train yet"):
        find_family(options(write(tmp_path / "m.safetensors", REFINER_KEYS)))


def test_contradictions(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_family(options(tiny_folder, v2=True, v_parameterization=True))
    assert [p.option for p in caught.value.problems] == ["v2", "v_parameterization"]
    assert "Stable Diffusion 1.x, not Stable Diffusion 2" in str(caught.value)


def test_a_silent_file_contradicts_nothing(tmp_path: Path) -> None:
    find_family(options(write(tmp_path / "m.safetensors", SD1_KEYS), v_parameterization=True))
    loud = write(tmp_path / "n.safetensors", SD1_KEYS, metadata={"modelspec.prediction_type": "epsilon"})
    with pytest.raises(ConfigError, match="predicts noise"):
        find_family(options(loud, v_parameterization=True))


def test_options() -> None:
    specs = {spec.name: spec for spec in specs_of(ModelOptions)}
    assert specs["pretrained_model_name_or_path"].required
    assert specs["model_config_folder"].aliases == ("model_config",)
    _, (problem,) = validate(ModelOptions, {"pretrained_model_name_or_path": "x", "clip_skip": 0})
    assert problem.option == "clip_skip"
    _, (problem,) = validate(ModelOptions, {"pretrained_model_name_or_path": ""})
    assert "must not be empty" in problem.message
