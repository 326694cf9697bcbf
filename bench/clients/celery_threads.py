"""Celery's own client in a pool of threads: each makes a call and waits for its result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bench.measurement import Measurement, Stopwatch, count_errors
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app

__all__ = ["THREADS", "run"]

THREADS = 20


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    add = create_app(workload.broker, workload.backend).tasks[TASK]

    def call(number: int) -> float:
        value: float = add.delay(number, Y).get(timeout=60)
        return value

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(call, range(workload.warm_up)))
        stopwatch = Stopwatch(workload)
        values = list(pool.map(call, range(workload.calls)))
        stopwatch.stop()
    return stopwatch.measurement(count_errors(values, lambda number: number + Y))
