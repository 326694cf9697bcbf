"""What is put on Redis is what Celery's own client puts there."""

from __future__ import annotations

import base64
import json
from typing import Any

import kombu
import pytest
import pytest_twisted
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread, deferToThread

from tests.real.amqp.test_wire import JSON, NAMES, OPTIONS, TIMES, limited
from tests.support.taskapp import create_app
from twistedcelery import NoResultBackend, TwistedCelery

TRANSPORT_OPTIONS = {
    "global_keyprefix": "prefix:",
    "priority_steps": list(range(10)),
    "sep": ":",
    "queue_order_strategy": "priority",
    "fanout_prefix": "/elsewhere/{db}.",
    "fanout_patterns": False,
}


def comparable(envelope: bytes, protocol: int, relative: bool) -> dict[str, Any]:
    """A message without ids and times that no two messages share."""
    message: dict[str, Any] = json.loads(envelope)
    properties = message["properties"]
    assert properties.pop("delivery_tag")
    properties.pop("reply_to")
    # A TTL in whole milliseconds, which may count down between the two.
    properties["expiration"] = "expiration" in properties
    if relative:
        # The times were computed a moment apart: compare whether they are there.
        if protocol == 2:
            times = message["headers"]
        else:
            times = message["body"] = json.loads(base64.b64decode(message["body"]))
        for name in TIMES:
            times[name] = type(times[name]).__name__
    return message


