"""What a caller may send to a worker, and how many items a value may have."""

from __future__ import annotations

import functools
from types import MappingProxyType

import pytest

from twistedcelery.wamp.arguments import ArgumentsRefused, check_sendable
from twistedcelery.wamp.items import TooManyItems, check_items

MARK = {"__type__": "nothing", "__value__": 1}


def nested(depth):
    return functools.reduce(lambda value, _: [value], range(depth), 1)


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ([MARK], {}, r"args\[0\] has"),
        ([1, {"a": [2, MARK]}], {}, r"args\[1\]\['a'\]\[1\] has"),
        ([], {"x": {"__type__": "datetime", "__value__": "2020-01-01T00:00:00"}}, r"kwargs\['x'\] has"),
        ([], MARK, "kwargs has"),
        ([MappingProxyType(MARK)], {}, r"args\[0\] has"),
        ([(MARK,)], {}, r"args\[0\]\[0\] has"),
    ],
)
def test_marks(args, kwargs, where):
    """What kombu's JSON would take for its own mark is refused, wherever it is, with words that say where."""
    with pytest.raises(ArgumentsRefused, match=where):
        check_sendable(100, args=args, kwargs=kwargs)


@pytest.mark.parametrize(
    "value",
    [
        {**MARK, "more": 1},
        {"__type__": "bytes"},
        {"__value__": 1, "x": 2},
        ["__type__", "__value__"],
        {"__type__", "__value__"},
        "{'__type__': 1, '__value__': 1}",
    ],
)
def test_what_is_no_mark(value):
    """Only an object with exactly the two keys is one."""
    check_sendable(100, args=[value], kwargs={"x": value})


def test_nesting():
    """A worker decodes 100 levels, and not any number."""
    check_sendable(1000, args=nested(100))
    with pytest.raises(ArgumentsRefused, match=r"^args\[0\]\[0\]\[0\]\[0\]\[0\]\.\.\. is nested deeper than"):
        check_sendable(1000, args=nested(101))


@pytest.mark.parametrize(
    ("value", "items"),
    [
        (1, 0),
        ("text", 0),
        (b"bytes", 0),
        ([], 0),
        ([1, 2, 3], 3),
        ({"a": 1, "b": 2}, 2),
        ([[], [], {}], 3),
        ([[1], [2, (3, {4})], {"a": [5]}], 11),
    ],
)
def test_counting(value, items):
    """Items of all containers count, characters and bytes do not."""
    check_items(items, value=value)
    if items:
        with pytest.raises(TooManyItems, match=f"more than {items - 1} items in all; max_items"):
            check_items(items - 1, value=value)


def test_one_container_in_many_places():
    """CBOR can say a list of a thousand million items in a few bytes, and one that contains itself."""
    shared = functools.reduce(lambda value, _: [value] * 10, range(9), [1])
    cycle: list[object] = []
    cycle.append(cycle)
    for value in (shared, cycle):
        with pytest.raises(TooManyItems):
            check_items(1000, value=value)
    with pytest.raises((ArgumentsRefused, TooManyItems)):
        check_sendable(1000, args=[cycle])
