"""Keeps a session when one of its messages cannot be decoded.

Autobahn ends the session then, and with it the calls of all callers. But the arguments in an INVOCATION are
a caller's, and what one serialisation carries another may not: a router reads MessagePack that is nested
1,000 levels deep, and passes it on in CBOR, whose decoder stops at 400. A Crossbar container always offers
CBOR first, whatever ``serializers`` of its configuration says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from autobahn.wamp.exception import ProtocolError
from autobahn.wamp.message import Event, Invocation

__all__ = ["Unreadable", "keep_session"]

#: The messages with payload that peers of the bridge cause.
_FROM_PEERS = frozenset((Invocation.MESSAGE_TYPE, Event.MESSAGE_TYPE))

#: How CBOR and MessagePack begin an integer that takes 1, 2, 4 or 8 more bytes.
_CBOR_INTEGERS = {24: 1, 25: 2, 26: 4, 27: 8}
_MSGPACK_INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}

_JSON_HEAD = re.compile(rb"\s*\[\s*(\d+)\s*,\s*(\d+)\s*,")


class Unreadable(NamedTuple):
    """A message that cannot be decoded.

    :ivar kind: the type of WAMP message: that of INVOCATION or EVENT
    :ivar number: the call of an INVOCATION, or the subscription of an EVENT
    :ivar reason: why it cannot be decoded
    """

    kind: int
    number: int
    reason: str


def keep_session(transport: Any, unreadable: Callable[[Unreadable], None]) -> None:
    """Report messages from peers that cannot be decoded, instead of ending the session.

    :param transport: one that has just been connected; its serialiser is its own
    """
    serializer = getattr(transport, "_serializer", None)
    if serializer is None:
        return
    decode = serializer.unserialize

    def unserialize(payload: bytes, *is_binary: Any) -> list[Any]:
        try:
            messages: list[Any] = decode(payload, *is_binary)
        except ProtocolError:
            messages, parts = [], list(_split(serializer.SERIALIZER_ID, payload))
            if not parts:
                raise
            for one in parts:
                try:
                    messages += decode(one, *is_binary)
                except ProtocolError as error:
                    head = _head(serializer.SERIALIZER_ID, one)
                    if head is None or head[0] not in _FROM_PEERS:
                        raise
                    unreadable(Unreadable(*head, str(error)))
        return messages

    serializer.unserialize = unserialize


def _split(serializer: str, payload: bytes) -> Iterator[bytes]:
    """The messages of one frame, each with what a batched serialisation puts around it."""
    name, _, batched = serializer.partition(".")
    if not batched:
        yield payload
    elif name == "json":
        yield from (message + b"\x18" for message in payload.split(b"\x18")[:-1])
    else:
        while payload:
            size = 4 + int.from_bytes(payload[:4])
            yield payload[:size]
            payload = payload[size:]


def _head(serializer: str, message: bytes) -> tuple[int, int] | None:
    """The first two elements of a message; ``None`` if they are no integers."""
    name, _, batched = serializer.partition(".")
    if name == "json":
        match = _JSON_HEAD.match(message)
        return None if match is None else (int(match[1]), int(match[2]))
    if name not in ("cbor", "msgpack"):
        return None
    # Behind the size, if it is batched, and one byte for the array.
    rest = message[5 if batched else 1 :]
    integers = _CBOR_INTEGERS if name == "cbor" else _MSGPACK_INTEGERS
    found = []
    for _ in range(2):
        if not rest:
            return None
        size = integers.get(rest[0], 0)
        found.append(int.from_bytes(rest[1 : 1 + size]) if size else rest[0])
        rest = rest[1 + size :]
    return found[0], found[1]
