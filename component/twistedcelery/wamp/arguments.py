"""Checks a caller's values before they are sent to a worker.

What kombu's JSON encodes without complaint is not always what a worker can decode. It drops such a message
without a reply, and its caller would wait for ever. So these are refused here:

- an object with the keys ``__type__`` and ``__value__`` and no others: kombu marks dates, bytes and decimals
  that way, and its JSON has no escape. A worker drops a message with a mark that it does not know, and makes
  another value of one that it knows;
- more than `MAX_DEPTH` levels of nesting: a worker's decoder gives up at Python's recursion limit;
- more items than the configuration allows; see `twistedcelery.wamp.items`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twistedcelery.wamp.items import Path, containers
from twistedcelery.wamp.values import MAX_DEPTH

__all__ = ["ArgumentsRefused", "check_sendable"]

#: The keys of kombu's marks (``kombu.utils.json.object_hook``).
_MARK = ("__type__", "__value__")

#: Steps of a path that an error shows.
_SHOWN = 5


class ArgumentsRefused(ValueError):
    """A value cannot be sent to a worker. The message says which part of it, and why."""


def check_sendable(max_items: int, **values: Any) -> None:
    """Check values that are to be sent to a worker.

    :param max_items: items that all of them together may have
    :param values: by the names that the error gives them
    :raise ArgumentsRefused: for the first part that is refused
    :raise TooManyItems: if they have more items
    """
    for container, depth, path in containers(values, max_items):
        if depth > MAX_DEPTH:
            raise ArgumentsRefused(f"{_text(path)} is nested deeper than {MAX_DEPTH} levels")
        if len(container) == len(_MARK) and isinstance(container, Mapping) and _is_mark(container):
            raise ArgumentsRefused(
                f"{_text(path)} has the keys '__type__' and '__value__' and no others, which Celery's JSON "
                "keeps for itself; add a key, or send the object as text"
            )


def _is_mark(mapping: Mapping[Any, Any]) -> bool:
    return all(key in mapping for key in _MARK)


def _text(path: Path) -> str:
    """A path as ``args[0]['key']``, without its end if it is long."""
    keys: list[Any] = []
    while path:
        path, key = path
        keys.append(key)
    name, *inner = reversed(keys)
    shown = "".join(f"[{key!r:.80}]" for key in inner[:_SHOWN])
    return f"{name}{shown}{'...' if len(inner) > _SHOWN else ''}"
