"""What a file is, by content, and what is said about broken ones."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import ModelError
from trainer.formats.model_facts import (
    CONFIGS_KEY,
    TRAINABLE,
    fingerprint,
    identify,
    inspect_model,
    kohya_model_hashes,
    read_header,
    weight_files,
)

SD1_KEYS = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "first_stage_model.encoder.conv_in.weight": [2],
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": [2],
}
SD2_KEYS = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "first_stage_model.encoder.conv_in.weight": [2],
    "cond_stage_model.model.ln_final.weight": [2],
}
SDXL_KEYS = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "model.diffusion_model.label_emb.0.0.weight": [2, 2816],
    "first_stage_model.encoder.conv_in.weight": [2],
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": [2],
    "conditioner.embedders.1.model.ln_final.weight": [2],
}
REFINER_KEYS = {
    "model.diffusion_model.input_blocks.0.0.weight": [384, 4, 3, 3],
    "model.diffusion_model.label_emb.0.0.weight": [2, 2560],
    "first_stage_model.encoder.conv_in.weight": [2],
    "conditioner.embedders.0.model.ln_final.weight": [2],
}
COMPLETE = {"sd1": SD1_KEYS, "sd2": SD2_KEYS, "sdxl": SDXL_KEYS}


def write(path: Path, shapes: dict[str, list[int]], *, metadata: dict[str, str] | None = None, cut: int = 0) -> Path:
    """A safetensors file of zeros in F16 with these keys."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    content = raw(entries, b"\0" * offset)
    path.write_bytes(content[: len(content) - cut])
    return path


def raw(entries: dict[str, Any], data: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_single_file(tmp_path: Path) -> None:
    facts = inspect_model(write(tmp_path / "model.anything", SD1_KEYS, metadata={"modelspec.prediction_type": "v"}))
    assert (facts.kind, facts.layout, facts.prediction, facts.num_tensors) == ("sd1", "single_file", "v_prediction", 3)
    assert facts.size_bytes == (tmp_path / "model.anything").stat().st_size
    assert facts.detail == "Stable Diffusion 1.x"


def test_folder(tiny_folder: Path) -> None:
    facts = inspect_model(tiny_folder)
    assert (facts.kind, facts.layout, facts.prediction) == ("sd1", "diffusers", "epsilon")
    assert facts.num_tensors > 900


@pytest.mark.parametrize(
    ("kind", "detail"),
    [("sd1", "Stable Diffusion 1.x"), ("sd2", "Stable Diffusion 2.x"), ("sdxl", "Stable Diffusion XL")],
)
def test_kinds(tmp_path: Path, kind: str, detail: str) -> None:
    facts = inspect_model(write(tmp_path / "m.safetensors", COMPLETE[kind]))
    assert (facts.kind, facts.detail, facts.prediction) == (kind, detail, "unknown")
    assert not facts.zero_terminal_snr


@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        (REFINER_KEYS, "sdxl_refiner", "is the Stable Diffusion XL refiner"),
        ({k: v for k, v in REFINER_KEYS.items() if "model.diffusion" in k}, "sdxl_refiner", "refiner"),
        ({"model.diffusion_model.double_blocks.0.x": [2]}, "flux", "is FLUX"),
        ({"model.diffusion_model.joint_blocks.0.x": [2]}, "sd3", "is Stable Diffusion 3"),
    ],
)
def test_other_kinds_are_named_and_refused(tmp_path: Path, keys: dict[str, list[int]], kind: str, words: str) -> None:
    path = write(tmp_path / "m.safetensors", keys)
    assert identify(path).kind == kind
    with pytest.raises(ModelError, match=f"{words}.*, which this version cannot train yet.* 1.x, 2.x or XL"):
        inspect_model(path)


@pytest.mark.parametrize("kind", COMPLETE)
@pytest.mark.parametrize(
    ("channels", "name", "words"),
    [(9, "inpainting", "inpainting model"), (5, "depth", "depth model"), (6, "variant", "reads 6 channels")],
)
def test_variants_are_named_and_refused(tmp_path: Path, kind: str, channels: int, name: str, words: str) -> None:
    keys = {**COMPLETE[kind], "model.diffusion_model.input_blocks.0.0.weight": [320, channels, 3, 3]}
    path = write(tmp_path / "m.safetensors", keys)
    facts = identify(path)
    assert facts.kind == f"{kind}_{name}"
    assert facts.detail.startswith(f"a {identify(write(tmp_path / 'n', COMPLETE[kind])).detail} ")
    with pytest.raises(ModelError, match=f"{words}, which this version cannot train"):
        inspect_model(path)


