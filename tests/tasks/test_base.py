"""Everything wrong with a configuration is said in one go."""

from __future__ import annotations

from pathlib import Path

from trainer.store import Sourced
from trainer.tasks import commands
from trainer.tasks.base import all_problems
from trainer.tasks.train_network import TASK


def test_a_wrong_option_does_not_hide_a_wrong_model_or_folder(tmp_path: Path) -> None:
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html></html>")
    values = {
        "pretrained_model_name_or_path": Sourced(str(page), "--pretrained_model_name_or_path"),
        "dataset_config": Sourced(str(tmp_path / "nowhere.toml"), "--dataset_config"),
        "output_dir": Sourced(str(page), "--output_dir"),
        "learning_rate": Sourced("fast", "--learning_rate"),
        "learning_rat": Sourced("1e-4", "my.toml"),
    }
    said = {problem.option: problem for problem in all_problems(TASK.config, values, TASK.check)}
    assert {*values} <= said.keys()
    assert said["pretrained_model_name_or_path"].source == "--pretrained_model_name_or_path"


def test_what_depends_on_a_wrong_value_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "5_cat").mkdir()
    values = {
        "pretrained_model_name_or_path": Sourced(str(tmp_path / "no model"), "--pretrained_model_name_or_path"),
        "train_data_dir": Sourced(str(tmp_path), "--train_data_dir"),
        "output_dir": Sourced(str(tmp_path), "--output_dir"),
        "resolution": Sourced("1o24", "--resolution"),
        "enable_bucket": Sourced(True, "--enable_bucket"),
        # right for 1024, too much for the default 512 that stands in for the misspelt one
        "min_bucket_reso": Sourced(768, "--min_bucket_reso"),
    }
    assert {problem.option for problem in all_problems(TASK.config, values, TASK.check)} == {
        "resolution",
        "pretrained_model_name_or_path",
    }


def test_scripts_of_kohyas_are_tasks() -> None:
    own = {"train_network", "train_db", "fine_tune", "train_textual_inversion"}
    assert own | {"sdxl_train_network", "sdxl_train", "sdxl_train_textual_inversion"} <= commands().keys()
