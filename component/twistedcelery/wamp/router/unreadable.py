"""Keeps a session when one of its messages cannot be decoded.

Autobahn ends the session then, and with it the calls of all callers. But the arguments in an INVOCATION are
a caller's, and what one serialisation carries another may not: a router reads MessagePack that is nested
1,000 levels deep, and passes it on in CBOR, whose decoder stops at 400. A Crossbar container always offers
CBOR first, whatever ``serializers`` of its configuration says.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from autobahn.wamp.exception import ProtocolError
from autobahn.wamp.message import Event, Invocation

__all__ = ["Unreadable", "keep_session"]

#: The messages with payload that peers of the bridge cause.
_FROM_PEERS = frozenset((Invocation.MESSAGE_TYPE, Event.MESSAGE_TYPE))

#: How CBOR and MessagePack begin an integer that takes 1, 2, 4 or 8 more bytes.
_CBOR_INTEGERS = {24: 1, 25: 2, 26: 4, 27: 8}
_MSGPACK_INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}

#: From how many bytes on the garbage collector matters.
_LARGE = 64 * 1024

_JSON_HEAD = re.compile(rb"\s*\[\s*(\d+)\s*,\s*(\d+)\s*,")


class Unreadable(NamedTuple):
    """A message that was not decoded.

    :ivar kind: the type of WAMP message: that of INVOCATION or EVENT
    :ivar number: the call of an INVOCATION, or the subscription of an EVENT
    :ivar reason: why not
    """

    kind: int
    number: int
    reason: str


def keep_session(transport: Any, unreadable: Callable[[Unreadable], None], max_bytes: int) -> None:
    """Report messages from peers that are too large, or cannot be decoded, without ending the session.

    :param transport: one that has just been connected; its serialiser is its own
    :param max_bytes: a larger message from a peer is not decoded
    """
    serializer = getattr(transport, "_serializer", None)
    if serializer is None:
        return
    name, decode = serializer.SERIALIZER_ID, serializer.unserialize

    def unserialize(payload: bytes, *is_binary: Any) -> list[Any]:
        with _no_collection(len(payload)):
            if len(payload) <= max_bytes:
                with suppress(ProtocolError):
                    whole: list[Any] = decode(payload, *is_binary)
                    return whole
            messages: list[Any] = []
            for one in _split(name, payload) or (payload,):
                messages += one_by_one(one, *is_binary)
            return messages

    def one_by_one(message: bytes, *is_binary: Any) -> list[Any]:
        head = _head(name, message)
        peers = head if head is not None and head[0] in _FROM_PEERS else None
        if peers is not None and len(message) > max_bytes:
            reason = f"it has {len(message)} bytes; max_call_bytes allows {max_bytes}"
        else:
            try:
                decoded: list[Any] = decode(message, *is_binary)
            except ProtocolError as error:
                if peers is None:
                    raise
                reason = str(error)
            else:
                return decoded
        unreadable(Unreadable(*peers, reason))
        return []

    serializer.unserialize = unserialize


@contextmanager
def _no_collection(size: int) -> Iterator[None]:
    """Decode a large message without Python's garbage collector.

    Decoding makes no garbage. The collector would walk all that was decoded so far again and again: of the
    time for a million lists, nine tenths.
    """
    if size < _LARGE or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _split(serializer: str, payload: bytes) -> list[bytes]:
    """The messages of one frame, each with what a batched serialisation puts around it."""
    name, _, batched = serializer.partition(".")
    if not batched:
        return [payload]
    if name == "json":
        return [message + b"\x18" for message in payload.split(b"\x18")[:-1]]
    parts = []
    while payload:
        size = 4 + int.from_bytes(payload[:4])
        parts.append(payload[:size])
        payload = payload[size:]
    return parts


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
