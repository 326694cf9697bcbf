"""Parses ``celery_options``, the one keyword of a call that is not the task's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, tzinfo
from typing import Any

__all__ = [
    "CALLER_HEADERS",
    "DEFAULT_OPTIONS",
    "KNOWN_OPTIONS",
    "NotAllowed",
    "OptionError",
    "check_times",
    "is_scheduled",
    "parse_options",
    "times",
]

#: The prefix of the message headers that name the caller.
CALLER_HEADERS = "wamp_"

#: AMQP encodes a priority, and the length of a short text, in one byte.
_BYTE = 255


class OptionError(ValueError):
    """An option has a value that it does not accept."""


class NotAllowed(OptionError):
    """The configuration does not allow the option, or not this value."""


def parse_options(options: Any, allowed: Collection[str]) -> dict[str, Any]:
    """Turn a caller's options into keywords of ``send_task``.

    :param options: a mapping of option names to plain values; ``None`` is an empty one
    :raise NotAllowed: names the first key that is not in ``allowed``
    :raise OptionError: names the key and what it accepts
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise OptionError("an object is needed, with the options as its keys")
    for key in options:
        if key not in allowed:
            names = ", ".join(sorted(allowed)) or "none"
            raise NotAllowed(f"{key!r:.80} is not allowed here; allowed: {names}")
    # Like Celery, take None as not given.
    return {key: KNOWN_OPTIONS[key](key, value) for key, value in options.items() if value is not None}


def is_scheduled(options: Any) -> bool:
    """Whether options, as they came, are of a task that is not to run at once."""
    return isinstance(options, Mapping) and bool(options.get("countdown") or options.get("eta"))


def times(options: Mapping[str, Any], now: float, timezone: tzinfo) -> tuple[float, float | None]:
    """When a task is due and when it expires, in seconds from now.

    :param options: keywords of ``send_task``
    :param now: seconds since the epoch
    :param timezone: of times without an offset
    :return: 0 or less: it is due now; ``None``: it does not expire, or nobody but Celery can say when
    """

    def seconds(moment: Any) -> float | None:
        if isinstance(moment, datetime):
            aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone)
            return aware.timestamp() - now
        return moment if isinstance(moment, int | float) else None

    # Like Celery, take the countdown where there are both.
    due_in = seconds(options.get("countdown") or options.get("eta"))
    return due_in or 0.0, seconds(options.get("expires"))


def check_times(
    due_in: float, expires_in: float | None, max_countdown: float | None, max_expires: float | None
) -> None:
    """Refuse times that are too far away.

    :param max_countdown: seconds that a task may wait for its ETA; ``None``: any
    :param max_expires: seconds after its ETA in which a task may be started; ``None``: any
    :raise NotAllowed: says what is allowed
    """
    if max_countdown is not None and due_in > max_countdown:
        raise NotAllowed(f"countdown and eta may be at most {max_countdown:g} s from now")
    if max_expires is not None and expires_in is not None and expires_in > max(0.0, due_in) + max_expires:
        raise NotAllowed(f"expires may be at most {max_expires:g} s after the task is due")


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise OptionError(f"{key} takes a number of seconds")
    return value


def _time(key: str, value: Any) -> datetime:
    """ISO 8601. Like Celery, take a time without an offset as one in the application's time zone."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass  # Refused below.
    raise OptionError(f"{key} takes a time as ISO 8601 text, such as 2030-12-24T18:00:00+00:00")


def _seconds_or_time(key: str, value: Any) -> float | datetime:
    return _time(key, value) if isinstance(value, str) else _seconds(key, value)


def _priority(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _BYTE:
        raise OptionError(f"{key} takes a whole number from 0 to {_BYTE}")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value.encode(errors="replace")) > _BYTE:
        raise OptionError(f"{key} takes text of 1 to {_BYTE} bytes")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{key} takes true or false")
    return value


def _headers(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise OptionError(f"{key} takes an object")
    if any(name.startswith(CALLER_HEADERS) for name in value):
        raise NotAllowed(f"{key}: names that begin with {CALLER_HEADERS!r} are the bridge's own")
    return dict(value)


#: Every option that a configuration may allow, with the check of its value. Callbacks, producers and
#: ids are not for callers.
KNOWN_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "compression": _text,
    "countdown": _seconds,
    "eta": _time,
    "exchange": _text,
    "expires": _seconds_or_time,
    "headers": _headers,
    "ignore_result": _flag,
    "priority": _priority,
    "queue": _text,
    "retry": _flag,
    "routing_key": _text,
    "serializer": _text,
    "shadow": _text,
    "soft_time_limit": _seconds,
    "time_limit": _seconds,
}

DEFAULT_OPTIONS = frozenset({"countdown", "eta", "expires", "priority", "time_limit", "soft_time_limit"})
