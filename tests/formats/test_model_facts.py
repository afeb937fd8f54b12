"""What a file is, by content, and what is said about broken ones."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import ModelError
from trainer.formats.model_facts import TRAINABLE, fingerprint, identify, inspect_model, kohya_model_hashes, read_header

SD1_KEYS = {
    "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
    "first_stage_model.encoder.conv_in.weight": [2],
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": [2],
}


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
    ("extra", "kind"),
    [
        ({"conditioner.embedders.1.model.ln_final.weight": [2]}, "sdxl"),
        ({"cond_stage_model.model.ln_final.weight": [2]}, "sd2"),
    ],
)
def test_other_kinds_are_named_and_refused(tmp_path: Path, extra: dict[str, list[int]], kind: str) -> None:
    path = write(tmp_path / "m.safetensors", {**SD1_KEYS, **extra})
    assert identify(path).kind == kind
    with pytest.raises(ModelError, match="is Stable Diffusion (XL|2.x), which this version cannot train yet"):
        inspect_model(path)


def test_trainable_kinds_are_the_families() -> None:
    from trainer import plugins
    from trainer.families.base import Family

    assert sorted(TRAINABLE) == list(plugins.discover("trainer.families", Family))


def test_inpainting_is_named(tmp_path: Path) -> None:
    keys = {**SD1_KEYS, "model.diffusion_model.input_blocks.0.0.weight": [320, 9, 3, 3]}
    assert identify(write(tmp_path / "m.safetensors", keys)).kind == "sd1_inpainting"


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
    broken(tmp_path / "m.ckpt", pickle.dumps({"state_dict": 1}), "pickle.*not supported yet.*Convert")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    broken(tmp_path / "m.safetensors", (tmp_path / "zip").read_bytes(), "pickle")


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
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    assert identify(tmp_path).kind == "sdxl"
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