class Wire:
    """Both clients on one application, and the database they write to."""

    def __init__(self, url: str, protocol: int, **transport_options: Any) -> None:
        self.protocol = protocol
        self.app = create_app(
            url,
            "disabled://",
            task_protocol=protocol,
            task_default_queue="wire",
            broker_transport_options=transport_options,
        )
        self.app.task(limited, name="taskapp.limited", time_limit=7, soft_time_limit=3.5, shared=False)
        self.app.finalize()
        self.tx_app = TwistedCelery(self.app)
        self.redis = redis.Redis.from_url(url)

    def take(self) -> dict[bytes, Any]:
        """Everything that is on Redis, which is empty afterwards."""
        found = {}
        for key in self.redis.scan_iter():
            lists = self.redis.type(key) == b"list"
            found[key] = self.redis.lrange(key, 0, -1) if lists else self.redis.smembers(key)
        self.redis.flushdb()
        return found

    def compare(self, name, args, kwargs, options, task_id):
        """Send the same with both, in a thread: Celery's client blocks."""
        if "stamped_headers" in options:
            options["stamp"] = "a stamp"
        if self.protocol == 1:
            # Protocol 1 has no chains, and Celery takes one for its own "now".
            options.pop("chain", None)
        relative = "countdown" in options or isinstance(options.get("expires"), int | float)
        if self.protocol == 1 and relative:
            # Its times are in the body, which is compared as JSON.
            options.pop("serializer", None)
            options.pop("compression", None)
        self.app.send_task(name, args, kwargs, task_id=task_id, **options)
        celerys = self.take()
        blockingCallFromThread(reactor, self.send, name, args, kwargs, options, task_id)
        ours = self.take()
        assert ours.keys() == celerys.keys()
        for key, value in celerys.items():
            if isinstance(value, set):
                assert ours[key] == value
            else:
                sent = [comparable(one, self.protocol, relative) for one in ours[key]]
                assert sent == [comparable(one, self.protocol, relative) for one in value]

    def send(self, name, args, kwargs, options, task_id):
        call = self.tx_app.send_task(name, args, kwargs, task_id=task_id, **options)
        call.addErrback(lambda failure: failure.trap(NoResultBackend))
        return call.published

    def close(self):
        self.redis.close()
        self.app.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("protocol", "transport_options"),
    [(1, {}), (2, {}), (2, TRANSPORT_OPTIONS)],
    ids=["1", "2", "2 with options"],
)
@pytest_twisted.ensureDeferred
async def test_the_message_is_celerys(redis_server, protocol, transport_options):
    """For the same inputs both clients leave the same keys with the same values, ids and times aside."""
    wire = Wire(redis_server.url(3), protocol, **transport_options)
    compare = given(
        name=NAMES,
        args=st.none() | st.lists(JSON, max_size=3) | st.lists(JSON, max_size=3).map(tuple),
        kwargs=st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3),
        options=OPTIONS,
        task_id=st.uuids().map(str),
    )(wire.compare)
    limits = settings(
        max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    try:
        await deferToThread(limits(compare))
    finally:
        wire.close()
        await wire.tx_app.disconnect()


@pytest.mark.parametrize(
    "queue",
    [
        kombu.Queue("direct", kombu.Exchange("direct-exchange"), "key"),
        kombu.Queue("topic", kombu.Exchange("topic-exchange", "topic"), "a.*.#"),
        kombu.Queue("expiring", kombu.Exchange("expiring"), "expiring", expires=60),
    ],
    ids=lambda queue: queue.name,
)
@pytest_twisted.ensureDeferred
async def test_queues_of_all_kinds(redis_server, queue):
    """Bindings, and messages through exchanges, are Celery's, and so is a queue's expiry."""
    wire = Wire(redis_server.url(3), 2)
    routing_key = {"topic": "a.b.c.d"}.get(queue.name, queue.routing_key)
    options = {"queue": queue, "routing_key": routing_key}

    def both():
        found = []
        for send in (
            wire.app.send_task,
            lambda *args, **options: blockingCallFromThread(
                reactor, wire.send, *args, None, options, options.pop("task_id")
            ),
        ):
            send("taskapp.add", (1, 2), task_id="an-id", **options)
            expiries = {key: round(wire.redis.pttl(key), -4) for key in wire.redis.scan_iter()}
            # Of a sorted set with deadlines by the clock, its members.
            deadlines = wire.redis.zrange("_kombu.binding_deadlines", 0, -1)
            wire.redis.delete("_kombu.binding_deadlines")
            found.append((wire.take(), expiries, deadlines))
        return found

    (celerys, *celery_expiry), (ours, *our_expiry) = await deferToThread(both)
    assert our_expiry == celery_expiry
    (celerys_message,), (our_message,) = celerys.pop(queue.name.encode()), ours.pop(queue.name.encode())
    assert comparable(our_message, 2, False) == comparable(celerys_message, 2, False)
    assert ours == celerys
    assert ours
    wire.close()
    await wire.tx_app.disconnect()


@pytest.mark.parametrize("transport_options", [{}, TRANSPORT_OPTIONS], ids=["plain", "with options"])
@pytest_twisted.ensureDeferred
async def test_broadcasts_go_to_the_same_channels(redis_server, transport_options):
    """A revoke is published where Celery's client publishes it, with the same content."""
    wire = Wire(redis_server.url(3), 2, **transport_options)
    listener = wire.redis.pubsub(ignore_subscribe_messages=True)
    listener.psubscribe("*")
    listener.get_message(timeout=1)

    def heard():
        message = listener.get_message(timeout=5)
        content = json.loads(message["data"])
        assert content["properties"].pop("delivery_tag")
        content["headers"] = sorted(content["headers"])
        return message["channel"], content

    def both():
        wire.app.control.revoke("an-id", terminate=True)
        celerys = heard()
        blockingCallFromThread(reactor, wire.tx_app.revoke, "an-id", True)
        return celerys, heard()

    celerys, ours = await deferToThread(both)
    ours[1]["body"], celerys[1]["body"] = (
        json.loads(base64.b64decode(one[1]["body"])) for one in (ours, celerys)
    )
    assert isinstance(ours[1]["body"]["arguments"].pop("task_id"), list)
    assert celerys[1]["body"]["arguments"].pop("task_id") == "an-id"
    assert ours == celerys
    listener.close()
    wire.close()
    await wire.tx_app.disconnect()
