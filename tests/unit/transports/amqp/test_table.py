"""Headers on the wire are what py-amqp, and so Celery's own client, makes of them."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
from typing import Any

import pytest
from amqp import Message
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.transports.amqp.wire import encode_properties, encode_table


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


KEYS = st.text(max_size=20)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)
OTHER = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.binary(max_size=20)
    | st.decimals(-1000, 1000, places=3)
    | st.integers(0, 2**31).map(lambda seconds: datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    | st.sampled_from([Colour.RED, Level.HIGH])
)
VALUES = st.recursive(
    PLAIN | OTHER,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=6)


@given(TABLES)
def test_a_table(table: dict[str, Any]):
    """Every value that has an AMQP form is encoded as py-amqp encodes it."""
    assert encode_table(table) == dumps("F", [table])


@pytest.mark.parametrize("edge", [-(2**31) - 1, -(2**31), -(2**31) + 1, 2**31 - 1, 2**31])
def test_edges_of_integers(edge: int):
    """An integer takes 64 bits where py-amqp gives it 64."""
    assert encode_table({"edge": edge}) == dumps("F", [{"edge": edge}])


@given(
    TABLES.filter(lambda headers: not headers.keys() & {"CC", "BCC"}),
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": KEYS,
            "content_encoding": KEYS,
            "delivery_mode": st.integers(1, 2),
            "priority": st.none() | st.integers(0, 255),
            "correlation_id": KEYS,
            "reply_to": st.none() | KEYS,
            "expiration": st.integers(0, 2**32 - 1).map(str),
            "message_id": KEYS,
            "timestamp": st.integers(0, 2**63),
            "type": KEYS,
            "user_id": st.just("guest"),
            "app_id": KEYS,
            "cluster_id": KEYS,
            "time_limit": st.just(5),
        },
    ),
)
def test_properties(headers: dict[str, Any], properties: dict[str, Any]):
    """A content header is the one that py-amqp writes, whatever properties are there."""
    message = OutgoingMessage(b"", properties, headers, "", "celery")
    expected = Message(application_headers=headers, **properties)._serialize_properties()
    assert encode_properties(message, "guest") == expected


@pytest.mark.parametrize(
    "value",
    [
        object(),
        2**63,
        math.nan,
        math.inf,
        [math.nan],
        {"deep": [-math.inf]},
        decimal.Decimal(2**31),
        {"k" * 256: 1},
        {1: 2},
    ],
)
def test_what_has_no_form(value: Any):
    """What AMQP or RabbitMQ does not take is an error here, not at the broker."""
    with pytest.raises(Exception):  # noqa: B017, PT011  # py-amqp names no common class
        encode_table({"header": value})
