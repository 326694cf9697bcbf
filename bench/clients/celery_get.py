"""Celery's own client, in one thread: ``delay()`` for all calls in flight at once, then ``get()``."""

from __future__ import annotations

from bench.measurement import Measurement, Stopwatch, count_errors
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    add = create_app(workload.broker, workload.backend).tasks[TASK]

    def call(numbers: range) -> list[float]:
        results = [add.delay(number, Y) for number in numbers]
        return [result.get(timeout=60) for result in results]

    call(range(workload.warm_up))
    values: list[float] = []
    stopwatch = Stopwatch(workload)
    for first in range(0, workload.calls, workload.at_once):
        values += call(range(first, min(first + workload.at_once, workload.calls)))
    stopwatch.stop()
    return stopwatch.measurement(count_errors(values, lambda number: number + Y))
