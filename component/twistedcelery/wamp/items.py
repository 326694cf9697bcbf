"""Counts the items of a value.

The bridge has one thread for all callers, and each item of a value costs it time, however few bytes it takes:
five million empty lists are 5 MB, and 15 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = ["Path", "TooManyItems", "check_items", "containers"]

#: How a container was reached: the `Path` of the one around it, and its key or index there. The outermost is
#: an empty tuple.
Path = tuple[Any, ...]

#: What serialisations decode containers to. CBOR and pickle have more than JSON.
_CONTAINERS = (list, dict, tuple, Mapping, AbstractSet)

#: Most values are of these types, and need no further look.
_PLAIN = frozenset((str, int, float, bool, type(None), bytes))


class TooManyItems(ValueError):
    """A value has more items than the configuration allows."""

    def __init__(self, max_items: int) -> None:
        super().__init__(
            f"more than {max_items} items in all; max_items of the bridge's configuration allows more"
        )


def check_items(max_items: int, **values: Any) -> None:
    """Check how many items values have.

    :param max_items: items that all of them together may have
    :raise TooManyItems: if they have more
    """
    for _ in containers(values, max_items):
        pass


def containers(values: Mapping[str, Any], max_items: int) -> Iterator[tuple[Any, int, Path]]:
    """Walk all containers that are not empty.

    One container in many places, as CBOR can have it, counts in each. So the walk ends, also in a cycle.

    :param values: by the names with which their paths begin
    :param max_items: items that all of them together may have
    :return: each container, the number of those around it, and how it was reached
    :raise TooManyItems: if there are more
    """
    # No recursion: the nesting may be a stranger's.
    found: list[tuple[Any, int, Path]] = [(values, 0, ())]
    left = max_items
    while found:
        if left < 0:
            raise TooManyItems(max_items)
        container, depth, path = found.pop()
        if depth:
            yield container, depth, path
        for key, item in container.items() if isinstance(container, dict | Mapping) else enumerate(container):
            if type(item) not in _PLAIN and isinstance(item, _CONTAINERS) and item:
                left -= len(item)
                found.append((item, depth + 1, (path, key)))
