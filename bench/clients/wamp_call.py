"""Calls through the router, by sessions of which each has one call in flight.

The option ``procedure`` says of what; ``callees``, how many must have registered it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from bench.calls import measure_calls
from bench.measurement import Measurement
from bench.reactor import run_in_reactor
from bench.workload import Workload, Y
from tests.real.wamp.client import Client, connect, wait_for_procedure

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    procedure = workload.options["procedure"]
    callees = workload.options.get("callees", 1)

    async def main(reactor: Any) -> Measurement:
        sessions = [await connect(workload.router) for _ in range(workload.at_once)]
        await wait_for_procedure(sessions[0], procedure)
        registered = await sessions[0].call("wamp.registration.match", procedure)
        while await sessions[0].call("wamp.registration.count_callees", registered) < callees:
            await deferLater(reactor, 0.05)
        idle = list(sessions)

        def call(number: int) -> Deferred[Any]:
            session = idle.pop()
            called: Deferred[Any] = session.call(procedure, number, Y)
            return called.addBoth(release, session)

        def release(outcome: Any, session: Client) -> Any:
            idle.append(session)
            return outcome

        measured = await measure_calls(workload, call)
        for session in sessions:
            await session.close()
        return measured

    return run_in_reactor(main)
