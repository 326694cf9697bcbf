"""What is measured: ``TwistedCelery.send_task``."""

from __future__ import annotations

from typing import Any

from bench.calls import measure_calls
from bench.measurement import Measurement
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""

    async def main(reactor: Any) -> Measurement:
        tx_app = TwistedCelery(create_app(workload.broker, workload.backend), reactor)
        measured = await measure_calls(workload, lambda number: tx_app.send_task(TASK, args=(number, Y)))
        await tx_app.disconnect()
        return measured

    return run_in_reactor(main)
