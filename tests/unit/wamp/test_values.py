"""Values that all of WAMP's serialisers carry the same."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import uuid
from collections import OrderedDict, deque
from typing import Any, NamedTuple

import pytest
from autobahn.wamp.serializer import CBORObjectSerializer, JsonObjectSerializer, MsgPackObjectSerializer
from celery.utils.serialization import UnpickleableExceptionWrapper
from hypothesis import given
from hypothesis import strategies as st

from twistedcelery.wamp.values import (
    MAX_DEPTH,
    Normalised,
    Unencodable,
    describe_exception,
    normalise,
    normalise_and_measure,
)

SERIALIZERS = (JsonObjectSerializer(), MsgPackObjectSerializer(), CBORObjectSerializer())


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


class Point(NamedTuple):
    x: int
    y: int


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    # With the lone surrogates and NULs that hypothesis leaves out by default.
    st.text(st.characters(exclude_categories=[])),
    st.binary(),
    st.datetimes(timezones=st.none() | st.just(dt.UTC)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.sampled_from([Colour.RED, Level.HIGH, Text("text"), object(), range(3), 1j]),
)
keys = st.one_of(
    st.text(st.characters(exclude_categories=[])),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.dates(),
    st.uuids(),
    st.tuples(st.integers()),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.lists(inner).map(deque),
        st.frozensets(st.integers()),
        st.dictionaries(keys, inner),
    ),
)


def round_trips(value: Any) -> list[Any]:
    return [serializer.unserialize(serializer.serialize([value]))[0][0] for serializer in SERIALIZERS]


def same(one: Any, other: Any) -> bool:
    """Whether they are equal, and of the same types at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@given(values)
def test_what_is_accepted_survives_every_serializer_unchanged(value: Any) -> None:
    """A value is either refused, or arrives the same over JSON, MessagePack and CBOR."""
    try:
        normal, size = normalise_and_measure(value)
    except Unencodable:
        return
    for arrived in round_trips(normal):
        assert same(arrived, normal)
    for serializer in SERIALIZERS:
        assert len(serializer.serialize(normal)) <= size


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text().filter(lambda text: not text.startswith("\0"))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(plain)
def test_plain_values_are_left_alone(value: Any) -> None:
    """A value that WAMP carries anyway is neither changed nor refused."""
    assert same(normalise(value), value)


@given(plain)
def test_the_size_is_estimated_closely(value: Any) -> None:
    """The estimate is below three times the longest serialisation, so that little is refused needlessly."""
    _, size = normalise_and_measure(value)
    longest = max(len(serializer.serialize(value)) for serializer in SERIALIZERS)
    assert longest <= size <= 3 * longest + 8


@pytest.mark.parametrize("length", [31, 255, 256, 2**16])
def test_long_texts_are_not_underestimated(length: int) -> None:
    """MessagePack and CBOR have longer headers than JSON for a long text."""
    _, size = normalise_and_measure("x" * length)
    assert all(len(serializer.serialize("x" * length)) <= size for serializer in SERIALIZERS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC), "2024-02-29T12:30:00+00:00"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.time(12, 30), "12:30:00"),
        (dt.timedelta(minutes=1, milliseconds=500), 60.5),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Text("text"), "text"),
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1, 2), [1, 2]),
        ({7}, [7]),
        (deque([1, 2]), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (
            {1: "one", 2.5: "x", False: "no", None: "nil"},
            {"1": "one", "2.5": "x", "false": "no", "null": "nil"},
        ),
        ({dt.date(2024, 1, 1): 1, uuid.UUID(int=2): 2}, {"2024-01-01": 1, str(uuid.UUID(int=2)): 2}),
        (bytearray(b"\0\xff"), b"\0\xff"),
        (memoryview(b"ab"), b"ab"),
        (
            {"error": ValueError("bad")},
            {"error": {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": "bad"}},
        ),
    ],
)
def test_what_other_types_become(value: Any, expected: Any) -> None:
    """Each documented type has its documented form."""
    assert same(normalise(value), expected)


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


cycle: list[Any] = []
cycle.append(cycle)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "value is nan"),
        ([1, {"a": -math.inf}], "value[1]['a'] is -inf"),
        (2**64, "past 64 bits"),
        (-(2**63) - 1, "past 64 bits"),
        ("\0binary", "starts with \\0"),
        ("\ud800", "lone surrogates"),
        ({"\ud800": 1}, "lone surrogates"),
        (object(), "value is of type builtins.object"),
        ([1j], "value[0] is of type builtins.complex"),
        ({1: "a", "1": "b"}, "two keys that both become '1'"),
        ({(1, 2): 3}, "a key of type builtins.tuple"),
        ({10**5000: 1}, "a key of type builtins.int"),
        (nested(MAX_DEPTH + 1), f"deeper than {MAX_DEPTH} levels"),
        (cycle, f"deeper than {MAX_DEPTH} levels"),
    ],
)
def test_what_is_refused(value: Any, says: str) -> None:
    """The error says which part of the value cannot be sent, and why."""
    with pytest.raises(Unencodable) as refused:
        normalise(value)
    assert says in str(refused.value)


def test_the_deepest_nesting_allowed_survives() -> None:
    """The serialisers themselves can handle the limit on nesting."""
    deepest = normalise(nested(MAX_DEPTH))
    assert all(same(arrived, deepest) for arrived in round_trips(deepest))


@pytest.mark.parametrize("value", ["x" * 1001, [1] * 600, b"x" * 800, {"k" * 999: 1}, ["\n" * 600]])
def test_too_much_is_refused(value: Any) -> None:
    """A value that takes more than the limit in any serialisation is refused, whatever its type."""
    with pytest.raises(Unencodable, match="more than 1000 bytes"):
        normalise(value, max_size=1000)


def test_what_is_normalised_already_is_only_measured() -> None:
    """It stays as it is, and is refused if it is too large."""
    value: Any = {"not": object()}
    assert normalise(Normalised(value, 1000), max_size=1000) is value
    with pytest.raises(Unencodable, match="more than 999 bytes"):
        normalise(Normalised(value, 1000), max_size=999)


def test_exceptions_that_cannot_be_described_are_described() -> None:
    """A broken ``__str__``, or text that WAMP cannot carry, does not fail."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe_exception(Broken())["exc_message"] == "<no message: RuntimeError in __str__>"
    described = describe_exception(ValueError("\0\ud800" + "x" * 10**6))
    assert normalise(described) == described
    assert len(described["exc_message"]) < 2**16


def test_exceptions_that_celery_wrapped_keep_their_names() -> None:
    """An exception that could not be rebuilt has the name that it had in the worker."""
    wrapped = UnpickleableExceptionWrapper("shop.errors", "OutOfStock", ("apples",))
    described = describe_exception(wrapped)
    assert (described["exc_module"], described["exc_type"]) == ("shop.errors", "OutOfStock")
