"""aio-celery, in asyncio: ``delay()`` and ``get()``, which polls Redis."""

from __future__ import annotations

import asyncio

from bench.measurement import Measurement, Stopwatch, count_errors
from bench.workload import TASK, Workload, Y

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    return asyncio.run(_run(workload))


async def _run(workload: Workload) -> Measurement:
    from aio_celery import Celery

    app = Celery()
    app.conf.update(broker_url=workload.broker, result_backend=workload.backend)

    @app.task(name=TASK)
    async def add(x: float, y: float) -> float:
        return x + y

    slots = asyncio.Semaphore(workload.at_once)

    async def call(number: int) -> float:
        async with slots:
            value: float = await (await add.delay(number, Y)).get(timeout=120)
            return value

    async with app.setup():
        await asyncio.gather(*map(call, range(workload.warm_up)))
        stopwatch = Stopwatch(workload)
        values = await asyncio.gather(*map(call, range(workload.calls)), return_exceptions=True)
        stopwatch.stop()
    return stopwatch.measurement(count_errors(values, lambda number: number + Y))
