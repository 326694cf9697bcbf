"""txcelery-py3: ``DeferrableTask.delay``, its 50 threads and Redis."""

from __future__ import annotations

from typing import Any

from bench.calls import measure_calls
from bench.measurement import Measurement
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    from txcelery.defer import DeferrableTask

    add = DeferrableTask(create_app(workload.broker, workload.backend).tasks[TASK])

    async def main(reactor: Any) -> Measurement:
        return await measure_calls(workload, lambda number: add.delay(number, Y))

    return run_in_reactor(main)
