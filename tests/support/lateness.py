"""How long something holds up the reactor."""

from __future__ import annotations

import gc
import time
from typing import Self

from twisted.internet import task

__all__ = ["Lateness"]


class Lateness:
    """A 5 ms ``LoopingCall`` that measures how late it is, in seconds, while it is entered.

    What is there at the beginning is kept from the garbage collector meanwhile: a process that has run
    thousands of tests holds much more than a program.

    :ivar worst: the greatest lateness. Time in which the thread did not run at all does not count: then
        other processes of a busy machine had the processor.
    """

    _INTERVAL = 0.005

    def __init__(self) -> None:
        self.worst = 0.0
        self._loop = task.LoopingCall(self._tick)
        self._last = self._now()

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()
        self._last = self._now()
        self._loop.start(self._INTERVAL)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.stop()
        gc.unfreeze()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()

    def _tick(self) -> None:
        now = self._now()
        passed, ran = now[0] - self._last[0], now[1] - self._last[1]
        self.worst = max(self.worst, min(passed - self._INTERVAL, ran))
        self._last = now
