"""A reactor for tests of threads: a clock that the test moves, and calls from threads on demand."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from twisted.internet.task import Clock

__all__ = ["ThreadClock"]


class ThreadClock(Clock):
    """A `twisted.internet.task.Clock` with ``callFromThread``."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        #: How often a thread has woken the reactor.
        self.wake_ups = 0

    def callFromThread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.wake_ups += 1
        self._calls.put(lambda: function(*args, **kwargs))

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Run what threads have asked for, until the condition holds."""
        while not condition():
            try:
                call = self._calls.get(timeout=5)
            except Empty:
                raise AssertionError("no thread called, and the condition does not hold") from None
            call()
