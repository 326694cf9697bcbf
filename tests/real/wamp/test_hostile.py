"""Callers who mean no good: each is refused, and the bridge and the others' calls go on."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError, TransportLost
from autobahn.wamp.types import PublishOptions
from twisted.internet.defer import DeferredList

from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("worker_process")


@asynccontextmanager
async def undisturbed(running, caller):
    """A call of somebody else that is in flight meanwhile, and the bridge's session, survive."""
    session = running.bridge._session
    other = caller.call(running.uri("taskapp.sleep"), 0.5)
    yield
    assert await other == 0.5
    assert await caller.call(running.uri("taskapp.add"), 2, 3) == 5
    assert running.bridge._session is session


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


async def outcome(call: Any) -> str:
    """How a hostile call ended: ``"answered"``, an error's URI, or ``"disconnected"``."""
    try:
        await call
    except ApplicationError as error:
        return error.error
    except TransportLost:
        return "disconnected"
    return "answered"


@pytest.mark.parametrize(
    ("serializer", "depth"),
    # As deep as each can be: beyond, the client's own encoder or the router refuses.
    [("json", 300), ("msgpack", 1000), ("cbor", 390), ("cbor", 1000)],
)
@pytest_twisted.ensureDeferred
async def test_deep_nesting(serializer, depth, router, bridge, client):
    """The caller is answered, gets an error or loses its connection; nobody else notices."""
    running = await bridge(router.url)
    hostile, caller = await client(router.url, serializer), await client(router.url)
    async with undisturbed(running, caller):
        ended = await outcome(hostile.call(running.uri("taskapp.echo"), nested(depth)))
    if (serializer, depth) == ("cbor", 1000):
        # The router's own decoder refuses it.
        assert ended == "wamp.close.transport_lost"
    else:
        refusals = {running.uri(f"error.{name}") for name in ("invalid_arguments", "result_unencodable")}
        assert ended in refusals


@pytest_twisted.ensureDeferred
async def test_arguments_of_100_mib(router, bridge, client):
    """They are more than the router takes: it drops the caller."""
    running, hostile, caller = await bridge(router.url), await client(router.url), await client(router.url)
    hostile._transport.maxMessagePayloadSize = hostile._transport.maxFramePayloadSize = 0
    async with undisturbed(running, caller):
        ended = await outcome(hostile.call(running.uri("taskapp.echo"), "x" * (100 * 2**20)))
    assert ended == "wamp.close.transport_lost"


@pytest.mark.parametrize("serializer", ["json", "msgpack", "cbor"])
@pytest_twisted.ensureDeferred
async def test_nan(serializer, router, bridge, client):
    """NaN among the arguments does not come back as NaN, which a browser could not read."""
    running = await bridge(router.url)
    hostile, caller = await client(router.url, serializer), await client(router.url)
    async with undisturbed(running, caller):
        ended = await outcome(hostile.call(running.uri("taskapp.echo"), float("nan")))
    assert ended == running.uri("error.result_unencodable")


@pytest_twisted.ensureDeferred
async def test_what_a_worker_cannot_decode(router, bridge, client):
    """It would be dropped without a reply. The caller is told instead, and no task is in flight."""
    from twisted.internet import reactor

    running, hostile, caller = await bridge(router.url), await client(router.url), await client(router.url)
    marks = [{"__type__": "nothing", "__value__": 1}, {"__type__": "datetime", "__value__": "2020-01-01"}]
    ended = set()
    async with undisturbed(running, caller):
        for mark in marks:
            calls = [
                hostile.call(running.uri("taskapp.echo"), mark),
                hostile.call(running.uri("taskapp.echo"), x=[{"y": mark}]),
                hostile.call(running.api("submit"), "taskapp.echo", [mark]),
            ]
            ended.update([await outcome(call.addTimeout(10, reactor)) for call in calls])
    assert ended == {running.uri("error.invalid_arguments")}
    status = await caller.call(running.api("status"))
    assert (status["in_flight"], status["totals"]) == (0, {"sent": 2, "succeeded": 2})


@pytest.mark.parametrize(
    "value",
    [[1] * 5_000_000, {str(number): 0 for number in range(100_000)}, [[]] * 1_000_000],
    ids=["integers", "keys", "lists"],
)
@pytest_twisted.ensureDeferred
async def test_a_million_items(value, router, bridge, client):
    """Arguments and results of so many items are refused, and cost nobody else their turn."""
    running, caller = await bridge(router.url), await client(router.url)
    hostile = await client(router.url, "msgpack")
    async with undisturbed(running, caller):
        arguments = await outcome(hostile.call(running.uri("taskapp.echo"), value))
        result = await outcome(hostile.call(running.uri("taskapp.items"), 20_001))
        assert len(await hostile.call(running.uri("taskapp.items"), 20_000)) == 20_000
    assert arguments == running.uri("error.invalid_arguments")
    assert result == running.uri("error.result_unencodable")


