"""Keeps a number of calls in flight, for contenders whose calls are Deferreds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from bench.measurement import Measurement, Stopwatch, count_errors, quantile
from bench.workload import Workload, Y

__all__ = ["Calls", "measure_calls"]


async def measure_calls(
    workload: Workload,
    call: Callable[[int], Deferred[Any]],
    expected: Callable[[int], Any] = lambda number: number + Y,
) -> Measurement:
    """Make a workload's calls, after those that warm up, and measure them.

    :param call: makes the call of this number
    :param expected: gives the value that it should have
    """
    await Calls(call, workload.warm_up, min(workload.at_once, workload.warm_up)).run()
    calls = Calls(call, workload.calls, workload.at_once)
    stopwatch = Stopwatch(workload)
    outcomes = await calls.run()
    stopwatch.stop()
    return stopwatch.measurement(
        count_errors(outcomes, expected),
        p50=quantile(calls.latencies, 0.5) * 1e3,
        p99=quantile(calls.latencies, 0.99) * 1e3,
    )


class Calls:
    """A number of calls, not more than some at once.

    :ivar latencies: seconds from making each call to its end
    """

    def __init__(self, call: Callable[[int], Deferred[Any]], number: int, at_once: int) -> None:
        self.latencies = [0.0] * number
        self._call = call
        self._number = number
        self._at_once = at_once
        self._outcomes: list[Any] = [None] * number
        self._begun = self._ended = 0
        self._done: Deferred[list[Any]] = Deferred()

    def run(self) -> Deferred[list[Any]]:
        """Make them.

        :return: fires with their values and failures, in order, when all have ended
        """
        for _ in range(min(self._at_once, self._number)):
            self._begin()
        return self._done

    def _begin(self) -> None:
        number = self._begun
        self._begun += 1
        self._call(number).addBoth(self._end, number, time.perf_counter())

    def _end(self, outcome: Any, number: int, began: float) -> None:
        self.latencies[number] = time.perf_counter() - began
        self._outcomes[number] = outcome
        self._ended += 1
        if self._begun < self._number:
            self._begin()
        elif self._ended == self._number:
            self._done.callback(self._outcomes)
