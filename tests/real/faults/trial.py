"""One fault under load: the calls that are made meanwhile, how each ended, and what must always hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from autobahn.wamp.exception import ApplicationError
from twisted.internet import task
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from tests.real.faults.measuring import Report, Watch
from tests.real.faults.tasks import executions
from tests.real.wamp.client import Client, wait_for_procedure
from tests.support.waiting import until
from twistedcelery import TwistedCelery

if TYPE_CHECKING:
    from tests.real.faults.bridge import BridgeProcess

__all__ = ["FAULTS", "NOT_SENT", "Counts", "Load", "Size", "Trial", "fault"]

#: The names of all rows that were declared, in the order in which their modules were imported.
FAULTS: list[str] = []

#: Errors that say for certain that a task was not sent: it must never run.
NOT_SENT = {
    "BrokerUnavailable",
    "BrokerAccessRefused",
    "PublishRejected",
    "Unroutable",
    "Overloaded",
    "overloaded",
    "broker_unavailable",
    "not_allowed",
    "invalid_arguments",
}

#: Calls that are made in one turn of the reactor: more of them would make it late by themselves.
_AT_ONCE = 10


@dataclass(frozen=True)
class Size:
    """How much load a trial has.

    :ivar calls: how many calls, where they are not made by time
    :ivar seconds: how long the fault lasts
    :ivar rate: calls in a second
    """

    calls: int = 0
    seconds: float = 0.0
    rate: float = 0.0


def fault(name: str, *, short: Size | None, long: Size, limit: int = 600) -> Callable[[Any], Any]:
    """Make a test a row of the table: ``trial`` is its `Trial`, once in the short and once in the long form.

    :param name: the row's name
    :param short: the load in ``make test``; ``None``: the row is part of ``make soak`` alone
    :param limit: seconds that the long form may take
    """
    FAULTS.append(name)
    forms = []
    if short is not None:
        forms.append(pytest.param((name, short), id="short"))
    forms.append(pytest.param((name, long), id="long", marks=[pytest.mark.soak, pytest.mark.timeout(limit)]))
    return pytest.mark.parametrize("trial", forms, indirect=True)


@dataclass
class Counts:
    """A row of the table.

    :ivar errors: how many calls ended with which error
    :ivar lost: calls that did not end
    :ivar twice: calls that were executed more than once
    :ivar ran: calls that ended with an error, and were executed all the same
    :ivar lateness: of the reactor, in seconds
    :ivar memory: by which the process grew at most, in MiB
    """

    calls: int = 0
    results: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    ran: int = 0
    lateness: float = 0.0
    memory: float = 0.0


class Load:
    """Numbered calls of a task that returns its number.

    :param call: makes the call with a number
    :ivar open: the calls that have not ended, by number
    :ivar ended: how the others ended: ``None`` for their own number, or the name of an error
    :ivar wrong: values that are not what the call should have returned
    """

    def __init__(self, call: Callable[[int], Deferred[Any]]) -> None:
        self._call = call
        self._steady = task.LoopingCall.withCount(self._make)
        self._rate = self._owed = 0.0
        self.made = 0
        self.open: dict[int, Deferred[Any]] = {}
        self.ended: dict[int, str | None] = {}
        self.wrong: list[Any] = []
        self._unconfirmed = 0

    async def burst(self, count: int) -> None:
        """Make calls as fast as the reactor allows."""
        await task.cooperate(self._one() for _ in range(count)).whenDone()

    def start(self, rate: float) -> None:
        """Make calls, so many in a second, until `stop`."""
        self._rate = rate
        self._steady.start(min(1.0, _AT_ONCE / rate / 2))

    def stop(self) -> None:
        """Make no more calls. Safe to call twice."""
        if self._steady.running:
            self._steady.stop()

    async def for_seconds(self, rate: float, seconds: float) -> None:
        """Make calls for a time, and return when it is over."""
        from twisted.internet import reactor

        self.start(rate)
        await task.deferLater(reactor, seconds)
        self.stop()

    async def all_confirmed(self) -> None:
        """Wait until the broker has taken, or refused, the message of each call that was made."""
        await until(lambda: self._unconfirmed == 0, what="the broker has all messages")

    async def lose_broker(self, count: int, kill: Callable[[], object], client: TwistedCelery) -> None:
        """Make calls, and kill the broker, or the result backend, while tasks are under way.

        :param kill: blocks
        """
        await self.burst(count)
        await self.all_confirmed()
        assert len(self.open) > 10
        await deferToThread(kill)
        await until(lambda: not client.connected)

    def cancel_all(self) -> None:
        """Cancel all calls that have not ended."""
        for call in list(self.open.values()):
            call.cancel()

    async def all_ended(self, seconds: float) -> None:
        """Wait until all calls have ended; those that have not by then are lost."""
        from twisted.internet import reactor

        deadline = reactor.seconds() + seconds
        while self.open and reactor.seconds() < deadline:
            await task.deferLater(reactor, 0.05)

    def results(self) -> int:
        """How many calls have returned their number."""
        return sum(error is None for error in self.ended.values())

    def _make(self, ticks: int) -> None:
        assert self._steady.interval is not None
        self._owed += ticks * self._steady.interval * self._rate
        # What a busy machine did not let through is not made up for in one turn.
        self._owed = min(self._owed, 2.0 * _AT_ONCE)
        while self._owed >= 1:
            self._owed -= 1
            self._one()

    def _one(self) -> None:
        number = self.made
        self.made += 1
        call = self.open[number] = self._call(number)
        published = getattr(call, "published", None)
        if published is not None:
            self._unconfirmed += 1
            published.addBoth(self._is_settled)
        call.addBoth(self._has_ended, number)

    def _is_settled(self, _: object) -> None:
        self._unconfirmed -= 1

    def _has_ended(self, outcome: Any, number: int) -> None:
        assert number in self.open, f"call {number} ended twice"
        del self.open[number]
        if not isinstance(outcome, Failure):
            self.ended[number] = None
            # The task returns its number and a filling.
            if not isinstance(outcome, list) or outcome[0] != number:
                self.wrong.append((number, outcome))
        elif isinstance(outcome.value, ApplicationError):
            self.ended[number] = outcome.value.error.rpartition(".")[2]
        else:
            self.ended[number] = type(outcome.value).__name__


async def nothing_left(report: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until all tables are as they were.

    :param report: makes a `Report`, or fires with it
    """
    from twisted.internet import reactor

    deadline = reactor.seconds() + seconds
    while found := (await maybeDeferred(report)).left:
        assert reactor.seconds() < deadline, f"left in tables {seconds} s after all calls have ended: {found}"
        # Looking is not cheap.
        await task.deferLater(reactor, 0.5)


