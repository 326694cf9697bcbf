"""What Twisted programs did before: Celery's blocking client in ``deferToThread``."""

from __future__ import annotations

from typing import Any

from twisted.internet.threads import deferToThread

from bench.calls import measure_calls
from bench.clients.celery_threads import THREADS
from bench.measurement import Measurement
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    add = create_app(workload.broker, workload.backend).tasks[TASK]

    def call(number: int) -> float:
        value: float = add.delay(number, Y).get(timeout=60)
        return value

    async def main(reactor: Any) -> Measurement:
        reactor.suggestThreadPoolSize(THREADS)
        return await measure_calls(workload, lambda number: deferToThread(call, number))

    return run_in_reactor(main)
