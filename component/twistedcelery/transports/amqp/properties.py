"""A message's properties and headers in, bytes for AMQP 0-9-1 out: the same as py-amqp writes.

pika cannot encode floats, which time limits and users' headers have; and what Celery's own client
puts on the wire is what py-amqp makes of it.

What RabbitMQ answers by closing the channel or the connection is refused here: it would cost
every other message on that channel its confirmation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any

from amqp import Message

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.transports.amqp.table import encode_table, encode_text

__all__ = ["encode_properties"]

#: RabbitMQ's longest message TTL, in milliseconds: 49.7 days.
_MAX_EXPIRATION = 2**32 - 1


def encode_properties(message: OutgoingMessage, userid: str) -> bytes:
    """Encode the property flags and the property list of a content header.

    :param userid: who is logged in; RabbitMQ accepts no other ``user_id``
    :raises Exception: where there is no AMQP form, or RabbitMQ would not accept it
    """
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
    flags = 0
    parts: list[bytes] = []
    for name, flag, encode in _PROPERTIES:
        value = headers if name == "application_headers" else properties.get(name)
        if value is not None:
            flags |= flag
            parts.append(encode(value))
    return _FLAGS.pack(flags) + b"".join(parts)


def _short_text(text: str | bytes) -> bytes:
    encoded = encode_text(text or "")
    return bytes((len(encoded),)) + encoded


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


_FLAGS = Struct(">H")

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
