"""Longer work of the page itself, such as copying: in a thread, with progress, and ended by Cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")
Go = Callable[[int, int], bool]
POLL_SECONDS = 0.1


@dataclass
class Work(Generic[Result]):
    """One piece of work. done, total: how far it is."""

    do: Callable[[Go], Result]
    done: int = 0
    total: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    _result: list[Result] = field(default_factory=list)
    _error: list[BaseException] = field(default_factory=list)

    def _run(self) -> None:
        try:
            self._result.append(self.do(self._go))
        except BaseException as error:  # carried over to the thread that asks for the result
            self._error.append(error)
        finally:
            self.ended.set()

    def _go(self, done: int, total: int) -> bool:
        self.done, self.total = done, total
        return not self.stopped.is_set()

    @property
    def result(self) -> Result:
        """What came of it; raises what it raised."""
        if self._error:
            raise self._error[0]
        return self._result[0]


class Works:
    """The work of all tabs by the tab's session, so that a Cancel finds its own."""

    def __init__(self) -> None:
        self._running: dict[str, Work[object]] = {}

    def run(self, session: str, work: Work[Result]) -> Iterator[Work[Result]]:
        """Give the work again and again while it goes on; its result stands in it at the end."""
        self.cancel(session)
        self._running[session] = work  # type: ignore[assignment]
        threading.Thread(target=work._run, daemon=True, name="dataset-work").start()
        try:
            while not work.ended.wait(POLL_SECONDS):
                yield work
        finally:
            if not work.ended.is_set():
                work.stopped.set()
            if self._running.get(session) is work:
                del self._running[session]

    def cancel(self, session: str) -> None:
        """Ask the work of a tab to end, if there is any, and wait a moment for it."""
        if work := self._running.get(session):
            work.stopped.set()
            end = time.monotonic() + 5
            while not work.ended.is_set() and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
