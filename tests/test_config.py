"""A task's configuration from flat values: slots, sources, all errors at once."""

import dataclasses
from pathlib import Path

import pytest

from trainer import config as run_config
from trainer.errors import ConfigError
from trainer.store import Sourced, read_config
from trainer.tasks import tasks
from trainer.tasks.train_network import TrainNetworkConfig

SPECS = run_config.specs(TrainNetworkConfig)


def given(**values: object) -> dict[str, Sourced]:
    base = {"pretrained_model_name_or_path": "m", "dataset_config": "d.toml"}
    return {name: Sourced(value, f"--{name}") for name, value in {**base, **values}.items()}


def problems_of(**values: object) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        run_config.build(TrainNetworkConfig, given(**values))
    return {p.option: str(p) for p in caught.value.problems}


@pytest.mark.parametrize("name", list(tasks()))
def test_names_are_unique_within_a_task(name: str) -> None:
    names = [spec.name for spec in run_config.specs(tasks()[name].config)]
    assert len(names) == len(set(names))


def test_defaults_are_kohyas() -> None:
    flat = run_config.build(TrainNetworkConfig, given()).flat()
    expected = {
        "network_module": "networks.lora", "network_dim": 4, "network_alpha": 1.0, "learning_rate": 2e-6,
        "max_train_steps": 1600, "max_train_epochs": None, "train_batch_size": 1, "resolution": "512",
        "lr_scheduler": "constant", "max_grad_norm": 1.0, "noise_offset": 0.0, "min_snr_gamma": None,
        "mixed_precision": "no", "gradient_accumulation_steps": 1, "prior_loss_weight": 1.0, "seed": None,
        "caption_extension": ".caption", "min_bucket_reso": 256, "max_bucket_reso": 1024, "bucket_reso_steps": 64,
    }  # fmt: skip
    assert {name: flat[name] for name in expected} == expected


def test_every_error_is_reported_with_its_source() -> None:
    said = problems_of(noise_offset=5, network_dim=0, lerning_rate=1, network_module="networks.lokr", seed=-1)
    assert said["noise_offset"] == "noise_offset: should be 0 to 1 (got 5), set in --noise_offset"
    assert "Did you mean learning_rate?" in said["lerning_rate"]
    assert set(said) >= {"noise_offset", "network_dim", "lerning_rate", "network_module", "seed"}


def test_what_no_group_sees_alone_is_checked() -> None:
    said = problems_of(resume="a-state", network_weights="b.safetensors")
    assert "network_weights" in said


def test_an_alias_is_the_option() -> None:
    built = run_config.build(TrainNetworkConfig, given(caption_extention=".txt"))
    assert built.data.caption_extension == ".txt"


def test_sources_are_kept() -> None:
    built = run_config.build(TrainNetworkConfig, given(seed=0))
    assert built.length.seed == 0
    assert built.sources["seed"] == "--seed" and "network_dim" not in built.sources


def test_the_toml_gives_the_configuration_back(tmp_path: Path) -> None:
    built = run_config.build(
        TrainNetworkConfig,
        given(learning_rate=1e-4, noise_offset=0.0, optimizer_args=["weight_decay=0.1"], training_comment='a "b"\nü'),
    )
    (tmp_path / "x.toml").write_text(built.toml(), encoding="utf-8")
    again = run_config.build(TrainNetworkConfig, read_config(tmp_path / "x.toml"))
    assert again.flat() == built.flat()
    assert again.sources["learning_rate"].startswith("x.toml line ")


def test_later_layers_win() -> None:
    merged = run_config.layered({"seed": Sourced(1, "x.toml line 3")}, {"seed": Sourced(0, "--seed")})
    assert merged["seed"] == Sourced(0, "--seed")


def test_only_what_differs_goes_into_a_preset_and_always_the_kind() -> None:
    built = run_config.build(TrainNetworkConfig, given(network_dim=16))
    changed = run_config.changed(TrainNetworkConfig, built.flat())
    assert changed["network_dim"] == 16 and changed["network_module"] == "networks.lora"
    assert "noise_offset" not in changed


def test_every_option_has_bounds_or_a_reason() -> None:
    # help is asserted by specs_of; a number that is never unset needs a lower bound, or a form cannot draw it
    open_ended = [s.name for s in SPECS if s.type in (int, float) and s.ge is None and s.gt is None and not s.choices]
    assert open_ended == []


def test_config_is_frozen() -> None:
    built = run_config.build(TrainNetworkConfig, given())
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.length = built.length  # type: ignore[misc]
