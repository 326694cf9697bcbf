"""Messages that cannot be decoded: which of them end the session."""

from __future__ import annotations

import functools
import gc

import pytest
from autobahn.wamp.exception import ProtocolError
from autobahn.wamp.message import Event, Invocation, Result
from autobahn.wamp.serializer import CBORSerializer, JsonSerializer, MsgPackSerializer

from twistedcelery.wamp.router.unreadable import keep_session

SERIALIZERS = [
    serializer(batched=batched)
    for serializer in (CBORSerializer, MsgPackSerializer, JsonSerializer)
    for batched in (False, True)
]
KINDS = (Invocation.MESSAGE_TYPE, Event.MESSAGE_TYPE)

MAX_BYTES = 10_000

#: One for each length that a serialisation has for integers.
NUMBERS = (5, 100, 1000, 2**17, 2**40)


class Transport:
    """A transport with a serialiser, and what `keep_session` reports."""

    def __init__(self, serializer):
        self._serializer = type(serializer)(batched=serializer._serializer._batched)
        self.unreadable = []
        keep_session(self, self.unreadable.append, MAX_BYTES)
        self.unserialize = self._serializer.unserialize


def encoded(message, serializer):
    return serializer.serialize(message)[0]


def broken(message, serializer):
    """The same message with a value in it that no decoder takes."""
    data = bytearray(encoded(message, serializer))
    at = data.index(b"broken")
    data[at] = 0xFF
    return bytes(data)


def message(kind, number):
    if kind == Invocation.MESSAGE_TYPE:
        return Invocation(number, 2, args=["broken"])
    return Event(number, 2, args=["broken"])


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda serializer: serializer.SERIALIZER_ID)
def test_a_payload_that_cannot_be_decoded(serializer):
    """The message is reported with its number, and those around it in the same frame are delivered."""
    for kind in KINDS:
        for number in NUMBERS:
            transport = Transport(serializer)
            bad = broken(message(kind, number), serializer)
            assert transport.unserialize(bad) == []
            ((found, of, reason),) = transport.unreadable
            assert (found, of) == (kind, number)
            assert "invalid serialization" in reason
    if serializer._serializer._batched:
        good = encoded(Invocation(7, 2, args=[1]), serializer)
        assert [one.request for one in transport.unserialize(good + bad + good)] == [7, 7]
        assert len(transport.unreadable) == 2


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda serializer: serializer.SERIALIZER_ID)
def test_messages_that_are_the_routers_own(serializer):
    """They end the session as before: nobody else could be told. So does what is no message."""
    transport = Transport(serializer)
    for bad in (broken(Result(5, args=["broken"]), serializer), b"", b"\xff", b"\0\0\0\1\xff", b"{\x18"):
        if serializer._serializer._batched and not bad:
            continue
        with pytest.raises(ProtocolError):
            transport.unserialize(bad)
    assert transport.unreadable == []


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda serializer: serializer.SERIALIZER_ID)
def test_messages_that_are_too_large(serializer, monkeypatch):
    """A peer's is not decoded; the router's own messages may be of any size."""
    transport = Transport(serializer)
    data = "x" * MAX_BYTES
    (result,) = transport.unserialize(encoded(Result(5, args=[data]), serializer))
    assert result.args == [data]
    (small,) = transport.unserialize(encoded(Invocation(6, 2, args=[data[:9_000]]), serializer))
    assert small.request == 6
    monkeypatch.setattr(type(transport._serializer._serializer), "unserialize", None)
    large = encoded(Invocation(7, 2, args=[data]), serializer)
    assert transport.unserialize(large) == []
    ((_, number, reason),) = transport.unreadable
    assert number == 7
    assert reason.startswith("it has 100")
    assert reason.endswith(" bytes; max_call_bytes allows 10000")


def test_the_garbage_collector():
    """It rests while a large message is decoded, and goes on afterwards, whatever happens."""
    serializer = MsgPackSerializer()
    transport = Transport(serializer)
    seen = []
    decode = transport._serializer._serializer.unserialize

    def watched(payload):
        seen.append(gc.isenabled())
        return decode(payload)

    transport._serializer._serializer.unserialize = watched
    for size in (10, 100_000):
        transport.unserialize(encoded(Result(5, args=["x" * size]), serializer))
        assert gc.isenabled()
    assert seen == [True, False]
    with pytest.raises(ProtocolError):
        transport.unserialize(b"\xff" * 100_000)
    assert gc.isenabled()


def test_nesting_that_cbor_does_not_read():
    """As a router sends it that has read it in MessagePack."""
    deep = functools.reduce(lambda value, _: [value], range(900), 1)
    serializer = CBORSerializer()
    transport = Transport(serializer)
    assert transport.unserialize(encoded(Invocation(2**40, 2, args=[deep]), serializer)) == []
    assert [unreadable[:2] for unreadable in transport.unreadable] == [(Invocation.MESSAGE_TYPE, 2**40)]
