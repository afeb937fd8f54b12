"""Encoded captions are kept and come back to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.data.disk_cache import TensorStore
from trainer.data.text_cache import TextCache, stack
from trainer.errors import ConfigError, DataError


class Encoder(torch.nn.Module):
    """A real embedding with two outputs, as SDXL's encoders have, that counts the captions it met."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(256, 8)
        self.met: list[str] = []

    def forward(self, caption: str) -> Mapping[str, Tensor]:
        self.met.append(caption)
        states_1LD = self.table(torch.tensor([list(caption.encode().ljust(12)[:12])]))
        return {"states_BLD": states_1LD, "pooled_BD": states_1LD.mean(1).half()}


CAPTIONS = ["a cat", "a dog", "", "a cat", "a dog"]


@pytest.mark.parametrize("disk", [False, True])
def test_each_different_caption_is_encoded_once(tmp_path: Path, disk: bool) -> None:
    encoder = Encoder()
    store = TensorStore(tmp_path) if disk else None
    ticks: list[tuple[int, int]] = []
    cache = TextCache.build(
        CAPTIONS, encoder, limit_gb=1, store=store, encoder="e", progress=lambda d, t: ticks.append((d, t))
    )
    assert encoder.met == ["a cat", "a dog", ""] and ticks == [(1, 3), (2, 3), (3, 3)]
    found = cache.batch(["", "a dog", "a dog"])
    expected = stack([encoder(caption) for caption in ("", "a dog", "a dog")])
    assert found.keys() == expected.keys() == {"states_BLD", "pooled_BD"}
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype and not found[name].requires_grad


def test_the_store_outlives_the_run_and_mends_itself(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    TextCache.build(CAPTIONS, Encoder(), limit_gb=1, store=store, encoder="e")
    again = Encoder()
    assert not TextCache.build(CAPTIONS, again, limit_gb=1, store=store, encoder="e").notes and not again.met
    file = sorted(tmp_path.rglob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-3])
    cache = TextCache.build(CAPTIONS, again, limit_gb=1, store=store, encoder="e")
    assert len(again.met) == 1 and cache.notes == ["1 cached captions were damaged and are made anew"]
    other = Encoder()
    TextCache.build(CAPTIONS, other, limit_gb=1, store=store, encoder="other weights")
    assert len(other.met) == 3
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(DataError, match="deleted or damaged while in use. Start the run again"):
        cache.batch(["a cat"])


def test_too_many_captions_are_refused_after_the_first() -> None:
    encoder = Encoder()
    captions = [f"caption {index}" for index in range(1000)]
    size = 12 * 8 * 4 + 8 * 2
    TextCache.build(captions, encoder, limit_gb=1000 * size / 1e9)
    encoder.met.clear()
    with pytest.raises(ConfigError, match=r"text_cache_limit_gb: 1000 different captions .* Raise it") as caught:
        TextCache.build(captions, encoder, limit_gb=999 * size / 1e9)
    assert caught.value.option == "text_cache_limit_gb" and len(encoder.met) == 1


def test_values_that_are_not_finite_name_the_caption() -> None:
    with pytest.raises(DataError, match="not finite: a cat"):
        TextCache.build(CAPTIONS, lambda caption: {"x": torch.full((1, 2), torch.inf)}, limit_gb=1)
