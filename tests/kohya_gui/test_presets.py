"""Presets: every shipped one loads, a patch changes what it says, and saving leaves paths and secrets out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import presets
from kohya_gui.settings import Settings
from trainer.config import specs
from trainer.errors import ConfigError
from trainer.store import Preset
from trainer.tasks.train_network import TrainNetworkConfig

TASK = TrainNetworkConfig.task
SHIPPED = sorted((Settings.of(Path()).shipped_presets / TASK).glob("*.json"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.of(tmp_path)


def write(settings: Settings, name: str, values: dict[str, Any], **more: Any) -> None:
    folder = settings.user_presets / TASK
    folder.mkdir(parents=True, exist_ok=True)
    body = {"preset_version": 1, "task": TASK, "values": values, **more}
    (folder / f"{name}.json").write_text(json.dumps(body), encoding="utf-8")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_preset_is_right(settings: Settings, path: Path) -> None:
    loaded = presets.load(settings, TrainNetworkConfig, path.stem)
    assert loaded.problems == ()
    assert loaded.values == loaded.preset.values
    assert loaded.preset.about


def test_memory_presets_set_the_same_options(settings: Settings) -> None:
    found = presets.memory_presets(settings, TrainNetworkConfig)
    assert len(found) >= 3
    assert len({tuple(preset.values) for preset in found.values()}) == 1


def test_memory_presets_are_not_in_the_list(settings: Settings) -> None:
    assert not any(name.startswith(presets.MEMORY) for name in presets.names(settings, TASK))
    assert {"example-house", "sd15-lora"} <= set(presets.names(settings, TASK))


def test_saved_preset_holds_differences_only_and_no_paths(settings: Settings, tmp_path: Path) -> None:
    values = {
        "pretrained_model_name_or_path": "/secret/place/model.safetensors",
        "output_name": "me",
        "output_dir": str(tmp_path),
        "network_dim": 32,
        "max_grad_norm": 1.0,
        "learning_rate": 1e-4,
    }
    path = presets.save(settings, TrainNetworkConfig, "mine", values)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["task"] == TASK and saved["preset_version"] == 1
    assert saved["values"]["network_dim"] == 32 and saved["values"]["learning_rate"] == 1e-4
    assert not {"pretrained_model_name_or_path", "output_name", "output_dir", "max_grad_norm"} & set(saved["values"])
    assert "user/mine" in presets.names(settings, TASK)
    loaded = presets.load(settings, TrainNetworkConfig, "user/mine")
    assert loaded.values == saved["values"] and not loaded.problems


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "CON", "x" * 300, "memory-mine", ".hidden"])
def test_names_stay_in_the_folder(settings: Settings, name: str) -> None:
    with pytest.raises(ConfigError):
        presets.save(settings, TrainNetworkConfig, name, {})
    assert not list(settings.home.rglob("*.json"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "user/../../x", "nothing", ""])
def test_only_listed_presets_are_read(settings: Settings, name: str) -> None:
    with pytest.raises(ConfigError):
        presets.load(settings, TrainNetworkConfig, name)


def test_unknown_and_wrong_keys_are_each_listed_and_the_rest_is_used(settings: Settings) -> None:
    write(settings, "odd", {"network_dims": 8, "network_dim": "many", "learning_rate": 0.001, "output_dir": "/x"})
    loaded = presets.load(settings, TrainNetworkConfig, "user/odd")
    assert loaded.values == {"learning_rate": 0.001}
    assert [p.option for p in loaded.problems] == ["network_dims", "network_dim", "output_dir"]
    assert "network_dim" in loaded.problems[0].remedy
    assert all(p.source == "preset odd" for p in loaded.problems)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("not json", "JSON"),
        ("[1, 2]", "not a preset"),
        ('{"preset_version": 99, "task": "train_network", "values": {}}', "version 99"),
        ('{"preset_version": 1, "values": {}}', "task"),
        ('{"preset_version": 1, "task": "train_db", "values": {}}', "task"),
    ],
)
def test_files_that_are_no_preset_say_why(tmp_path: Path, body: str, said: str) -> None:
    path = tmp_path / "upload.json"
    path.write_text(body, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        presets.load_file(TrainNetworkConfig, path)


def test_loading_is_a_patch_over_the_defaults_but_keeps_paths() -> None:
    before = {"pretrained_model_name_or_path": "/m", "output_name": "me", "network_dim": 64, "noise_offset": 0.1}
    patch = {"network_dim": 8}
    after = presets.patched(TrainNetworkConfig, before, patch)
    assert after == {"pretrained_model_name_or_path": "/m", "output_name": "me", "network_dim": 8}
    found = presets.differences(specs(TrainNetworkConfig), before, after)
    assert sorted(found) == [("network_dim", 64, 8), ("noise_offset", 0.1, 0.0)]


def test_checking_never_imports_what_a_preset_names() -> None:
    preset = Preset("evil", TASK, {"optimizer_type": "os.system", "network_module": "evil_module"})
    loaded = presets.check(TrainNetworkConfig, preset)
    assert dataclasses.is_dataclass(loaded)
    import sys

    assert "evil_module" not in sys.modules
