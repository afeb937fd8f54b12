"""The validation split: disjoint, complete, of the right size, and the same wherever the pictures lie."""

from __future__ import annotations

import random

import pytest

from trainer.data.split import SplitOptions, choose


@pytest.mark.parametrize("share", [step / 20 for step in range(1, 20)])
def test_size_for_every_number_of_pictures(share: float) -> None:
    for count in range(1, 51):
        keys = [f"{index}.png" for index in range(count)]
        chosen = choose(keys, SplitOptions(validation_split=share, validation_seed=3))
        assert abs(len(chosen) - round(count * share)) <= 1 and chosen <= set(range(count))
        assert len(chosen) < count, "one picture always stays"


def test_it_depends_on_names_and_seed_only() -> None:
    keys = [f"folder/{index}.png" for index in range(40)]
    options = SplitOptions(validation_split=0.25, validation_seed=5)
    names = {keys[index] for index in choose(keys, options)}
    shuffled = list(keys)
    random.Random(0).shuffle(shuffled)
    assert {shuffled[index] for index in choose(shuffled, options)} == names
    others = [{keys[i] for i in choose(keys, SplitOptions(validation_split=0.25, validation_seed=s))} for s in range(4)]
    assert len({frozenset(other) for other in others}) == 4
    assert {keys[i] for i in choose(keys, SplitOptions(validation_split=0.25))} == others[0], "unset is 0"
    assert names < {keys[i] for i in choose(keys, SplitOptions(validation_split=0.5, validation_seed=5))}


def test_no_share_and_no_pictures() -> None:
    assert not choose(["a", "b"], SplitOptions()) and not choose([], SplitOptions(validation_split=0.5))
