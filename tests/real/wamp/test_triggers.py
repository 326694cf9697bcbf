"""WAMP events that submit tasks."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.types import PublishOptions
from twisted.internet.task import deferLater

pytestmark = pytest.mark.usefixtures("worker_process")

ACKNOWLEDGED = PublishOptions(acknowledge=True)


async def until_led(caller, prefix, topic, earlier=None):
    """Wait until a bridge leads and has subscribed.

    :param earlier: a registration of the leader's procedure that does not count
    :return: the registration that does
    """
    from twisted.internet import reactor

    deadline = reactor.seconds() + 10
    while (leader := await caller.call("wamp.registration.match", f"{prefix}_admin.leader")) in {
        None,
        earlier,
    }:
        assert reactor.seconds() < deadline, "nobody leads"
        await deferLater(reactor, 0.02, lambda: None)
    while not await caller.call("wamp.subscription.match", topic):
        assert reactor.seconds() < deadline, f"nobody subscribed to {topic}"
        await deferLater(reactor, 0.02, lambda: None)
    return leader


@pytest.mark.parametrize(
    ("topic", "match", "published"),
    [
        ("com.example.uploaded", "exact", "com.example.uploaded"),
        ("com.example.", "prefix", "com.example.one.uploaded"),
        ("com..uploaded", "wildcard", "com.example.uploaded"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_event_submits_a_task(topic, match, published, router, bridge, client):
    """The task gets the event's arguments, whatever they are called, and ends as any other does."""
    trigger = {"topic": topic, "match": match, "task": "taskapp.echo", "options": {"priority": 3}}
    running = await bridge(router.url, triggers=[trigger], publish_results=True)
    caller = await client(router.url)
    ended = await caller.events(running.uri("taskapp.echo.succeeded"))
    await until_led(caller, running.prefix, published)
    caller.publish(published + ".x" if match == "exact" else "org", "not this")
    caller.publish(published, 1, fun=2, details=3, options=ACKNOWLEDGED)
    _, payload = await ended.get()
    assert payload["result"] == {"args": [1], "kwargs": {"fun": 2, "details": 3}}
    assert not ended.pending


@pytest_twisted.ensureDeferred
async def test_one_of_several_bridges_acts(router, bridge, client, tmp_path):
    """Each event runs its task once, also after the bridge that acted has lost its session."""
    extra = {"prefix": "several", "triggers": [{"topic": "com.example.wanted", "task": "taskapp.touch"}]}
    bridges = [await bridge(router.url, **extra, publish_timeout=timeout) for timeout in (10, 11, 12)]
    caller = await client(router.url)
    leader = await until_led(caller, "several", "com.example.wanted")
    ended = await caller.events("several.taskapp.touch.succeeded")
    files = [tmp_path / str(number) for number in range(60)]
    for file in files[:30]:
        caller.publish("com.example.wanted", str(file))
    for _ in files[:30]:
        await ended.get()
    leaders = [one for one in bridges if one.bridge._leadership._retry is None]
    assert len(leaders) == 1
    leaders[0].bridge._session._transport.transport.abortConnection()
    for file in files[30:50]:
        caller.publish("com.example.wanted", str(file))
    await until_led(caller, "several", "com.example.wanted", earlier=leader)
    for file in files[50:]:
        caller.publish("com.example.wanted", str(file))
    while not files[-1].exists():
        await ended.get()
    assert {file.read_text() for file in files if file.exists()} == {"ran\n"}
    assert all(file.exists() for file in (*files[:30], *files[50:]))
