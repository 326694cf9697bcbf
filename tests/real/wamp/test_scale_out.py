"""Several bridges in one realm: they share the load, and one takes over from another."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import DeferredList
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread

from tests.real.wamp.test_triggers import until_led

pytestmark = pytest.mark.usefixtures("worker_process")

TOPIC, QUEUE = "com.example.scaled", "scaled"


async def in_flight(caller) -> list[int]:
    """What each of two bridges has in flight; the router asks one after the other."""
    return [(await caller.call("scaled_api.status"))["in_flight"] for _ in range(2)]


@pytest_twisted.ensureDeferred
async def test_one_of_two_is_killed_under_load(app, router, bridge_process, client, tmp_path):
    """With 500 calls in flight its callers are told at once, and the other goes on; nothing happens twice."""
    from twisted.internet import reactor

    extra = {
        "prefix": "scaled",
        "events": True,
        "allow_options": ["queue"],
        "triggers": [{"topic": TOPIC, "task": "taskapp.touch"}],
    }
    processes = [bridge_process(router.url, **extra) for _ in range(2)]
    caller, follower = await client(router.url), await client(router.url)
    leader = await until_led(caller, "scaled", TOPIC)
    for process in processes:
        await deferToThread(process.wait_for_output, "the bridge serves")
    pid = (await caller.call("scaled_admin.leader"))["pid"]
    (killed,) = [process for process in processes if process.pid == pid]
    events = await follower.events("scaled.", match="prefix")

    called = [tmp_path / f"called{number}" for number in range(500)]
    ended: list[float] = []
    # Nobody consumes from that queue yet.
    calls = [
        caller.call("scaled.taskapp.touch", str(file), celery_options={"queue": QUEUE}) for file in called
    ]
    for call in calls:
        call.addBoth(lambda result: ended.append(reactor.seconds()) or result)
    outcomes = DeferredList(calls, consumeErrors=True)
    assert await in_flight(caller) == [250, 250]
    triggered = []

    def trigger() -> None:
        triggered.append(tmp_path / f"triggered{len(triggered)}")
        follower.publish(TOPIC, str(triggered[-1]))

    triggering = LoopingCall(trigger)
    triggering.start(0.02)
    await deferLater(reactor, 0.5, lambda: None)
    assert ended == []
    killed.signal(signal.SIGKILL)
    since = reactor.seconds()
    while True:
        try:
            assert await caller.call("scaled.taskapp.add", 2, 3) == 5
            break
        except ApplicationError as error:
            assert error.error == ApplicationError.CANCELED
    assert reactor.seconds() - since < 5
    for number in range(50):
        assert await caller.call("scaled.taskapp.add", number, 1) == number + 1
    assert len(ended) == 250
    assert max(ended) - since < 5
    await until_led(caller, "scaled", TOPIC, earlier=leader)
    assert reactor.seconds() - since < 5
    trigger()
    triggering.stop()

    await deferToThread(app.control.add_consumer, QUEUE, reply=True)
    results = await outcomes
    failures = [failure.value.error for success, failure in results if not success]
    assert failures == [ApplicationError.CANCELED] * 250
    deadline = reactor.seconds() + 30
    while not all(file.exists() for file in (*called, triggered[-1])):
        assert reactor.seconds() < deadline, "tasks of the bridge that was killed did not run"
        await deferLater(reactor, 0.1, lambda: None)
    await caller.call("scaled.taskapp.add", 2, 3)
    assert {file.read_text() for file in (*called, *triggered) if file.exists()} == {"ran\n"}
    published = Counter((payload["task_id"], topic) for topic, payload in events.pending)
    assert set(published.values()) == {1}
    succeeded = [topic for _, topic in published if topic == "scaled.taskapp.touch.succeeded"]
    assert len(succeeded) >= 250