class Trial:
    """A fault, the load beside it, and what came of both.

    :ivar name: the row's name
    :ivar size: how much load
    :ivar path: where executions are noted
    :ivar counts: what came of it; complete when `calls` or `wamp_calls` has been left
    """

    def __init__(self, name: str, size: Size, path: Path) -> None:
        self.name = name
        self.size = size
        self.counts = Counts()
        self.path = path

    @asynccontextmanager
    async def calls(
        self, tx_app: TwistedCelery, *, patience: float = 60.0, task_name: str = "faults.run", **options: Any
    ) -> AsyncIterator[Load]:
        """Load a client of this process.

        When the block is left, all calls must end; then everything is checked that holds for every fault.

        :param patience: seconds for calls to end in, and for the client to work again
        :param options: of ``send_task``, for each call; ``seconds`` and ``size`` are the task's
        """
        extra = {name: options.pop(name) for name in ("seconds", "size") if name in options}

        def call(number: int) -> Deferred[Any]:
            return tx_app.send_task(task_name, (number, str(self.path)), extra, **options)

        async def works() -> None:
            assert await tx_app.send_task("taskapp.add", args=(1, 2), confirm_timeout=patience) == 3
            # What is made at the first question to workers is not the fault's.
            assert await tx_app.control.inspect(limit=1, timeout=10).query_task("none")

        watch = Watch(lambda: [tx_app])
        try:
            async with self._load(call, works, watch.report, patience) as load:
                yield load
        finally:
            watch.stop()

    @asynccontextmanager
    async def wamp_calls(
        self,
        caller: Client,
        prefix: str,
        bridge: BridgeProcess,
        *,
        call: Callable[[int], Deferred[Any]] | None = None,
        patience: float = 60.0,
    ) -> AsyncIterator[Load]:
        """Load a bridge in a process of its own, as `calls` does a client.

        :param caller: makes the calls
        :param prefix: the bridge's
        :param call: makes a call, as of `Load`; the task ``faults.run`` unless given
        """

        def run(number: int) -> Deferred[Any]:
            return caller.call(f"{prefix}.faults.run", number, str(self.path))

        async def works() -> None:
            await wait_for_procedure(caller, f"{prefix}.taskapp.add")
            assert await caller.call(f"{prefix}.taskapp.add", 1, 2) == 3

        async with self._load(call or run, works, lambda: deferToThread(bridge.report), patience) as load:
            yield load

    @asynccontextmanager
    async def _load(
        self,
        call: Callable[[int], Deferred[Any]],
        works: Callable[[], Awaitable[None]],
        report: Callable[[], Any],
        patience: float,
    ) -> AsyncIterator[Load]:
        """Make calls, wait for their ends, and check what holds for every fault.

        :param works: returns once the part under load has made a call
        :param report: makes a `Report` of the part, or fires with it
        """
        await works()
        await maybeDeferred(report)
        load = Load(call)
        try:
            yield load
            load.stop()
            await load.all_ended(patience)
            # Most likely the workers have by then also run what there was to run.
            await works()
        finally:
            load.stop()
            self._count(load, await maybeDeferred(report))
        assert not load.open, f"{len(load.open)} calls have not ended"
        self._check(load)
        await nothing_left(report)

    def _count(self, load: Load, report: Report) -> None:
        ran = executions(self.path)
        self.counts = Counts(
            calls=load.made,
            results=load.results(),
            errors=Counter(error for error in load.ended.values() if error is not None),
            lost=len(load.open),
            twice=sum(times > 1 for times in ran.values()),
            ran=sum(number in ran for number, error in load.ended.items() if error is not None),
            lateness=report.lateness,
            memory=report.growth,
        )

    def _check(self, load: Load) -> None:
        """What holds for every fault: no value of another call, and no untrue error."""
        assert load.wrong == [], "results of other calls"
        ran = executions(self.path)
        untrue = {n: error for n, error in load.ended.items() if error in NOT_SENT and n in ran}
        assert untrue == {}, "the error says that it was not sent, and it ran"

    def ended_with(self, errors: Collection[str]) -> None:
        """No call ended with another error than these."""
        assert set(self.counts.errors) <= set(errors), self.counts
