"""Celery's own client: ``delay()`` for all calls, then ``get()`` for all, in one thread."""

from __future__ import annotations

from bench.measurement import Measurement, Stopwatch
from bench.workload import TASK, Workload, X, Y
from tests.support.taskapp import create_app

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    add = create_app(workload.broker, "rpc://").tasks[TASK]

    def call(number: int) -> list[float]:
        results = [add.delay(X, Y) for _ in range(number)]
        return [result.get(timeout=60) for result in results]

    call(workload.warm_up)
    stopwatch = Stopwatch()
    values = call(workload.calls)
    measured = stopwatch.stop(workload.calls)
    assert values == [X + Y] * workload.calls
    return measured
