"""``TwistedCelery.send_task`` with answers that wait until all calls of a batch are in flight."""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.defer import DeferredList

from bench.measurement import Measurement, Stopwatch, count_errors, memory
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them; ``kib`` is the memory of a call in flight."""
    worker = workload.processes["worker"]

    async def main(reactor: Any) -> Measurement:
        tx_app = TwistedCelery(create_app(workload.broker, workload.backend), reactor, publish_timeout=300)
        grown: list[int] = []

        async def batch(numbers: range) -> list[Any]:
            before = memory()
            os.kill(worker, signal.SIGSTOP)
            try:
                calls = [tx_app.send_task(TASK, args=(number, Y)) for number in numbers]
                await DeferredList([call.published for call in calls])
                grown.append(memory() - before)
            finally:
                os.kill(worker, signal.SIGCONT)
            ended = await DeferredList(calls, consumeErrors=True)
            return [value for _, value in ended]

        await batch(range(workload.warm_up))
        outcomes: list[Any] = []
        grown.clear()
        stopwatch = Stopwatch(workload)
        for first in range(0, workload.calls, workload.at_once):
            outcomes += await batch(range(first, min(first + workload.at_once, workload.calls)))
        stopwatch.stop()
        await tx_app.disconnect()
        errors = count_errors(outcomes, lambda number: number + Y)
        return stopwatch.measurement(errors, kib=max(grown) / workload.at_once / 1024)

    return run_in_reactor(main)
