"""How late calls make the reactor: ``worst``, in milliseconds.

The option ``rate`` gives the calls a second. Without it, all are made in one loop, which itself does not
count.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall

from bench.calls import Calls
from bench.measurement import Measurement, Stopwatch, count_errors
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, Y
from tests.support.lateness import Lateness
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

__all__ = ["run"]

#: How often calls are made, where they are made at a rate.
_TURNS = 100


def run(workload: Workload) -> Measurement:
    """Make the calls and measure the reactor."""
    rate = workload.options.get("rate")

    async def main(reactor: Any) -> Measurement:
        tx_app = TwistedCelery(create_app(workload.broker, workload.backend), reactor)

        def call(number: int) -> Deferred[Any]:
            return tx_app.send_task(TASK, args=(number, Y))

        await Calls(call, workload.warm_up, workload.warm_up).run()
        calls: list[Deferred[Any]] = []
        stopwatch = Stopwatch(workload)
        if rate is None:
            calls = [call(number) for number in range(workload.calls)]
            with Lateness() as lateness:
                ended = await DeferredList(calls, consumeErrors=True)
        else:
            with Lateness() as lateness:
                await _at_rate(rate, workload.calls, lambda number: calls.append(call(number)))
                ended = await DeferredList(calls, consumeErrors=True)
        stopwatch.stop()
        await tx_app.disconnect()
        errors = count_errors([value for _, value in ended], lambda number: number + Y)
        return stopwatch.measurement(errors, worst=lateness.worst * 1e3)

    return run_in_reactor(main)


def _at_rate(rate: float, number: int, call: Any) -> Deferred[Any]:
    """Make so many calls a second.

    :return: fires when all have been made
    """
    made = 0

    def turn(turns: int) -> None:
        nonlocal made
        # After a turn that came late, those that it missed.
        for _ in range(min(round(turns * rate / _TURNS), number - made)):
            call(made)
            made += 1
        if made == number:
            loop.stop()

    loop = LoopingCall.withCount(turn)
    return loop.start(1 / _TURNS)
