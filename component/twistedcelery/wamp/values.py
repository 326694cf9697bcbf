r"""Brings values into a form that JSON, MessagePack and CBOR all carry the same.

A caller does not know which serialiser the bridge uses towards the router, and the bridge does not know
which one the caller uses. So a value must survive all three, or be refused before it is sent.
`normalise` decides per type:

=============================================  ======================================================
value                                          becomes
=============================================  ======================================================
``None``, ``bool``                             itself
``int`` of -2**63 to 2**64 - 1                 itself (JavaScript loses digits past 2**53)
``float``                                      itself
``str``                                        itself
``bytes``, ``bytearray``, ``memoryview``       bytes, which WAMP carries also over JSON
``datetime``, ``date``, ``time``               ISO 8601 text
``timedelta``                                  seconds, as a ``float``
``UUID``, ``Decimal``                          text, with every digit
``Enum``                                       its value
``list``, ``tuple``, ``deque``                 a list
``set``, ``frozenset``                         a list, in no particular order
mapping                                        a ``dict`` with keys of text
a key ``int``, ``float``, ``bool``, ``None``   the text that JSON makes of it
a key ``datetime``, ``UUID``, ``Decimal``, ..  the same text as the value
an exception                                   ``{"exc_type", "exc_module", "exc_message"}``
=============================================  ======================================================

Refused with `Unencodable`:

- NaN and the infinities: invalid JSON, which a browser cannot parse;
- integers past 64 bits: MessagePack has none;
- text that starts with ``\0``: WAMP's JSON marks bytes that way, so the peer would get bytes;
- text with lone surrogates: there is no UTF-8 for it;
- two keys of a mapping that become the same text;
- more than `MAX_DEPTH` levels of nesting, and therefore cycles;
- more than the message limit of the router, which would close the bridge's connection;
- every other type: convert such objects in the task.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from json.encoder import encode_basestring
from typing import Any, NamedTuple

from celery.utils.serialization import UnpickleableExceptionWrapper

from twistedcelery.errors import TaskFailure

__all__ = [
    "MAX_DEPTH",
    "MAX_SIZE",
    "Normalised",
    "Unencodable",
    "describe_exception",
    "normalise",
    "normalise_and_measure",
    "plain_text",
]

#: Levels of nesting. Autobahn's JSON decoder recurses in Python, twice a level, below the router's
#: own frames: past a few hundred levels the router fails, not only the caller.
MAX_DEPTH = 100

#: Bytes that a value may take in the longest of the three serialisations: Crossbar's default limit of
#: 16 MiB, less the envelope.
MAX_SIZE = 16 * 1024 * 1024 - 64 * 1024

_SMALLEST_INT = -(2**63)
_LARGEST_INT = 2**64 - 1

#: Types with one obvious text; `datetime` is a `date`.
_TEXT_TYPES = (dt.date, dt.time, uuid.UUID, decimal.Decimal)

#: Characters of an exception's message. Longer ones are cut: they are only a part of an error or event.
_MAX_EXCEPTION_TEXT = 16 * 1024

#: From this many bytes on, MessagePack and CBOR put more before a text than JSON's two quotes.
_LONG_TEXT = 256


class Unencodable(ValueError):
    """WAMP cannot carry a value. The message says which part of it, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self._reason = reason
        self._path = ""

    def inside(self, key: object) -> None:
        """Add the container of the refused part to its path, from the inside out."""
        self._path = f"[{key!r:.80}]{self._path}"

    def __str__(self) -> str:
        return f"value{self._path} {self._reason}"


class Normalised(NamedTuple):
    """A value that was normalised already.

    :ivar size: bytes that it takes in the longest serialisation
    """

    value: Any
    size: int


def normalise(value: Any, max_size: int = MAX_SIZE) -> Any:
    """The form of ``value`` that every WAMP serialiser carries the same; see the module's table.

    :param value: of one that is `Normalised`, only the size is checked
    :param max_size: bytes that the value may take in the longest serialisation
    :raise Unencodable: if there is no such form
    """
    if not isinstance(value, Normalised):
        return normalise_and_measure(value, max_size).value
    if value.size > max_size:
        raise _too_large(max_size)
    return value.value


def normalise_and_measure(value: Any, max_size: int = MAX_SIZE) -> Normalised:
    """As `normalise`, with the size."""
    normaliser = _Normaliser(max_size)
    return Normalised(normaliser.value(value, 0), normaliser.size)


def _too_large(max_size: int) -> Unencodable:
    return Unencodable(f"makes the whole take more than {max_size} bytes")


