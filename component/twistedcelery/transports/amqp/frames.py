"""Writes the AMQP 0-9-1 frames of published messages, and reads those of consumed ones.

For each of a message's three frames pika makes several objects and looks up callbacks by name, which
costs more than everything else that a reply needs. pika handles all other frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any

from amqp.serialization import PROPERTY_CLASSES

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.transports.amqp.delivery import Delivery

__all__ = ["DeliveryReader", "publish_frames"]

# Types of frames.
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8

#: A frame is its type, its channel, the size of its payload, the payload, and one last octet.
_PREFIX = Struct(">BHI")
_END = b"\xce"
_AROUND = _PREFIX.size + len(_END)

#: The class "basic", and two of its methods; ``publish`` begins with a field that is not used.
_BASIC = 60
_PUBLISH = Struct(">HHH").pack(_BASIC, 40, 0)
_DELIVER = Struct(">HH").pack(_BASIC, 60)

#: A content header's fixed part: the class, a field that is not used, and the size of the body.
_CONTENT = Struct(">HHQ")
_TAG = Struct(">Q")


def publish_frames(message: OutgoingMessage, properties: bytes, channel: int, frame_max: int) -> bytes:
    """Write a message as ``basic.publish``.

    :param properties: from `twistedcelery.transports.amqp.properties.encode_properties`
    :param frame_max: the longest frame that the broker takes, in bytes
    :raises ValueError: when the exchange's name or the routing key is too long, or when the
        headers do not fit into a frame
    """
    body = message.body
    method = b"".join(
        (
            _PUBLISH,
            _short_text(message.exchange),
            _short_text(message.routing_key),
            bytes((message.mandatory,)),
        )
    )
    header = _CONTENT.pack(_BASIC, 0, len(body)) + properties
    room = frame_max - _AROUND
    if len(header) > room:
        raise ValueError(f"properties and headers have {len(header)} bytes; the broker takes {room}")
    parts = [
        *(_PREFIX.pack(_METHOD, channel, len(method)), method, _END),
        *(_PREFIX.pack(_HEADER, channel, len(header)), header, _END),
    ]
    for start in range(0, len(body), room):
        piece = body[start : start + room]
        parts += (_PREFIX.pack(_BODY, channel, len(piece)), piece, _END)
    return b"".join(parts)


def _short_text(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > 255:
        raise ValueError(f"{text[:40]!r}... is longer than 255 bytes")
    return bytes((len(encoded),)) + encoded


class DeliveryReader:
    """Takes the deliveries out of what a connection receives.

    :param others: is given every other frame
    """

    def __init__(self, others: Callable[[bytes], None]) -> None:
        self._others = others
        self._buffer = b""
        self._consumers: dict[int, _Consumer] = {}

    def consume(self, channel: int, on_delivery: Callable[[Delivery], None]) -> None:
        """Call back for each delivery on a channel, from now on."""
        self._consumers[channel] = _Consumer(on_delivery)

    def feed(self, data: bytes) -> None:
        """Read what has come; frames may be cut anywhere."""
        buffer = self._buffer + data if self._buffer else data
        start, received = 0, len(buffer)
        while received - start >= _PREFIX.size:
            kind, channel, size = _PREFIX.unpack_from(buffer, start)
            # What is no frame says that the broker speaks another version of AMQP.
            end = start + size + _AROUND if kind <= _HEARTBEAT else received
            if end > received:
                break
            frame = buffer[start:end]
            start = end
            consumer = self._consumers.get(channel)
            if consumer is None or not consumer.take(kind, frame):
                self._others(frame)
        self._buffer = buffer[start:]


class _Consumer:
    """Puts the deliveries of one channel together."""

    def __init__(self, on_delivery: Callable[[Delivery], None]) -> None:
        self._on_delivery = on_delivery
        # None: no delivery has begun, so content on this channel is something else's.
        self._tag: int | None = None
        self._properties: Mapping[str, Any] = {}
        self._body: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, frame: bytes) -> bool:
        """Take a frame of a delivery.

        :return: whether it was one
        """
        if frame[-1:] != _END:
            return False
        if kind == _METHOD and frame.startswith(_DELIVER, _PREFIX.size):
            # The tag stands behind the consumer's, which is a short text.
            text = _PREFIX.size + len(_DELIVER)
            (self._tag,) = _TAG.unpack_from(frame, text + 1 + frame[text])
            return True
        if self._tag is None or kind not in (_HEADER, _BODY):
            return False
        if kind == _HEADER:
            _, _, self._missing = _CONTENT.unpack_from(frame, _PREFIX.size)
            self._properties = _decode_properties(frame)
        else:
            piece = frame[_PREFIX.size : -1]
            self._body.append(piece)
            self._missing -= len(piece)
        if self._missing <= 0:
            self._deliver(self._tag)
        return True

    def _deliver(self, tag: int) -> None:
        get = self._properties.get
        delivery = Delivery(
            b"".join(self._body),
            get("content_type"),
            get("content_encoding"),
            get("application_headers") or {},
            get("correlation_id"),
            tag,
        )
        self._tag, self._body = None, []
        self._on_delivery(delivery)


def _decode_properties(frame: bytes) -> Mapping[str, Any]:
    try:
        properties, _ = PROPERTY_CLASSES[_BASIC](frame, _PREFIX.size + _CONTENT.size)
    except Exception:
        # Any client may send this, and the broker passes it on; it must not end the connection. The
        # consumer drops a delivery without properties.
        return {}
    decoded: Mapping[str, Any] = properties
    return decoded
