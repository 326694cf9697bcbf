"""The cost of a call in counts, which are the same on every machine; ``make bench`` measures times.

A bound lies a little above what a call costs. A change that exceeds it has to say what for; one that stays
far below it may lower it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import hiredis
import pytest
import pytest_twisted
from twisted.internet import tcp
from twisted.internet.defer import Deferred, gatherResults

from tests.support.process import Process
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

CALLS = 200


@pytest.fixture
def servers(request, tmp_path) -> Iterator[Callable[[str], tuple[str, str]]]:
    """``servers(kind)``: the URLs of a broker and a result backend with a worker that answers at once."""
    started = []

    def start(kind: str) -> tuple[str, str]:
        if kind == "AMQP":
            urls = request.getfixturevalue("broker_url"), "rpc://"
        else:
            url = request.getfixturevalue("redis_server").url(5)
            urls = url, url
        stub = Process([sys.executable, "-m", "bench.stub", *urls], directory=tmp_path, name="stub")
        started.append(stub)
        stub.start()
        stub.wait_for_output("ready")
        return urls

    yield start
    for stub in started:
        stub.kill()


class Wire:
    """What is written to sockets, by connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._written: dict[int, bytes] = {}
        original = tcp.Connection.writeSomeData

        def write(connection: Any, data: bytes) -> Any:
            written = original(connection, data)
            if isinstance(written, int) and written > 0:
                port = connection.getPeer().port, connection.getHost().port
                self._written[port] = self._written.get(port, b"") + bytes(data[:written])
            return written

        monkeypatch.setattr(tcp.Connection, "writeSomeData", write)

    def clear(self) -> None:
        self._written.clear()

    @property
    def bytes(self) -> int:
        return sum(map(len, self._written.values()))

    def frames(self) -> Counter[str]:
        """The AMQP frames, by their type."""
        found: Counter[str] = Counter()
        for data in self._written.values():
            # What a connection begins with is no frame.
            at = len(b"AMQP....") if data.startswith(b"AMQP") else 0
            while at < len(data):
                found[{1: "method", 2: "header", 3: "body", 8: "heartbeat"}[data[at]]] += 1
                at += 8 + int.from_bytes(data[at + 3 : at + 7])
        return found

    def commands(self) -> Counter[str]:
        """The commands to Redis, by their name."""
        found: Counter[str] = Counter()
        for data in self._written.values():
            reader = hiredis.Reader()
            reader.feed(data)
            while (command := reader.gets()) is not False:
                found[command[0].decode().upper()] += 1
        return found


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count calls of functions, in Python and in C, and Deferreds that are made."""
    found: Counter[str] = Counter()
    deferred = Deferred.__init__.__code__

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found["functions"] += 1
            if frame.f_code is deferred:
                found["Deferreds"] += 1
        elif event == "c_call":
            found["functions"] += 1

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


class Costs:
    """What some calls have cost together."""

    def __init__(self, bytes_written: int, sent: Counter[str], counted: Counter[str]) -> None:
        self.bytes = bytes_written
        self.sent = sent
        self.functions = counted["functions"]
        self.deferreds = counted["Deferreds"]


class Client:
    """A client that has connected, and has learned how the messages look."""

    def __init__(self, urls: tuple[str, str], wire: Wire) -> None:
        self.tx_app = TwistedCelery(create_app(*urls))
        self._wire = wire
        self._messages = wire.frames if urls[0].startswith("amqp") else wire.commands

    async def costs(self, calls: int) -> Costs:
        """Make calls, all at once, and count until all have their results."""
        self._wire.clear()
        numbers = range(calls)
        with counted_calls() as counted:
            made = [self.tx_app.send_task("taskapp.add", args=(number, 3)) for number in numbers]
            values = await gatherResults(made)
        assert values == [number + 3 for number in numbers]
        return Costs(self._wire.bytes, self._messages(), counted)


@pytest.fixture
def client(servers, monkeypatch):
    """``await client(kind)``: a `Client`; disconnected afterwards."""
    made = []

    async def make(kind: str) -> Client:
        new = Client(servers(kind), Wire(monkeypatch))
        made.append(new)
        await new.costs(20)
        return new

    yield make
    for one in made:
        pytest_twisted.blockon(one.tx_app.disconnect())


@pytest.mark.parametrize(
    ("kind", "most_bytes", "exactly", "at_most"),
    [
        # An acknowledgement may wait for the next call, or be there at once.
        ("AMQP", 600, {"header": 1, "body": 1}, {"method": 2}),
        ("Redis", 1175, {"SUBSCRIBE": 1, "LPUSH": 1, "MGET": 1}, {"UNSUBSCRIBE": 1, "PING": 1}),
    ],
    ids=["AMQP", "Redis"],
)
@pytest_twisted.ensureDeferred
async def test_what_one_call_writes(client, kind, most_bytes, exactly, at_most):
    """A single call: its bytes, and its frames or commands, until its result is there."""
    one = await client(kind)
    calls = [await one.costs(1) for _ in range(20)]
    for call in calls:
        assert {name: call.sent[name] for name in exactly} == exactly
        assert all(number <= at_most[name] for name, number in call.sent.items() if name not in exactly)
    # Some tidy up after others.
    assert min(call.bytes for call in calls) <= most_bytes


@pytest.mark.parametrize(
    ("kind", "calls", "others", "most_bytes", "deferreds", "functions"),
    [
        # Of its own message, a call writes a method, a header and a body.
        ("AMQP", ("method", "header", "body"), 30, 595, 2.1, 435),
        ("Redis", ("LPUSH",), 40, 1200, 4.3, 610),
    ],
    ids=["AMQP", "Redis"],
)
@pytest_twisted.ensureDeferred
async def test_what_each_of_many_calls_costs(client, kind, calls, others, most_bytes, deferreds, functions):
    """A call of 200 in flight: bytes, Deferreds and function calls; and what all of them write together.

    How the replies arrive, alone or together, makes a difference of a few in a hundred: the least of some
    runs is a matter of the code alone.
    """
    one = await client(kind)
    runs = [await one.costs(CALLS) for _ in range(5)]
    for run in runs:
        assert all(run.sent[name] >= CALLS for name in calls)
    assert min(sum(run.sent.values()) - len(calls) * CALLS for run in runs) <= others
    assert min(run.bytes for run in runs) / CALLS <= most_bytes
    assert min(run.deferreds for run in runs) / CALLS <= deferreds
    assert min(run.functions for run in runs) / CALLS <= functions