class _Normaliser:
    """One pass over one value, which counts the bytes.

    JSON is the longest of the three, except for short floats and for the headers of long strings.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._left = max_size

    @property
    def size(self) -> int:
        return self._max_size - self._left

    def value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            self._spend(5)
            return value
        if kind is str:
            return self._text(value)
        if kind is int:
            return self._integer(value)
        if kind is float:
            return self._float(value)
        if depth >= MAX_DEPTH:
            raise Unencodable(f"is nested deeper than {MAX_DEPTH} levels")
        return self._other(value, depth)

    def _other(self, value: Any, depth: int) -> Any:
        for kinds, handle in _BY_KIND:
            if isinstance(value, kinds):
                return handle(self, value, depth)
        raise Unencodable(f"is of type {_type_name(value)}")

    def scalar(self, value: Any, depth: int) -> Any:
        """A value that has one obvious form of a simpler type."""
        return self.value(_simple(value), depth + 1)

    def _text(self, text: str) -> str:
        if text.startswith("\0"):
            raise Unencodable("is text that starts with \\0, WAMP's mark for bytes in JSON")
        self._spend_text(text)
        return text

    def _integer(self, number: int) -> int:
        if not _SMALLEST_INT <= number <= _LARGEST_INT:
            raise Unencodable("is an integer past 64 bits")
        self._spend(len(repr(number)))
        return number

    def _float(self, number: float) -> float:
        if not math.isfinite(number):
            raise Unencodable(f"is {number}, which JSON does not have")
        self._spend(max(9, len(repr(number))))
        return number

    def bytes(self, data: bytes | bytearray | memoryview, _: int) -> bytes:
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        # JSON: quotes, the escaped mark, and base64.
        self._spend(8 + 4 * ((size + 2) // 3))
        return bytes(data)

    def sequence(self, items: Collection[Any], depth: int) -> list[Any]:
        self._spend(2 + len(items))
        normal: list[Any] = []
        try:
            normal.extend(self.value(item, depth + 1) for item in items)
        except Unencodable as unencodable:
            unencodable.inside(len(normal))
            raise
        return normal

    def mapping(self, mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        self._spend(2 + 2 * len(mapping))
        normal: dict[str, Any] = {}
        for key, item in mapping.items():
            text = _key_as_text(key)
            if text in normal:
                raise Unencodable(f"has two keys that both become {text!r:.80}")
            self._spend_text(text)
            try:
                normal[text] = self.value(item, depth + 1)
            except Unencodable as unencodable:
                unencodable.inside(text)
                raise
        return normal

    def _spend_text(self, text: str) -> None:
        # Checked before the copies below are made.
        if len(text) > self._left:
            self._spend(len(text))
        try:
            size = len(encode_basestring(text).encode())
        except UnicodeEncodeError:
            raise Unencodable("is or has text with lone surrogates") from None
        self._spend(size if size < _LONG_TEXT else size + 3)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _too_large(self._max_size)


#: For values that are not exactly of JSON's own types. The first match decides: an `Enum` may be a number
#: or a text as well. A subclass of a simple type becomes its base, the only one that the peer knows.
_BY_KIND: tuple[tuple[Any, Callable[[_Normaliser, Any, int], Any]], ...] = (
    (Enum, _Normaliser.scalar),
    (Mapping, _Normaliser.mapping),
    ((list, tuple, set, frozenset, deque), _Normaliser.sequence),
    ((bytes, bytearray, memoryview), _Normaliser.bytes),
    (BaseException, lambda normaliser, error, depth: normaliser.mapping(describe_exception(error), depth)),
    ((str, int, float, dt.timedelta, *_TEXT_TYPES), _Normaliser.scalar),
)


def _simple(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value) if base is not str else str.__str__(value)
    return _as_text(value)


def _as_text(value: Any) -> str:
    """The text for one of `_TEXT_TYPES`."""
    return value.isoformat() if isinstance(value, dt.date | dt.time) else str(value)


def _key_as_text(key: Any) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int) and _SMALLEST_INT <= key <= _LARGEST_INT:
        return int.__repr__(key)
    if isinstance(key, float) and math.isfinite(key):
        return float.__repr__(key)
    if isinstance(key, _TEXT_TYPES):
        return _as_text(key)
    raise Unencodable(f"has a key of type {_type_name(key)}")


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def describe_exception(error: BaseException) -> dict[str, str]:
    """Return ``exc_type``, ``exc_module`` and ``exc_message``. Never raises, whatever the class does."""
    if isinstance(error, TaskFailure):
        names = ("exc_type", "exc_module", "exc_message")
        return {name: plain_text(getattr(error, name)) for name in names}
    if isinstance(error, UnpickleableExceptionWrapper):
        # Celery wraps an exception that it cannot rebuild; the wrapper knows its class.
        exc_type, exc_module = error.exc_cls_name, error.exc_module
    else:
        exc_type, exc_module = type(error).__name__, type(error).__module__
    try:
        message = str(error)
    except Exception as broken:
        # Rebuilt from a message, it may lack attributes that its __str__ needs.
        message = f"<no message: {type(broken).__name__} in __str__>"
    return {
        "exc_type": plain_text(exc_type),
        "exc_module": plain_text(exc_module),
        "exc_message": plain_text(message),
    }


def plain_text(value: object) -> str:
    """Text that every serialiser carries, cut to a bearable length."""
    plain = str(value)[:_MAX_EXCEPTION_TEXT].encode(errors="backslashreplace").decode()
    return "\\x00" + plain[1:] if plain.startswith("\0") else plain