@pytest.mark.parametrize(
    ("kind", "gone", "words"),
    [
        ("sd1", "first_stage", "Stable Diffusion 1.x U-Net but no VAE"),
        ("sd2", "first_stage", "Stable Diffusion 2.x U-Net but no VAE"),
        ("sdxl", "embedders.0", "Stable Diffusion XL U-Net but no first text encoder"),
        ("sdxl", "embedders.1", "but no second text encoder"),
        ("sdxl", "conditioner", "but no first text encoder and no second text encoder"),
        ("sdxl", "first_stage", "but no VAE"),
    ],
)
def test_incomplete_files(tmp_path: Path, kind: str, gone: str, words: str) -> None:
    keys = {key: shape for key, shape in COMPLETE[kind].items() if gone not in key}
    with pytest.raises(ModelError, match=f"{words}.*Give a complete checkpoint"):
        inspect_model(write(tmp_path / "m.safetensors", keys))


def test_a_bare_unet_is_told_by_its_context(tmp_path: Path) -> None:
    context = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for width, words in ((768, "1.x"), (1024, "2.x")):
        keys = {"model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3], context: [320, width]}
        with pytest.raises(ModelError, match=f"Stable Diffusion {words} U-Net but no text encoder and no VAE"):
            inspect_model(write(tmp_path / "m.safetensors", keys))


@pytest.mark.parametrize(
    ("stated", "marks", "prediction", "zero_snr"),
    [
        ("", (), "unknown", False),
        ("epsilon", (), "epsilon", False),
        ("v", (), "v_prediction", False),
        ("", ("v_pred",), "v_prediction", False),
        ("epsilon", ("v_pred", "ztsnr"), "v_prediction", True),
    ],
)
def test_prediction(tmp_path: Path, stated: str, marks: tuple[str, ...], prediction: str, zero_snr: bool) -> None:
    """The marks are empty tensors; metadata that says otherwise was copied along from another file."""
    metadata = {"modelspec.prediction_type": stated} if stated else None
    keys = {**SDXL_KEYS, **{mark: [0] for mark in marks}}
    facts = inspect_model(write(tmp_path / "m.safetensors", keys, metadata=metadata))
    assert (facts.prediction, facts.zero_terminal_snr) == (prediction, zero_snr)


@pytest.mark.parametrize(
    ("configs", "zero_snr"),
    [
        ('{"scheduler": {"rescale_betas_zero_snr": true}}', True),
        ('{"scheduler": 1}', False),
        ("[", False),
        ("1", False),
    ],
)
def test_our_own_files_say_their_schedule(tmp_path: Path, configs: str, zero_snr: bool) -> None:
    file = write(tmp_path / "m.safetensors", SD1_KEYS, metadata={CONFIGS_KEY: configs})
    assert identify(file).zero_terminal_snr is zero_snr


def test_trainable_kinds_are_the_families() -> None:
    from trainer import plugins
    from trainer.families.base import Family

    assert sorted(TRAINABLE) == list(plugins.discover("trainer.families", Family))


def broken(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        inspect_model(path)
    assert caught.value.option == "pretrained_model_name_or_path"
    assert str(path) in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        inspect_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n  <HTML>", b"\xef\xbb\xbf<!doctype html>"])
def test_html_page(tmp_path: Path, page: bytes) -> None:
    broken(tmp_path / "m.safetensors", page + b"x" * 2000, r"HTML page \(2,0\d\d bytes\).*download fail")


def test_absurd_header(tmp_path: Path) -> None:
    broken(tmp_path / "m.safetensors", struct.pack("<Q", 2**63) + b"{}" * 50, "9,223,372,036,854,775,808 bytes")


def test_empty_and_short(tmp_path: Path) -> None:
    broken(tmp_path / "a", b"", "is empty")
    broken(tmp_path / "b", b"\x05\0\0", "cut short")
    broken(tmp_path / "c", struct.pack("<Q", 500) + b"{}", "cut short: its header needs 508 bytes, the file has 10")


def test_git_lfs_pointer(tmp_path: Path) -> None:
    broken(tmp_path / "m", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer")


def test_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", SD1_KEYS, cut=1)
    with pytest.raises(ModelError, match="cut short.*final_layer_norm.*ends at byte"):
        inspect_model(path)


def entry(start: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": entry(0, 4, [2]), "b": entry(2, 6, [2])}, "b overlaps a"),
        ({"a": entry(0, 4, [2]), "b": entry(6, 10, [2])}, "b leaves a gap after a"),
        ({"a": entry(0, 4, [2])}, "6 bytes follow"),
        ({"a": entry(0, 6, [2])}, "needs 4 bytes"),
        ({"a": entry(0, 4000, [2000])}, "cut short"),
        ({"a": entry(-4, 0, [2])}, "damaged"),
        ({"a": {"dtype": "F16"}}, "makes no sense"),
        ({"a": {"dtype": "F17", "shape": [2], "data_offsets": [0, 4]}}, "unknown number type F17"),
        ({}, "no tensors"),
    ],
)
def test_bad_headers(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    broken(tmp_path / "m.safetensors", raw(entries, b"\0" * 10), message)


def test_header_is_no_json(tmp_path: Path) -> None:
    broken(tmp_path / "m", struct.pack("<Q", 4) + b"abcd", "header cannot be read")
    broken(tmp_path / "m", struct.pack("<Q", 2) + b"[]", "no table")


def test_pickle(tmp_path: Path) -> None:
    broken(tmp_path / "m.ckpt", pickle.dumps({"state_dict": 1}), "is a pickle file.*not read here.*Convert")


def test_lora_is_no_base_model() -> None:
    with pytest.raises(ModelError, match="is a LoRA.*network_weights"):
        inspect_model("tests/vectors/sdscripts_lora_dim4.safetensors")


def test_parts_are_no_model(tmp_path: Path) -> None:
    unet = {k: v for k, v in SD1_KEYS.items() if "diffusion" in k}
    with pytest.raises(ModelError, match="no VAE"):
        inspect_model(write(tmp_path / "u.safetensors", unet))
    with pytest.raises(ModelError, match="no model known here; it holds 1 tensors such as foo"):
        inspect_model(write(tmp_path / "f.safetensors", {"foo": [2]}))
    with pytest.raises(ModelError, match="textual-inversion"):
        inspect_model(write(tmp_path / "e.safetensors", {"emb_params": [1, 768]}))


def test_folder_problems(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model_index.json"):
        inspect_model(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelError, match="lacks unet/config.json"):
        inspect_model(tmp_path)
    for part in ("unet", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="unet has no weights"):
        inspect_model(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_text("x")
    with pytest.raises(ModelError, match="pickle weights"):
        inspect_model(tmp_path)


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    from tests.tiny import tiny_sd2, tiny_sdxl

    sd2 = inspect_model(tiny_sd2(tmp_path / "sd2", prediction_type="v_prediction"))
    assert (sd2.kind, sd2.detail, sd2.prediction) == ("sd2", "Stable Diffusion 2.x", "v_prediction")
    folder = tiny_sdxl(tmp_path / "sdxl")
    sdxl = inspect_model(folder)
    assert (sdxl.kind, sdxl.prediction, sdxl.zero_terminal_snr) == ("sdxl", "epsilon", False)
    weights = folder / "text_encoder_2" / "model.safetensors"
    assert weights in weight_files(folder) and len(weight_files(folder)) == 4
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    facts = inspect_model(folder)
    assert (facts.prediction, facts.zero_terminal_snr) == ("v_prediction", True)
    weights.unlink()
    with pytest.raises(ModelError, match="text_encoder_2 has no weights"):
        inspect_model(folder)
    unet = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**unet, "in_channels": 9}))
    with pytest.raises(ModelError, match="is a Stable Diffusion XL inpainting model, which this version cannot train"):
        inspect_model(folder)
    index = json.loads((folder / "model_index.json").read_text())
    refiner = {**index, "_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(refiner))
    with pytest.raises(ModelError, match="is the Stable Diffusion XL refiner, which"):
        inspect_model(folder)


def test_fingerprint_and_hashes(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(bytes(range(256)) * 0x1100)
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint(path) == whole
    legacy = hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    assert kohya_model_hashes(path) == (legacy, whole)
    assert kohya_model_hashes(tmp_path) == ("IsADirectory", "IsADirectory")
    assert kohya_model_hashes(tmp_path / "none") == ("NOFILE", "NOFILE")
    assert len(fingerprint(tiny_folder)) == 64


def test_header_agrees_with_the_library(tiny_folder: Path) -> None:
    from safetensors import safe_open

    path = tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"
    header = read_header(path)
    with safe_open(path, "np") as file:
        assert {k: list(i.shape) for k, i in header.tensors.items()} == {
            k: file.get_slice(k).get_shape()
            for k in file.keys()  # noqa: SIM118
        }


def test_no_torch_is_imported() -> None:
    code = "import sys, trainer.formats.model_facts, trainer.formats.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
