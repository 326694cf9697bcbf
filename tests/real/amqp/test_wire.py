"""What goes on the wire is what Celery's own client sends."""

from __future__ import annotations

import datetime
import json
from typing import Any

import kombu
import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["taskapp.add", "taskapp.limited", "nobody.knows", "naïve.tâche"])
SECONDS = st.floats(0.5, 86_400) | st.integers(1, 86_400)
MOMENTS = st.datetimes(
    datetime.datetime(2030, 1, 1), datetime.datetime(2040, 1, 1), timezones=st.just(datetime.timezone.utc)
)
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
        "serializer": st.sampled_from(["json", "pickle", "yaml"]),
        "compression": st.sampled_from(["gzip", "bzip2"]),
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
        "link": st.just({"task": "taskapp.echo", "args": (), "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}),
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
    if not relative:
        return sent
    # The times were computed a moment apart; compare that they are there, and how exact they are.
    sent["properties"].pop("expiration", None)
    if protocol == 2:
        for name in TIMES:
            if sent["headers"][name] is not None:
                sent["headers"][name] = (type(sent["headers"][name]), len(sent["headers"][name]) > 24)
    else:
        body = json.loads(sent["body"])
        for name in TIMES:
            body[name] = type(body[name]).__name__
        sent["body"] = body
    return sent


@pytest.mark.timeout(240)
@pytest.mark.parametrize("protocol", [1, 2])
def test_the_message_is_celerys(broker_url, protocol):
    """For the same inputs, both clients' messages are equal, ids and timestamps aside."""
    app = create_app(broker_url, "rpc://", task_protocol=protocol)
    app.conf.task_default_queue = "wire"
    app.task(lambda: None, name="taskapp.limited", time_limit=7, soft_time_limit=3.5, priority=4)
    app.finalize()
    tx_app = TwistedCelery(app)
    connection = kombu.Connection(broker_url)
    channel = connection.default_channel

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
    )
    @given(
        name=NAMES,
        args=st.none() | st.lists(JSON, max_size=3) | st.lists(JSON, max_size=3).map(tuple),
        kwargs=st.none() | st.dictionaries(st.text(max_size=5), JSON, max_size=3),
        options=OPTIONS,
        task_id=st.uuids().map(str),
    )
    def compare(name, args, kwargs, options, task_id):
        if "stamped_headers" in options:
            options["stamp"] = "a stamp"
        relative = "countdown" in options or not isinstance(options.get("expires"), datetime.datetime | None)
        if protocol == 1 and relative and (options.get("serializer", "json") != "json" or "compression" in options):
            options.pop("serializer", None)
            options.pop("compression", None)

        app.send_task(name, args, kwargs, task_id=task_id, **options)
        celerys = take(channel, "wire")
        call = tx_app.send_task(name, args, kwargs, task_id=task_id, **options)
        pytest_twisted.blockon(call.published)
        ours = take(channel, "wire")
        call.addErrback(lambda failure: None)
        call.cancel()
        # An absolute expiry gives a TTL that counts down.
        celerys["properties"].pop("expiration", None) if "expires" in options else None
        has_ttl = "expiration" in ours["properties"]
        assert has_ttl == ("expires" in options)
        ours["properties"].pop("expiration", None)
        assert comparable(ours, protocol, relative) == comparable(celerys, protocol, relative)

    try:
        compare()
    finally:
        pytest_twisted.blockon(tx_app.disconnect())
        connection.release()
        app.close()
