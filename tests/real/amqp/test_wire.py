"""What goes on the wire is what Celery's own client sends."""

from __future__ import annotations

import datetime
import json
from typing import Any

import kombu
import kombu.compression
import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.serialization import registry
from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread, deferToThread

from tests.support.taskapp import create_app
from twistedcelery import Disconnected, TwistedCelery

# Infinity and NaN in a header make RabbitMQ drop the connection of Celery's own client; see test_calls.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["taskapp.add", "taskapp.limited", "nobody.knows", "naïve.tâche"])
SECONDS = st.floats(0.5, 86_400) | st.integers(1, 86_400)
MOMENTS = st.floats(60, 40 * 86_400).map(
    lambda seconds: datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
)
#: A signature as it is serialised.
ECHO = {
    "task": "taskapp.echo",
    "args": (),
    "kwargs": {},
    "options": {},
    "subtask_type": None,
    "immutable": False,
}
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "countdown": SECONDS,
        "eta": MOMENTS,
        "expires": SECONDS | MOMENTS,
        "priority": st.integers(0, 9),
        "time_limit": SECONDS,
        "soft_time_limit": SECONDS,
        "retries": st.integers(0, 5),
        "serializer": st.sampled_from(sorted(registry._encoders)),
        "compression": st.sampled_from(["gzip", "bzip2", "zlib", *kombu.compression.encoders()]),
        "retry": st.booleans(),
        "retry_policy": st.just({"max_retries": 1}),
        "replaced_task_nesting": st.integers(0, 3),
        "correlation_id": st.text(max_size=8),
        "route_name": st.just("another.name"),
        "delivery_mode": st.sampled_from([1, 2, "transient", "persistent"]),
        "headers": st.dictionaries(st.text("abcxyz-", min_size=1, max_size=6), JSON, max_size=3),
        "shadow": st.text(max_size=8),
        "group_id": st.uuids().map(str),
        "group_index": st.integers(0, 9),
        "root_id": st.uuids().map(str),
        "parent_id": st.uuids().map(str),
        "ignore_result": st.booleans(),
        "argsrepr": st.text(max_size=8),
        "kwargsrepr": st.text(max_size=8),
        "message_id": st.text(max_size=8),
        "app_id": st.text(max_size=8),
        "type": st.text(max_size=8),
        "stamped_headers": st.just(["stamp"]),
        "link": st.just(ECHO),
        "link_error": st.just(ECHO) | st.just([ECHO]),
        "chain": st.just([ECHO]),
        "chord": st.just(ECHO),
    },
)
#: What Celery takes from the clock, relative to now.
TIMES = ("eta", "expires")


def take(channel: Any, queue: str) -> dict[str, Any]:
    """The next message of a queue, with everything that AMQP carries but its delivery."""
    message = channel.basic_get(queue, no_ack=True)
    assert message is not None, "nothing was sent"
    properties = dict(message.properties)
    headers = properties.pop("application_headers")
    return {
        "properties": properties,
        "headers": headers,
        "body": bytes(message.body) if not isinstance(message.body, str) else message.body.encode(),
        "routing_key": message.delivery_info["routing_key"],
        "exchange": message.delivery_info["exchange"],
    }


def comparable(sent: dict[str, Any], protocol: int, relative: bool) -> dict[str, Any]:
    """The message without ids and times that no two messages share."""
    sent["properties"].pop("reply_to")
    # A TTL in whole milliseconds, which may count down between the two.
    sent["properties"].pop("expiration", None)
    if not relative:
        return sent
    # The times were computed a moment apart: compare whether they are there.
    if protocol == 2:
        for name in TIMES:
            if sent["headers"][name] is not None:
                sent["headers"][name] = type(sent["headers"][name])
    else:
        body = json.loads(sent["body"])
        for name in TIMES:
            body[name] = type(body[name]).__name__
        sent["body"] = body
    return sent


def limited():
    """A task whose registration has execution options."""


class Wire:
    """Both clients on one application, and the queue they send to."""

    def __init__(self, url: str, protocol: int) -> None:
        self.protocol = protocol
        self.app = create_app(
            url,
            "rpc://",
            task_protocol=protocol,
            task_default_queue="wire",
            # Celery's client then returns once the message can be taken from its queue.
            broker_transport_options={"confirm_publish": True},
        )
        self.app.task(limited, name="taskapp.limited", time_limit=7, soft_time_limit=3.5, shared=False)
        self.app.finalize()
        self.tx_app = TwistedCelery(self.app)
        self.connection = kombu.Connection(url)
        self.channel = self.connection.default_channel

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
        celerys = take(self.channel, "wire")
        blockingCallFromThread(reactor, self.send, name, args, kwargs, options, task_id)
        ours = take(self.channel, "wire")

        assert ("expiration" in ours["properties"]) == ("expires" in options)
        assert comparable(ours, self.protocol, relative) == comparable(celerys, self.protocol, relative)

    def send(self, name, args, kwargs, options, task_id):
        call = self.tx_app.send_task(name, args, kwargs, task_id=task_id, **options)
        call.addErrback(lambda failure: failure.trap(Disconnected))
        return call.published

    def close(self):
        self.connection.release()
        self.app.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("protocol", [1, 2])
@pytest_twisted.ensureDeferred
async def test_the_message_is_celerys(broker_url, protocol):
    """For the same inputs, both clients' messages are equal, ids and timestamps aside."""
    wire = Wire(broker_url, protocol)
    compare = given(
        name=NAMES,
        args=st.none() | st.lists(JSON, max_size=3) | st.lists(JSON, max_size=3).map(tuple),
        kwargs=st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3),
        options=OPTIONS,
        task_id=st.uuids().map(str),
    )(wire.compare)
    limits = settings(
        max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    try:
        await deferToThread(limits(compare))
    finally:
        wire.close()
        await wire.tx_app.disconnect()
