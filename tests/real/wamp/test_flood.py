"""Progress that comes faster than anybody could read it."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.real.wamp.client import wait_for_procedure
from tests.support.process import Process
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("worker_process")

TASKS = 20
#: At the first, it matters only that they come; at the second, that the machine can send so many.
RATES = [(1000, 2), pytest.param(10_000, 4, marks=pytest.mark.timing)]


@pytest.mark.parametrize(("rate", "seconds"), RATES)
@pytest_twisted.ensureDeferred
async def test_thousands_of_updates_a_second(rate, seconds, broker, router, bridge_process, client, tmp_path):
    """They cost a subscriber at most 20 events a second for each task, and the last state arrives."""
    from twisted.internet import reactor

    bridge_process(router.url, prefix="flood")
    caller, subscriber = await client(router.url), await client(router.url)
    await wait_for_procedure(caller, "flood_api.status")
    reply_to = (await caller.call("flood.taskapp.request_info"))["reply_to"]
    submit = ["flood_api.submit", "taskapp.sleep", [0], {}, {"countdown": 600}]
    ids = [await caller.call(*submit) for _ in range(TASKS)]
    came: dict[str, list[tuple[float, Any]]] = defaultdict(list)

    def progress(**payload: Any) -> None:
        came[payload["task_id"]].append((reactor.seconds(), payload["meta"]))

    await subscriber.subscribe(progress, "flood.taskapp.sleep.progress")
    command = ["-m", "tests.support.flood", broker, reply_to, f"{rate}", f"{seconds}", *ids]
    flood = Process([sys.executable, *command], directory=tmp_path, name="flood")
    flood.start()
    try:
        assert await deferToThread(flood.wait) == 0
        # A call is answered while the rest is dealt with.
        assert (await caller.call("flood_api.status"))["in_flight"] == TASKS
        await until(lambda: all(came[task_id] and came[task_id][-1][1]["last"] for task_id in ids))
    finally:
        flood.kill()
    offered, taken = map(float, flood.output().split())
    assert offered == rate * seconds
    if rate == 10_000:
        assert offered / taken > 0.8 * rate
    for task_id in ids:
        times = [time for time, _ in came[task_id]]
        assert seconds <= len(times) <= 20 * (times[-1] - times[0] + 1)
        states = [meta["current"] for _, meta in came[task_id]]
        assert states == sorted(states)
    for task_id in ids:
        await caller.call("flood_api.revoke", task_id)
