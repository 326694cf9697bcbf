"""Writes the AMQP 0-9-1 frames of published messages, and reads those of consumed ones.

For each of a message's three frames pika makes several objects and looks up callbacks by name, which
costs more than everything else that a reply needs. pika handles all other frames.

Properties and headers are encoded in the same bytes as py-amqp, which Celery's own client uses; pika
cannot encode floats, which time limits and users' headers have. Encoding its headers is a good part
of what sending a task costs, so the types that Celery's own headers have are encoded here, in half
the time; py-amqp encodes the others.

A message that would make RabbitMQ close the channel or the connection is refused here: every other
message on that channel would lose its confirmation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import Any

from amqp import Message
from amqp.serialization import PROPERTY_CLASSES, dumps

from twistedcelery.encoding.message import Form, OutgoingMessage
from twistedcelery.transports.amqp.delivery import Delivery

__all__ = ["DeliveryReader", "encode_properties", "encode_table", "encode_text", "publish_frames"]

# Header tables

_LENGTH = Struct(">I").pack
_LONG_TEXT = Struct(">cI").pack
_INT_32 = Struct(">ci").pack
_INT_64 = Struct(">cq").pack


def encode_table(table: Mapping[str, Any]) -> bytes:
    """Encode a table, with its length.

    :raises Exception: for a value that has no AMQP form, NaN and Infinity among them: RabbitMQ
        would close the connection. py-amqp names no common class for what it cannot encode.
    """
    return _with_length([_entry(key, value) for key, value in table.items()])


def encode_text(text: str | bytes) -> bytes:
    """Encode text as py-amqp does: what no UTF-8 can be made of is let through."""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _entry(key: str, value: Any) -> bytes:
    return _name(key) + _FIELDS.get(type(value), _other)(value)


def _name(key: str) -> bytes:
    name = encode_text(key)
    return bytes((len(name),)) + name


def _field(value: Any) -> bytes:
    return _FIELDS.get(type(value), _other)(value)


def _text(value: str) -> bytes:
    encoded = encode_text(value)
    return _LONG_TEXT(b"S", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    # Not -2**31, which py-amqp writes as a long integer, too.
    return _INT_32(b"I", value) if -(2**31) < value < 2**31 else _INT_64(b"L", value)


def _array(value: Iterable[Any]) -> bytes:
    return b"A" + _with_length([_field(item) for item in value])


def _other(value: Any) -> bytes:
    """Other values: floats, bytes, decimals, times, and subclasses of the types below."""
    if not _finite(value):
        raise ValueError("AMQP has NaN and Infinity, but RabbitMQ does not take them")
    array: bytes = dumps("A", [[value]])
    return array[4:]


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return True


def _with_length(parts: list[bytes]) -> bytes:
    encoded = b"".join(parts)
    return _LENGTH(len(encoded)) + encoded


_FIELDS: Mapping[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"V",
    bool: lambda value: b"t\x01" if value else b"t\x00",
    int: _integer,
    str: _text,
    list: _array,
    tuple: _array,
    dict: lambda value: b"F" + encode_table(value),
}


# Properties

#: RabbitMQ's longest message TTL, in milliseconds: 49.7 days.
_MAX_EXPIRATION = 2**32 - 1


def encode_properties(message: OutgoingMessage, userid: str) -> bytes:
    """Encode the property flags and the property list of a content header.

    :param userid: the user of the connection; RabbitMQ accepts no other ``user_id``
    :raises Exception: where there is no AMQP form, or RabbitMQ would not accept it
    """
    form = message.form
    if form is None:
        _check_properties(message, userid)
        return b"".join(_property_parts(message).values())
    writer = form.encoded
    if writer is None or writer.userid != userid:
        writer = form.encoded = _FormWriter(message, form, userid)
    encoded: bytes = writer.properties(message)
    return encoded


class _FormWriter:
    """Encodes the properties of messages that have nearly all of them in common.

    Of each, only what differs is encoded: its task's id, and some headers.

    :param message: one of them
    :param userid: as for `encode_properties`
    """

    def __init__(self, message: OutgoingMessage, form: Form, userid: str) -> None:
        _check_properties(message, userid)
        self.userid = userid
        parts = _property_parts(message)
        names, encoded = list(parts), list(parts.values())
        headers, correlation_id = names.index(_HEADERS), names.index("correlation_id")
        self._before = b"".join(encoded[:headers])
        self._between = b"".join(encoded[headers + 1 : correlation_id])
        self._after = b"".join(encoded[correlation_id + 1 :])
        #: The names of the headers that vary, each with what stands before its value.
        self._fields: list[tuple[bytes, str]] = []
        constant = b""
        for key, value in message.headers.items():
            if key in form.varying:
                self._fields.append((constant + _name(key), key))
                constant = b""
            else:
                constant += _entry(key, value)
        self._last = constant

    def properties(self, message: OutgoingMessage) -> bytes:
        headers = message.headers
        table: list[bytes] = []
        for before, name in self._fields:
            table += (before, _text(headers[name]))
        table.append(self._last)
        correlation_id = _short_text(message.properties["correlation_id"])
        return b"".join((self._before, _with_length(table), self._between, correlation_id, self._after))


def _check_properties(message: OutgoingMessage, userid: str) -> None:
    properties, headers = message.properties, message.headers
    expiration = int(properties.get("expiration") or 0)
    if expiration < 0:
        raise ValueError("the expiration is negative")
    if expiration > _MAX_EXPIRATION:
        raise ValueError("expires is further away than RabbitMQ's longest TTL, 49.7 days")
    if properties.get("user_id") not in (None, userid):
        raise ValueError(f"user_id must be that of the connection, {userid!r}")
    for name in ("CC", "BCC"):
        if name in headers and not _is_list_of_text(headers[name]):
            raise ValueError(f"the header {name} must be a list of routing keys")


def _property_parts(message: OutgoingMessage) -> dict[str, bytes]:
    """The encoded properties in AMQP's order, by py-amqp's names; the flags come first."""
    flags = 0
    parts = {"": b""}
    for name, flag, encode in _PROPERTIES:
        value = message.headers if name == _HEADERS else message.properties.get(name)
        if value is not None:
            flags |= flag
            parts[name] = encode(value)
    parts[""] = _FLAGS.pack(flags)
    return parts


def _short_text(text: str | bytes) -> bytes:
    encoded = encode_text(text or "")
    if len(encoded) > 255:
        raise ValueError(f"{encoded[:40]!r}... is longer than 255 bytes")
    return bytes((len(encoded),)) + encoded


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


_FLAGS = Struct(">H")

#: py-amqp's name for the headers.
_HEADERS = "application_headers"

#: The properties in AMQP's order: py-amqp's name, the flag that says it is there, and its encoding.
_ENCODINGS: Mapping[str, Callable[[Any], bytes]] = {
    "s": _short_text,
    "F": encode_table,
    "o": Struct(">B").pack,
    "L": Struct(">Q").pack,
}
_PROPERTIES = [
    (name, 0x8000 >> place, _ENCODINGS[encoding]) for place, (name, encoding) in enumerate(Message.PROPERTIES)
]


# Frames

#: Types of frames.
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

    :param properties: from `twistedcelery.transports.amqp.wire.encode_properties`
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
