"""Work in a thread: progress, result, errors and Cancel."""

from __future__ import annotations

import time

import pytest

from kohya_gui.background import Go, Work, Works


def slow(go: Go) -> int:
    for number in range(200):
        if not go(number, 200):
            raise RuntimeError("ended early")
        time.sleep(0.02)
    return 200


def test_work_says_how_far_it_is_and_gives_its_result() -> None:
    def quick(go: Go) -> str:
        for number in range(8):
            go(number, 8)
            time.sleep(0.05)
        return "done"

    work = Work(quick)
    steps = [(now.done, now.total) for now in Works().run("tab", work)]
    assert work.result == "done" and steps and steps[-1][1] == 8 and steps == sorted(steps)


def test_cancel_ends_the_work_of_its_own_tab() -> None:
    works, work = Works(), Work(slow)
    began = time.monotonic()
    running = works.run("tab", work)
    next(running)
    works.cancel("another")
    assert not work.stopped.is_set()
    works.cancel("tab")
    list(running)
    with pytest.raises(RuntimeError, match="ended early"):
        _ = work.result
    assert time.monotonic() - began < 3


def test_a_closed_tab_ends_its_work() -> None:
    work = Work(slow)
    running = Works().run("tab", work)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert work.ended.wait(2)
