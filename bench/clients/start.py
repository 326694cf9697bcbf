"""The time from the start of a process until a bridge has registered 200 tasks.

With the option ``imports``, the time that a process takes to import that module and to end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from twisted.internet.task import deferLater

from bench.contender import child_environment
from bench.measurement import Measurement, Stopwatch
from bench.reactor import run_in_reactor
from bench.workload import Workload
from tests.real.wamp.client import connect
from tests.real.wamp.nodes import TICKET
from tests.support.taskapp import BACKEND, BROKER

__all__ = ["run"]

#: `bench.startapp` has so many.
_TASKS = 200


def run(workload: Workload) -> Measurement:
    """Start the process and measure it."""
    if "imports" in workload.options:
        stopwatch = Stopwatch(workload)
        command = [sys.executable, "-c", f"import {workload.options['imports']}"]
        subprocess.run(command, env=child_environment(), check=True)
        return stopwatch.stop().measurement(0)
    return run_in_reactor(lambda reactor: _bridge(reactor, workload))


async def _bridge(reactor: Any, workload: Workload) -> Measurement:
    session = await connect(workload.router)
    settings = [f"app={json.dumps('bench.startapp')}", "prefix=start"]
    options = [option for setting in settings for option in ("--set", setting)]
    environment = {
        **child_environment(),
        BROKER: workload.broker,
        BACKEND: workload.backend,
        "TWISTEDCELERY_TICKET": TICKET,
    }
    stopwatch = Stopwatch(workload)
    bridge = subprocess.Popen(
        [sys.executable, "-m", "twistedcelery.cli", "bridge", "--url", workload.router, *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while len((await session.call("wamp.registration.list"))["exact"]) < _TASKS:
            if bridge.poll() is not None:
                raise RuntimeError(f"the bridge ended with status {bridge.returncode}")
            await deferLater(reactor, 0.01)
        stopwatch.stop()
    finally:
        bridge.terminate()
        bridge.wait()
    await session.close()
    return stopwatch.measurement(0)
