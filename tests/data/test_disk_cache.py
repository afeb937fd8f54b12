"""Entries come back as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.data.disk_cache import DamagedEntry, TensorStore, content_key, weights_identity


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "new" / "store")
    key = content_key("a", 1, None, (1, 2))
    assert store.read(key) is None
    values = {
        "float": torch.randn(3, 5),
        "turned": torch.randn(4, 6).T,
        "half": torch.randn(7).to(torch.bfloat16),
        "one": torch.tensor(2),
    }
    store.write(key, values)
    found = store.read(key)
    assert found is not None and found.keys() == values.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in values.items())
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_an_entry_without_our_checksum_or_with_nan_is_damaged(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    key = content_key("a")
    store.write(key, {"x": torch.ones(2)})
    (file,) = tmp_path.rglob("*.safetensors")
    save_file({"x": torch.ones(2)}, file)
    with pytest.raises(DamagedEntry, match="checksum"):
        store.read(key)
    store.write(key, {"x": torch.tensor([1.0, torch.inf])})
    with pytest.raises(DamagedEntry, match="not finite"):
        store.read(key)


def test_keys_tell_everything_apart() -> None:
    keys = [content_key(*parts) for parts in ((), ("a",), ("a", "b"), ("ab",), (1,), ("1",), (None,), (True,))]
    assert len(set(keys)) == len(keys)


def test_identity_of_weights() -> None:
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.manual_seed(0)
    same = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert weights_identity(first) == weights_identity(same)
    assert weights_identity(same.half()) != weights_identity(first)
    with torch.no_grad():
        first[0].weight[0, 0] += 1e-6
    torch.manual_seed(0)
    again = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert weights_identity(first) != weights_identity(again)
