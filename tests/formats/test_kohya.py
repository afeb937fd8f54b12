"""Names, metadata and saving, against a file sd-scripts wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from trainer.errors import ModelError, RunError
from trainer.formats import kohya
from trainer.formats.model_facts import read_header

REFERENCE = Path("tests/vectors/sdscripts_lora_dim4.safetensors")
RUN = kohya.RunFacts(
    session_id=1,
    started_at=1.5,
    finished_at=None,
    output_name="x",
    num_train_images=24,
    num_reg_images=0,
    num_batches_per_epoch=12,
    num_epochs=2,
    epoch=2,
    steps=20,
    max_train_steps=20,
    base_model_version="sd_v1",
    optimizer="torch.optim.adamw.AdamW",
    model_name="sd15",
    model_hash="IsADirectory",
    new_model_hash="IsADirectory",
    dataset_dirs={"photos": {"n_repeats": 2, "img_count": 12}},
)


def test_names() -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert kohya.lora_name("lora_unet", path) == (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    )
    expected = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert kohya.lora_name("lora_te", "encoder.layers.0.mlp.fc1", level="text_model") == expected
    assert kohya.lora_name("lora_te", "text_model.encoder.layers.0.mlp.fc1", level="text_model") == expected


def test_ss_keys_are_sd_scripts_keys() -> None:
    reference = read_header(REFERENCE).metadata
    ours = kohya.training_metadata({"network_dim": 4, "network_alpha": 2.0, "seed": 12, "learning_rate": 1e-3}, RUN)
    wanted = {key for key in reference if key.startswith("ss_")} - {"ss_sd_scripts_commit_hash"}
    assert set(ours) == wanted
    for key in ("ss_network_dim", "ss_network_alpha", "ss_seed", "ss_learning_rate", "ss_optimizer", "ss_dataset_dirs"):
        assert ours[key] == reference[key]
    # everything that this call leaves at its default reads as it does there
    told = {"session_id", "training_started_at", "training_finished_at", "output_name", "datasets", "tag_frequency"}
    told |= {"sd_model_name", "cache_latents", "max_token_length"}
    same = wanted - {f"ss_{name}" for name in told}
    assert {key: ours[key] for key in same} == {key: reference[key] for key in same}


def test_network_args_and_minimal_metadata() -> None:
    ours = kohya.training_metadata({"network_args": ["rank_dropout=0.1"], "network_dim": 8}, RUN)
    assert json.loads(ours["ss_network_args"]) == {"rank_dropout": "0.1"}
    assert ours["ss_network_alpha"] == "8", "unset means the rank"
    minimal = kohya.minimal_metadata({**ours, "modelspec.title": "t"})
    assert set(minimal) == {*kohya._ALWAYS, "modelspec.title"}


def test_modelspec_keys() -> None:
    reference = {k: v for k, v in read_header(REFERENCE).metadata.items() if k.startswith("modelspec.")}
    ours = kohya.modelspec_metadata(
        architecture="stable-diffusion-v1/lora",
        title="lora4",
        resolution=(512, 512),
        prediction_type="epsilon",
        saved_at=0.0,
        extra={"implementation_version": "sd-scripts/unknown"},
    )
    assert set(ours) == set(reference)
    assert {k: v for k, v in ours.items() if "date" not in k} == {k: v for k, v in reference.items() if "date" not in k}
    velocity = kohya.modelspec_metadata(
        architecture="a", title="t", resolution=(8, 8), prediction_type="v_prediction", saved_at=0.0, encoder_layer=2
    )
    assert (velocity["modelspec.prediction_type"], velocity["modelspec.encoder_layer"]) == ("v", "2")


def test_hashes_are_sd_scripts_hashes(tmp_path: Path) -> None:
    header = read_header(REFERENCE)
    tensors = kohya.read_tensors(REFERENCE)
    metadata = {k: v for k, v in header.metadata.items() if not k.startswith("sshs_")}
    saved = kohya.save_lora(tensors, tmp_path / "again.safetensors", precision="float", metadata=metadata)
    assert read_header(saved).metadata == header.metadata
    assert saved.stat().st_size == REFERENCE.stat().st_size
    assert kohya.model_hash(saved) == header.metadata["sshs_model_hash"] == kohya.model_hash(REFERENCE)


def test_split() -> None:
    parts = kohya.split_lora(kohya.read_tensors(REFERENCE), source="x")
    assert len(parts) == 648 / 3
    one = parts["lora_unet_mid_block_attentions_0_proj_in"]
    assert (one.rank, one.alpha, one.scale) == (4, 2.0, 0.5)
    assert kohya.LoraWeights(one.down, one.up, None).scale == 1.0
    with pytest.raises(ModelError, match="no plain LoRA.*hada_w1_a"):
        kohya.split_lora({"a.hada_w1_a": torch.zeros(1)}, source="x")
    with pytest.raises(ModelError, match="x lacks a.lora_up.weight"):
        kohya.split_lora({"a.lora_down.weight": torch.zeros(1)}, source="x")


@pytest.mark.parametrize(("precision", "dtype"), [("float", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_precision(tmp_path: Path, precision: str, dtype: str) -> None:
    path = kohya.save_lora({"a.alpha": torch.tensor(1.0)}, tmp_path / "f", precision=precision, metadata={})
    assert read_header(path).tensors["a.alpha"].dtype == dtype


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = kohya.save_lora({"a.alpha": torch.tensor(1.0)}, tmp_path / "f", precision="float", metadata={"ss_v": "1"})
    with pytest.raises(RunError, match="not finite in fp16"):
        kohya.save_lora({"a.alpha": torch.tensor(1e6)}, path, precision="fp16", metadata={})
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_v"] == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_saving_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "goal").mkdir()
    with pytest.raises(RunError, match="could not be saved"):
        kohya.save_safetensors({"a": torch.zeros(1)}, tmp_path / "goal", metadata={})
    assert [p.name for p in tmp_path.iterdir()] == ["goal"]
