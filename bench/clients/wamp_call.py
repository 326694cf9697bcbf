"""Calls through the router: of the option ``procedure``, by sessions of which each has one call in flight."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from bench.calls import measure_calls
from bench.measurement import Measurement
from bench.reactor import run_in_reactor
from bench.workload import Workload, Y
from tests.real.wamp.client import Client, connect, wait_for_procedure

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""
    procedure = workload.options["procedure"]

    async def main(reactor: Any) -> Measurement:
        sessions = [await connect(workload.router) for _ in range(workload.at_once)]
        await wait_for_procedure(sessions[0], procedure)
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
