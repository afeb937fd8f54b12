"""How a run is laid out before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer import config as run_config
from trainer.data.config import read_dataset
from trainer.data.dataset import TrainingSet
from trainer.store import Sourced
from trainer.tasks.schedule import epoch_planner
from trainer.tasks.train_network import TrainNetworkConfig


@pytest.mark.parametrize("first_asked", [0, 4])
def test_steps_are_counted_through_epochs_of_different_length(tmp_path: Path, first_asked: int) -> None:
    """Regularisation pictures of several shapes take turns, so epochs differ; a resumed run asks for a late one."""
    for name, size in {"1_a/a": (64, 64), "1_a/b": (64, 64)}.items():
        path = tmp_path / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    (tmp_path / "reg" / "1_a").mkdir(parents=True)
    for index, size in enumerate([(64, 64), (64, 64), (64, 64), (64, 128), (128, 64)]):
        Image.new("RGB", size).save(tmp_path / "reg" / "1_a" / f"{index}.png")
    values = {
        "pretrained_model_name_or_path": "model", "train_data_dir": str(tmp_path / "train"), "resolution": "64",
        "reg_data_dir": str(tmp_path / "reg"), "seed": 1, "train_batch_size": 4, "enable_bucket": True,
        "min_bucket_reso": 32, "bucket_reso_steps": 16, "output_name": "x",
    }  # fmt: skip
    config = run_config.build(TrainNetworkConfig, {name: Sourced(value, "test") for name, value in values.items()})
    training_set = TrainingSet.build(read_dataset(config.data))
    plan = epoch_planner(training_set, config, processes=1)
    plan(first_asked)
    steps = [[micro.step for step in plan(epoch) for micro in step.micro_batches[0]] for epoch in range(8)]
    assert len({len(epoch) for epoch in steps}) > 1
    flat = [step for epoch in steps for step in epoch]
    assert flat == list(range(len(flat)))
