"""What is measured: ``TwistedCelery.send_task`` for all calls, then all results."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import gatherResults

from bench.measurement import Measurement, Stopwatch
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, X, Y
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""

    async def main(reactor: Any) -> Measurement:
        tx_app = TwistedCelery(create_app(workload.broker, "rpc://"), reactor)

        async def call(number: int) -> list[float]:
            return await gatherResults([tx_app.send_task(TASK, args=(X, Y)) for _ in range(number)])

        await call(workload.warm_up)
        stopwatch = Stopwatch()
        values = await call(workload.calls)
        measured = stopwatch.stop(workload.calls)
        assert values == [X + Y] * workload.calls
        await tx_app.disconnect()
        return measured

    return run_in_reactor(main)
