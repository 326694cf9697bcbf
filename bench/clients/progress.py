"""Progressive results: the option ``followers`` calls at once, with ``rate`` updates a second in all.

What is counted as calls are updates. One that is lost, or comes out of order, is an error.
"""

from __future__ import annotations

from typing import Any

from autobahn.wamp.types import CallOptions
from twisted.internet.defer import DeferredList

from bench.measurement import Measurement, Stopwatch, count_errors
from bench.reactor import run_in_reactor
from bench.workload import Workload
from tests.real.wamp.client import connect, wait_for_procedure

__all__ = ["run"]

PROCEDURE = "celery.taskapp.countdown"


def run(workload: Workload) -> Measurement:
    """Make the calls and measure their updates."""
    followers: int = workload.options["followers"]
    updates = workload.calls // followers
    delay = followers / workload.options["rate"]

    async def main(reactor: Any) -> Measurement:
        sessions = [await connect(workload.router) for _ in range(followers)]
        await wait_for_procedure(sessions[0], PROCEDURE)
        came: list[list[int]] = [[] for _ in sessions]

        def call(number: int, n: int) -> Any:
            def progressed(state: str, meta: dict[str, int]) -> None:
                if state == "PROGRESS":
                    came[number].append(meta["current"])

            options = CallOptions(on_progress=progressed)
            return sessions[number].call(PROCEDURE, n=n, delay=delay, options=options)

        await DeferredList([call(number, 2) for number in range(followers)])
        for one in came:
            one.clear()
        stopwatch = Stopwatch(workload)
        ended = await DeferredList([call(number, updates) for number in range(followers)], consumeErrors=True)
        stopwatch.stop()
        for session in sessions:
            await session.close()
        errors = count_errors([value for _, value in ended], lambda _: updates)
        return stopwatch.measurement(errors + sum(_lost(one, updates) for one in came))

    return run_in_reactor(main)


def _lost(came: list[int], updates: int) -> int:
    """How many of the updates 1 to ``updates`` did not come, or not after the one before them."""
    in_order = sum(update > before for before, update in zip([0, *came], came, strict=False))
    return updates - in_order
