""".ckpt files: what is read of them without torch, what is refused, and that their numbers arrive."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.formats.test_model_facts import SD1_KEYS, SDXL_KEYS
from trainer.errors import ModelError
from trainer.formats import single_file
from trainer.formats.checkpoint import is_checkpoint, read_checkpoint
from trainer.formats.model_facts import inspect_model


def tensors(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape).half() for name, shape in shapes.items()}


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_names_and_shapes(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    shared = torch.arange(12).reshape(3, 4)
    state |= {"part": shared[1], "half": torch.zeros(2, 2).half(), "parameter": torch.nn.Parameter(torch.zeros(5))}
    header = read_checkpoint(save({"state_dict": state, "global_step": 7}, tmp_path / "m.ckpt"))
    assert {name: info.shape for name, info in header.tensors.items()} == {n: tuple(t.shape) for n, t in state.items()}
    assert [header.tensors[name].dtype for name in ("part", "half", "0.weight")] == ["I64", "F16", "F32"]
    assert header.tensors["part"].start == 4 * 8
    assert header.size_bytes == (tmp_path / "m.ckpt").stat().st_size


@pytest.mark.parametrize("level", [True, False])
def test_a_checkpoint_is_a_model(tmp_path: Path, level: bool) -> None:
    state = {**tensors(SDXL_KEYS), "v_pred": torch.zeros(0)}
    facts = inspect_model(save({"state_dict": state} if level else state, tmp_path / "m.ckpt"))
    assert (facts.kind, facts.layout, facts.prediction) == ("sdxl", "single_file", "v_prediction")


def test_numbers_arrive(tmp_path: Path) -> None:
    state = tensors(SD1_KEYS)
    unet = {"conv_in.weight": torch.randn(4, 4, 3, 3), "conv_in.bias": torch.randn(4)}
    names = {"conv_in.weight": "input_blocks.0.0.weight", "conv_in.bias": "input_blocks.0.0.bias"}
    state |= {f"model.diffusion_model.{names[key]}": tensor for key, tensor in unet.items()}
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    state[ids] = torch.arange(77)[None]
    down = torch.randn(4)
    state["model.diffusion_model.input_blocks.1.0.in_layers.0.weight"] = down
    file = save({"state_dict": state}, tmp_path / "m.ckpt")
    wanted = {**unet, "down_blocks.0.resnets.0.norm1.weight": down}
    sizes = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    single_file.check_sizes(file, "sd1", {"unet": sizes}, source="here")
    read = single_file.read_component(file, "sd1", "unet", sizes, torch.float32)
    assert all(torch.equal(read[key], tensor) for key, tensor in wanted.items())
    (left,) = single_file.leftovers(file, "sd1").items()
    assert left[0] == ids and torch.equal(left[1], state[ids])


class Evil:
    """Would make a folder when a careless program reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_nothing_named_in_a_file_runs(tmp_path: Path) -> None:
    file = save({"state_dict": tensors(SD1_KEYS), "callbacks": Evil(tmp_path / "made")}, tmp_path / "m.ckpt")
    with pytest.raises(ModelError, match=r"names (posix|nt)\.mkdir; such files can run code.*Convert it"):
        inspect_model(file)
    with pytest.raises(ModelError, match="cannot be read"), single_file._opened(file):
        pass
    assert not (tmp_path / "made").exists()


def test_old_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save(tensors(SD1_KEYS), tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="is a pickle file.*of a kind that is not read here"):
        inspect_model(tmp_path / "m.ckpt")


def test_broken_checkpoints(tmp_path: Path) -> None:
    whole = save(tensors(SD1_KEYS), tmp_path / "whole.ckpt").read_bytes()
    cases = {
        "cut short or damaged.*no whole zip": whole[: len(whole) // 2],
        "data.pkl cannot be read": zipped(tmp_path, {"m/data.pkl": b"x"}),
        "has 0 data.pkl instead of one": zipped(tmp_path, {"readme.txt": b"x"}),
        "holds no tensors": zipped(tmp_path, {"m/data.pkl": pickle.dumps({"state_dict": {}})}),
        "checkpoint that holds no tensors": zipped(tmp_path, {"m/data.pkl": pickle.dumps(5)}),
        "data/0 has 1 bytes instead of": shortened(tmp_path / "whole.ckpt", tmp_path),
    }
    for message, content in cases.items():
        (tmp_path / "m.ckpt").write_bytes(content)
        with pytest.raises(ModelError, match=message):
            inspect_model(tmp_path / "m.ckpt")
    assert not is_checkpoint(tmp_path)


def zipped(folder: Path, files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(folder / "new.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return (folder / "new.zip").read_bytes()


def shortened(file: Path, folder: Path) -> bytes:
    with zipfile.ZipFile(file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return zipped(folder, {name: b"x" if name.endswith("data/0") else content for name, content in files.items()})


def test_no_torch_is_imported() -> None:
    code = "import sys, trainer.formats.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
