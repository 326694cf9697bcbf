"""Checks the arguments of commands to workers.

Workers accept most arguments unchecked. Some of them stop a worker's main loop much later: a rate that is no
number, a queue that the broker refuses. So a table has a check for each parameter's name. A parameter that
it lacks, of a newer Celery or of the application, is not checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kombu.matcher import match

from twistedcelery.wamp.arguments import ArgumentsRefused, check_sendable
from twistedcelery.wamp.values import Unencodable, normalise

__all__ = ["MAX_TIMEOUT", "ArgumentError", "check_arguments"]

#: Seconds to wait for replies. Meanwhile the call counts towards the limit.
MAX_TIMEOUT = 60.0

#: Processes, tasks, objects: more at once is a typing error.
_MAX_NUMBER = 1000

#: AMQP encodes the length of a name in one byte.
_MAX_NAME = 255

#: Bytes of one command's arguments. Every worker receives them, even if it is not addressed.
_MAX_SIZE = 1024 * 1024

#: Takes the name of a parameter and a value. Raises `ArgumentError` if the value is not accepted.
_Check = Callable[[str, Any], None]

_RATE = re.compile(r"\d{1,9}(\.\d{1,9})?(/[smh])?")


class ArgumentError(ValueError):
    """An argument has a value that it does not accept."""


def check_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check a command's arguments and options.

    :param arguments: by the names of their parameters
    :return: the same, with the ``matcher`` that a ``pattern`` needs: Celery ignores a pattern without one,
        and addresses every worker
    :raise ArgumentError: names the argument and what it accepts
    """
    try:
        check_sendable(_MAX_SIZE, **arguments)
        normalise(arguments, _MAX_SIZE)
    except (ArgumentsRefused, Unencodable) as error:
        raise ArgumentError(f"the arguments cannot be sent: {error}") from None
    checked = dict(arguments)
    for name, value in arguments.items():
        check = _CHECKS.get(name)
        if check is not None:
            check(name, value)
    pattern = checked.get("pattern")
    if pattern is not None:
        checked["matcher"] = checked.get("matcher") or "glob"
        _check_pattern(pattern, checked["matcher"])
    return checked


def _check_pattern(pattern: str, matcher: str) -> None:
    try:
        match(b"", pattern.encode(), matcher)
    except Exception as error:
        # The matcher is not installed, or refuses the pattern.
        raise ArgumentError(
            f"pattern and matcher: {type(error).__name__}: {error}; the matchers are 'glob' and 'pcre'"
        ) from error


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value.encode(errors="replace")) <= _MAX_NAME:
        raise ArgumentError(f"{name} takes text of 1 to {_MAX_NAME} bytes")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} takes true or false")


def _number(least: int, most: int) -> _Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ArgumentError(f"{name} takes a whole number from {least} to {most}")

    return check


def _seconds(limit: float) -> _Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= limit:
            raise ArgumentError(f"{name} takes a number of seconds above 0, at most {limit:g}")

    return check


def _rate(name: str, value: Any) -> None:
    valid = _RATE.fullmatch(value) if isinstance(value, str) else value == 0 or _is_positive(value)
    if isinstance(value, bool) or not valid:
        raise ArgumentError(f"{name} takes a number of tasks a second, or text such as '10/m'; 0: no limit")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < _MAX_COUNT


def _texts(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or not value:
        # An empty list of destinations would address every worker.
        raise ArgumentError(f"{name} takes a list of texts that is not empty")
    for each in value:
        _text(f"each of {name}", each)


def _text_or_texts(name: str, value: Any) -> None:
    _text(name, value) if isinstance(value, str) else _texts(name, value)


def _items(name: str, value: Any) -> None:
    """Positional arguments: none, some texts, or one list of them."""
    for each in value:
        _text_or_texts(name, each)


def _stamps(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not value:
        raise ArgumentError(f"{name} takes an object: names of stamps, each with a text or a list of texts")
    for key, stamps in value.items():
        _text(f"each name in {name}", key)
        _text_or_texts(f"{name}[{key!r:.80}]", stamps)


def _object(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} takes an object")


def _queue_options(name: str, value: Any) -> None:
    _object(name, value)
    for key, option in value.items():
        check = _QUEUE_OPTIONS.get(key)
        if check is None:
            raise ArgumentError(f"{name} takes an object with some of the keys {', '.join(_QUEUE_OPTIONS)}")
        check(f"{name}[{key!r}]", option)


def _nothing(name: str, value: Any) -> None:
    raise ArgumentError(f"{name} is for callers in the same process")


def _or_none(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


def _one_of(*accepted: str) -> _Check:
    def check(name: str, value: Any) -> None:
        if value not in accepted:
            raise ArgumentError(f"{name} takes one of {', '.join(map(repr, accepted))}")

    return check


_MAX_COUNT = 10**9
_FEW = _number(1, _MAX_NUMBER)
_MANY = _number(0, _MAX_COUNT)
_LIMIT = _or_none(_seconds(_MAX_COUNT))

#: Options of a new queue, under kombu's own names.
_QUEUE_OPTIONS: dict[str, _Check] = {
    "durable": _flag,
    "auto_delete": _flag,
    "exclusive": _flag,
    "no_ack": _flag,
    "expires": _LIMIT,
    "message_ttl": _LIMIT,
    "max_length": _MANY,
    "max_length_bytes": _MANY,
    "max_priority": _number(1, 255),
    "queue_arguments": _object,
    "binding_arguments": _object,
    "consumer_arguments": _object,
}

_CHECKS: dict[str, _Check] = {
    # Which workers are asked, and how long.
    "destination": _or_none(_texts),
    "pattern": _or_none(_text),
    "matcher": _or_none(_text),
    "timeout": _seconds(MAX_TIMEOUT),
    "limit": _or_none(_FEW),
    "reply": _flag,
    # The parameters of commands.
    "action": _or_none(_object),
    "arguments": _or_none(_object),
    "command": _text,
    "exchange": _or_none(_text),
    "exchange_type": _or_none(_one_of("direct", "topic", "fanout", "headers")),
    "from_node": _text,
    "hard": _LIMIT,
    "headers": _stamps,
    "ids": _items,
    "max": _FEW,
    "max_depth": _FEW,
    "min": _number(0, _MAX_NUMBER),
    "modules": _or_none(_texts),
    "n": _FEW,
    "options": _or_none(_queue_options),
    "queue": _text,
    "rate_limit": _or_none(_rate),
    "reload": _flag,
    "reloader": _or_none(_nothing),
    "revoked": _or_none(_texts),
    "routing_key": _or_none(_text),
    "safe": _or_none(_flag),
    "samples": _FEW,
    "signal": _text,
    "soft": _LIMIT,
    "task_id": _text_or_texts,
    "task_name": _text,
    "taskinfoitems": _items,
    "terminate": _flag,
    "type": _text,
    "with_defaults": _flag,
}
