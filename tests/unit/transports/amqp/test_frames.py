"""Frames of messages: those written are pika's, octet for octet, and those read are all that come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame
from pika.spec import Basic, BasicProperties, Channel

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.transports.amqp.delivery import Delivery
from twistedcelery.transports.amqp.wire import DeliveryReader, publish_frames

NAMES = st.text(max_size=60)
TABLES = st.dictionaries(
    st.text(max_size=5), st.none() | st.integers(-9, 9) | st.text(max_size=5), max_size=3
)


class Encoded(BasicProperties):
    """What pika takes for properties that are encoded already."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded

    def encode(self) -> list[bytes]:
        return [self.encoded]


def by_pika(method: Any, properties: BasicProperties, body: bytes, channel: int, piece: int) -> list[bytes]:
    """A message's frames, as pika writes them."""
    return [
        frame.Method(channel, method).marshal(),
        frame.Header(channel, len(body), properties).marshal(),
        *(frame.Body(channel, body[start : start + piece]).marshal() for start in range(0, len(body), piece)),
    ]


def message(**fields: Any) -> OutgoingMessage:
    return OutgoingMessage(
        **{"body": b"", "properties": {}, "headers": {}, "exchange": "", "routing_key": "celery", **fields}
    )


@given(
    exchange=NAMES,
    routing_key=NAMES,
    body=st.binary(max_size=200),
    mandatory=st.booleans(),
    properties=st.binary(max_size=40),
    channel=st.integers(1, 65535),
    frame_max=st.integers(60, 120),
)
def test_publishing(exchange, routing_key, body, mandatory, properties, channel, frame_max):
    """A message is written as pika writes it, however many frames its body takes."""
    sent = message(exchange=exchange, routing_key=routing_key, body=body, mandatory=mandatory)
    method = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    expected = by_pika(method, Encoded(properties), body, channel, frame_max - 8)
    assert publish_frames(sent, properties, channel, frame_max) == b"".join(expected)


@pytest.mark.parametrize(
    ("fields", "properties"),
    [({"routing_key": "ü" * 128}, b""), ({"exchange": "e" * 256}, b""), ({}, b"p" * (4096 - 19))],
)
def test_what_does_not_fit(fields, properties):
    """Names of more than 255 bytes, and headers longer than a frame, would end the connection."""
    with pytest.raises(ValueError, match="bytes"):
        publish_frames(message(**fields), properties, 1, 4096)


def test_what_just_fits():
    """Names of 255 bytes, and headers that fill a frame, are sent."""
    assert publish_frames(message(exchange="e" * 255, routing_key="r" * 255), b"p" * (4096 - 20), 1, 4096)


class Received:
    """A reader, one consumer on channel 2, and what each is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.reader = DeliveryReader(self.events.append)
        self.reader.consume(2, self.events.append)


def delivery_frames(
    tag: int, body: bytes, headers: dict[str, Any], text: str | None, piece: int
) -> list[bytes]:
    properties = BasicProperties(
        content_type="application/json",
        content_encoding=text,
        headers=headers,
        correlation_id=text,
        priority=0,
    )
    return by_pika(Basic.Deliver("ctag1", tag, False, "", "queue"), properties, body, 2, piece)


#: What is none of the consumer's business: other methods, heartbeats, content of other channels, and
#: content on its own channel that is no delivery.
OTHERS: list[list[bytes]] = [
    [frame.Heartbeat().marshal()],
    [frame.Method(1, Basic.Ack(5, True)).marshal()],
    [frame.Method(2, Channel.CloseOk()).marshal()],
    by_pika(Basic.Deliver("ctag2", 1, False, "", "queue"), BasicProperties(headers={}), b"other", 1, 3),
    by_pika(Basic.Return(312, "NO_ROUTE", "", "queue"), BasicProperties(headers={}), b"returned", 2, 3),
]

RECEIVED = st.one_of(
    st.sampled_from(OTHERS),
    st.tuples(
        st.integers(1, 2**64 - 1),
        st.binary(max_size=100),
        TABLES,
        st.none() | st.text(max_size=40),
        st.integers(1, 100),
    ),
)


@given(st.lists(RECEIVED, max_size=6), st.data())
def test_receiving(received: list[Any], data: st.DataObject):
    """Wherever what comes is cut, each delivery is given to its consumer, and all else to pika, in order."""
    stream, expected = b"", []
    for each in received:
        if isinstance(each, list):
            stream += b"".join(each)
            expected += each
        else:
            tag, body, headers, text, piece = each
            stream += b"".join(delivery_frames(tag, body, headers, text, piece))
            expected.append(Delivery(body, "application/json", text, headers, text, tag))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    scene = Received()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        scene.reader.feed(stream[start:end])
    assert scene.events == expected


def test_frames_of_another_channel_in_between():
    """The frames of a delivery need not follow each other directly."""
    scene = Received()
    other = OTHERS[1][0]
    scene.reader.feed(other.join(delivery_frames(7, b"body", {}, "id", 2)))
    assert scene.events == [other] * 3 + [Delivery(b"body", "application/json", "id", {}, "id", 7)]


def test_no_frame():
    """A broker of another version answers with its protocol header, which is pika's affair."""
    scene = Received()
    scene.reader.feed(b"AMQP\x00\x00\x09\x01")
    assert scene.events == [b"AMQP\x00\x00\x09\x01"]


def test_a_broken_frame():
    """A frame of a delivery without its last octet is pika's to refuse."""
    scene = Received()
    broken = delivery_frames(1, b"", {}, None, 1)[0][:-1] + b"\x00"
    scene.reader.feed(broken)
    assert scene.events == [broken]


def test_properties_that_cannot_be_read():
    """They are left out: the delivery comes, and the connection goes on."""
    scene = Received()
    method, *_ = delivery_frames(3, b"", {}, None, 1)
    nonsense = frame.Header(2, 0, Encoded(b"\xff\xfe\xff")).marshal()
    scene.reader.feed(method + nonsense)
    assert scene.events == [Delivery(b"", None, None, {}, None, 3)]