@pytest.mark.parametrize(
    "options", [None, 1, "x", [], {"countdown": -1}, {"task_id": "x"}, {"producer": 1}, {"link": []}, {"": 1}]
)
@pytest_twisted.ensureDeferred
async def test_the_reserved_keyword(options, router, bridge, client):
    """``celery_options`` takes what it is for, and nothing else."""
    running, hostile, caller = await bridge(router.url), await client(router.url), await client(router.url)
    async with undisturbed(running, caller):
        call = hostile.call(running.uri("taskapp.add"), 1, 2, celery_options=options)
        ended = await outcome(call)
    if options is None:
        assert ended == "answered"
    else:
        assert ended in {running.uri("error.not_allowed"), running.uri("error.invalid_arguments")}


@pytest.mark.parametrize(
    "name", ["taskapp.Add", "taskapp.\u0430dd", "taskapp.add\u200b", "taskapp.add.add", "taskapp"]
)
@pytest_twisted.ensureDeferred
async def test_look_alikes(name, router, bridge, client):
    """A name that differs by case, or only looks the same, is the name of nothing."""
    running, hostile, caller = await bridge(router.url), await client(router.url), await client(router.url)
    async with undisturbed(running, caller):
        submitted = await outcome(hostile.call(running.api("submit"), name, [1, 2]))
        called = await outcome(hostile.call(running.uri(name), 1, 2))
    assert (submitted, called) == (running.uri("error.unknown_task"), ApplicationError.NO_SUCH_PROCEDURE)


@pytest_twisted.ensureDeferred
async def test_task_ids_of_others(router, bridge, client):
    """Who tries ids, right and wrong ones, learns nothing, changes nothing and disturbs nobody."""
    running = await bridge(router.url, task_access="caller")
    hostile, caller = await client(router.url), await client(router.url)
    task_id = await caller.call(running.api("submit"), "taskapp.sleep", [0.5])
    ids = [
        task_id,
        task_id.upper(),
        uuid.UUID(task_id).hex,
        str(uuid.uuid4()),
        "",
        "x" * 1000,
        7,
        None,
        [],
        {},
    ]
    async with undisturbed(running, caller):
        refused = {
            await outcome(hostile.call(running.api(procedure), each))
            for procedure in ("result", "revoke")
            for each in ids
        }
        states = [await outcome(hostile.call(running.api("state"), each)) for each in ids]
    assert refused == {running.uri("error.unknown_task"), running.uri("error.invalid_arguments")}
    assert set(states) == {"answered", running.uri("error.invalid_arguments")}
    assert await caller.call(running.api("result"), task_id) == 0.5


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest_twisted.ensureDeferred
async def test_thousands_of_calls_and_a_disconnect(count, router, bridge, client):
    """A caller with a limit of its own leaves room for others, and nothing behind."""
    running = await bridge(router.url, max_in_flight_per_caller=500)
    hostile, caller = await client(router.url), await client(router.url)
    options = {"countdown": 60}
    async with undisturbed(running, caller):
        uri = running.uri("taskapp.add")
        calls = [hostile.call(uri, 1, number, celery_options=options) for number in range(count)]
        ended = DeferredList(calls, consumeErrors=True)
        await caller.call(running.api("status"))
        await hostile.vanish()
        await ended

    async def none_in_flight():
        return (await caller.call(running.api("status")))["in_flight"] == 0

    await until(none_in_flight, seconds=30, what="no call of the caller who is gone is in flight")
    slots = running.bridge._in_flight._slots
    assert [len(group) for group in (slots.scheduled, slots.running, slots.released)] == [0, 0, 0]


@pytest_twisted.ensureDeferred
async def test_subscribing_to_everything(router, bridge, client):
    """A caller who subscribes to everything, a hundred times over, disturbs nobody.

    This router lets callers publish. An event that one of them forges changes nothing that the bridge says.
    """
    running, hostile, caller = await bridge(router.url), await client(router.url), await client(router.url)
    async with undisturbed(running, caller):
        for number in range(100):
            await hostile.events(running.prefix + ("." if number % 2 else ""), match="prefix")
            await hostile.events("." * number, match="wildcard")
        task_id = await caller.call(running.api("submit"), "taskapp.add", [1, 2], {}, {"countdown": 60})
        topic = running.uri("taskapp.add.succeeded")
        seen = await caller.events(topic)
        await hostile.publish(topic, task_id=task_id, result=7, options=PublishOptions(acknowledge=True))
        assert await seen.get() == (topic, {"task_id": task_id, "result": 7})
        assert await caller.call(running.api("state"), task_id) == "PENDING"
    status = await caller.call(running.api("status"))
    # The two calls of `undisturbed`, and none that was forged.
    assert status["totals"] == {"sent": 3, "succeeded": 2}
    await caller.call(running.api("revoke"), task_id)
