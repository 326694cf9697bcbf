"""One caller floods the bridge with calls, and another calls beside."""

from __future__ import annotations

import json
import sys

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.real.wamp.client import wait_for_procedure
from tests.support.process import Process
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("worker_process")


@pytest.mark.parametrize("count", [3000, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest_twisted.ensureDeferred
async def test_a_flood_of_one_caller(count, router, bridge_process, client, tmp_path):
    """All of the other's calls succeed; of the flood, those past the limit of one caller are refused."""
    prefix = f"fair{count}"
    bridge_process(router.url, prefix=prefix)
    caller = await client(router.url)
    uri = f"{prefix}.taskapp.add"
    await wait_for_procedure(caller, uri)
    command = [sys.executable, "-m", "tests.support.callflood", router.url, uri, str(count)]
    flood = Process(command, directory=tmp_path, name="flood")
    flood.start()
    ended = deferToThread(flood.wait, 300)
    try:
        await until(lambda: "sent" in flood.output())
        answered = 0
        while answered < 20 or not ended.called:
            assert await caller.call(uri, answered, 1) == answered + 1
            answered += 1
        assert await ended == 0
    finally:
        flood.kill()
    (counts,) = [json.loads(line) for line in flood.output().splitlines() if line.startswith("{")]
    assert set(counts) == {"ok", f"{prefix}.error.overloaded"}
    assert sum(counts.values()) == count
    assert counts["ok"] >= 100
    totals = (await caller.call(f"{prefix}_api.status"))["totals"]
    assert totals["overloaded"] == counts[f"{prefix}.error.overloaded"]
