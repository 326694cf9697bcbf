"""Callers who flood a bridge, call it for nothing, or leave, while another one calls beside."""

from __future__ import annotations

import json
import os
import sys

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.real.faults.trial import Size, fault
from tests.real.wamp.client import connect
from tests.support.process import SOURCES, Process


@pytest.fixture
def flood(tmp_path):
    """``await flood(url, count, procedure, *args, **kwargs)`` starts `tests.real.faults.flooder`."""
    started = []

    async def start(url, count, procedure, *args, **kwargs):
        command = [sys.executable, "-m", "tests.real.faults.flooder", url, str(count), procedure]
        process = Process(
            [*command, json.dumps(args), json.dumps(kwargs)],
            directory=tmp_path,
            name=f"flooder{len(started)}",
            env={"PYTHONPATH": os.pathsep.join(SOURCES)},
        )
        started.append(process)
        await deferToThread(process.start)
        return process

    yield start
    for process in started:
        process.kill()


@fault(
    "WAMP: a caller floods with 50,000 calls, another one calls",
    short=None,
    long=Size(calls=50_000, rate=20),
)
@pytest_twisted.ensureDeferred
async def test_flood(trial, start_bridge, flood):
    """The other's calls all succeed."""
    url, bridge = await start_bridge(max_in_flight_per_caller=100)
    caller = await connect(url)
    async with trial.wamp_calls(caller, "celery", bridge) as load:
        load.start(trial.size.rate)
        flooder = await flood(url, trial.size.calls, "celery.taskapp.add", 1, 2)
        # Seconds; it is for a machine that does much else.
        await deferToThread(flooder.wait, 300)
    ended = json.loads(flooder.output())
    assert set(ended) <= {"result", "overloaded"}
    assert sum(ended.values()) == trial.size.calls
    assert trial.counts.results == trial.counts.calls
    await caller.close()
