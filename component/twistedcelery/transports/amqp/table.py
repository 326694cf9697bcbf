"""Encodes AMQP 0-9-1 field tables, which headers are on the wire, in the same bytes as py-amqp.

Encoding its headers is a good part of what sending a task costs, so the types that Celery's own
headers have are encoded here, in half the time; py-amqp encodes the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import Any

from amqp.serialization import dumps

__all__ = ["encode_table", "encode_text"]

_LENGTH = Struct(">I").pack
_LONG_TEXT = Struct(">cI").pack
_INT_32 = Struct(">ci").pack
_INT_64 = Struct(">cq").pack


def encode_table(table: Mapping[str, Any]) -> bytes:
    """Encode a table, with its length.

    :raises Exception: for a value that has no AMQP form, NaN and Infinity among them: RabbitMQ
        would close the connection. py-amqp names no common class for what it cannot encode.
    """
    parts: list[bytes] = []
    for key, value in table.items():
        name = encode_text(key)
        parts += (bytes((len(name),)), name, _field(value))
    return _with_length(parts)


def encode_text(text: str | bytes) -> bytes:
    """Encode text as py-amqp does: what no UTF-8 can be made of is let through."""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


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
