"""Several bridges in one realm: they share the load, and one takes over from another."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet.defer import DeferredList
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread

from tests.real.wamp.nodes import TICKET
from tests.real.wamp.test_triggers import until_led
from tests.support.node import CrossbarNode
from tests.support.ports import free_port
from tests.support.process import ROOT
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("worker_process")

TOPIC, QUEUE = "com.example.scaled", "scaled"


async def in_flight(caller) -> list[int]:
    """What each of two bridges has in flight; the router asks one after the other."""
    return [(await caller.call("scaled_api.status"))["in_flight"] for _ in range(2)]


async def until_answered(caller, uri) -> None:
    """Call, and again for as long as the router says that the bridge of a call is gone."""
    answered = False
    while not answered:
        try:
            answered = await caller.call(uri, 2, 3) == 5
        except ApplicationError as error:
            if error.error != ApplicationError.CANCELED:
                raise


async def until_there(caller, uri) -> None:
    """Wait until somebody has registered a procedure, for callers who may not ask the router."""
    from twisted.internet import reactor

    deadline = reactor.seconds() + 20
    there = False
    while not there:
        try:
            await caller.call(uri)
            there = True
        except ApplicationError as error:
            if error.error != ApplicationError.NO_SUCH_PROCEDURE:
                raise
        assert reactor.seconds() < deadline, f"{uri} was not registered"
        await deferLater(reactor, 0.05, lambda: None)


def all_queued(app) -> bool:
    """Whether the broker has the 500 tasks that nobody takes."""
    with app.connection_for_read() as connection:
        declared = connection.default_channel.queue_declare(QUEUE, durable=True, auto_delete=False)
        return declared.message_count == 500


async def until_all_exist(files) -> None:
    """Wait until every task has run that was to touch one of them."""
    await until(lambda: all(file.exists() for file in files), seconds=60, what="all tasks have run")


@pytest_twisted.ensureDeferred
async def test_one_of_two_is_killed_under_load(app, router, bridge_process, client, tmp_path):
    """With 500 calls in flight its callers are told at once, and the other goes on; nothing happens twice."""
    from twisted.internet import reactor

    extra = {
        "prefix": "scaled",
        "events": True,
        "allow_options": ["queue"],
        "max_in_flight_per_caller": 500,
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
    await until(lambda: deferToThread(all_queued, app), seconds=60, what="all tasks are in their queue")
    assert ended == []
    killed.signal(signal.SIGKILL)
    since = reactor.seconds()
    await until_answered(caller, "scaled.taskapp.add")
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
    await until_all_exist([*called, triggered[-1]])
    await caller.call("scaled.taskapp.add", 2, 3)
    assert {file.read_text() for file in (*called, *triggered) if file.exists()} == {"ran\n"}
    published = Counter((payload["task_id"], topic) for topic, payload in events.pending)
    assert set(published.values()) == {1}
    succeeded = [topic for _, topic in published if topic == "scaled.taskapp.touch.succeeded"]
    assert len(succeeded) >= 250


def proxied_node(directory, ticket) -> tuple[CrossbarNode, str]:
    """The guide's node as printed, but for its ports and for a second proxy; and where bridges connect."""
    (config,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "scaling.md").read_text(), re.DOTALL)
    outer, inner = free_port(), free_port()
    workers = json.loads(config.replace("8080", str(outer)).replace("8081", str(inner)))["workers"]
    node = {"version": 2, "workers": [*workers, workers[-1]]}
    return CrossbarNode(directory, node, port=outer, env={"TWISTEDCELERY_TICKET": ticket}), (
        f"ws://127.0.0.1:{inner}"
    )


@pytest_twisted.ensureDeferred
async def test_proxies_in_front_of_a_router(bridge_process, client, tmp_path, touched):
    """Clients that come over proxies on one port follow, cancel, and are known to tasks, as ever."""
    node, inner = proxied_node(tmp_path / "node", TICKET)
    try:
        await deferToThread(node.start)
        await deferToThread(node.process.wait_for_output, "NODE_BOOT_COMPLETE")
        bridge_process(inner)
        # Which proxy takes a connection is for the kernel to say.
        callers = [await client(node.url) for _ in range(12)]
        seen: list[Any] = []
        options = CallOptions(on_progress=lambda *update: seen.append(update))
        for caller in callers:
            await until_there(caller, "celery_api.status")
            headers = (await caller.call("celery.taskapp.request_info"))["headers"]
            assert (headers["wamp_session"], headers["wamp_authrole"]) == (
                caller.session_details.session,
                "user",
            )
            assert await caller.call("celery.taskapp.countdown", 1, delay=0.01, options=options) == 1
        assert seen == [("PROGRESS", {"current": 1, "total": 1})] * 12
        events = await callers[0].events("celery.taskapp.touch", match="prefix")
        call = callers[1].call("celery.taskapp.touch", str(touched), celery_options={"countdown": 60})
        await callers[1].call("celery_api.status")
        callers[1].cancel_call(call, "kill")
        with pytest.raises(ApplicationError):
            await call
        assert (await events.get())[0] == "celery.taskapp.touch.revoked"
        assert not touched.exists()
        proxies = set(
            re.findall(r"\[Proxy +(\d+)\] .*proxy frontend session accepted", node.process.output())
        )
        assert len(proxies) == 2
        assert TICKET not in node.process.output()
        for caller in callers:
            await caller.close()
    finally:
        await deferToThread(node.stop)
