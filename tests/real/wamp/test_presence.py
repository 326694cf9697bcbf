"""Operators learn which bridges there are, and how each has gone."""

from __future__ import annotations

import signal
import time

import pytest
import pytest_twisted

pytestmark = pytest.mark.usefixtures("worker_process")


@pytest_twisted.ensureDeferred
async def test_bridges_come_and_go(router, bridge_process, client):
    """Each announces itself; one that is stopped says so, and of one that was killed the router tells."""
    caller = await client(router.url)
    events = await caller.events("present_admin.bridge", match="prefix")
    before = time.time()
    process = bridge_process(router.url, prefix="present")
    topic, stopping = await events.get()
    assert (topic, stopping["pid"]) == ("present_admin.bridge.online", process.pid)
    assert set(stopping) == {"id", "host", "pid", "since"}
    assert before < stopping["since"] < time.time()
    process.signal(signal.SIGTERM)
    expected = ("present_admin.bridge.offline", {**stopping, "reason": "stopped"})
    assert await events.get() == expected
    process = bridge_process(router.url, prefix="present")
    _, killed = await events.get()
    assert (killed["pid"], killed["id"]) != (stopping["pid"], stopping["id"])
    process.signal(signal.SIGKILL)
    assert await events.get() == ("present_admin.bridge.offline", {**killed, "reason": "lost"})
    assert not events.pending
