"""Limits the time of many things with one timer, and that of one Deferred with its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred

from twistedcelery._types import Clock, Timer
from twistedcelery.transports.turns import TURN_BUDGET

__all__ = ["Deadlines", "cancel_after"]

#: Items that are kept before the settled ones among them are let go.
MIN_SWEEP = 64


class Settleable(Protocol):
    """Something that may end before its time limit."""

    @property
    def settled(self) -> bool: ...


T = TypeVar("T", bound=Settleable)
D = TypeVar("D")


def cancel_after(seconds: float, deferred: Deferred[D], reactor: Clock) -> Deferred[D]:
    """Cancel a Deferred that has not fired in time. It fails with the error of its canceller.

    :return: the same Deferred
    """
    return deferred.addTimeout(seconds, reactor, lambda failure, _: failure)  # type: ignore[arg-type]  # a zope interface


class Deadlines(Generic[T]):
    """Calls back for each item that is not settled in time; many at once over as many turns as it takes.

    A timer for each message would cost more than the message.

    :param reactor: for time
    :param expired: called with each item whose time is up
    :param clock: seconds of real time
    """

    def __init__(
        self, reactor: Clock, expired: Callable[[T], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._expired = expired
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._sweep_at = MIN_SWEEP

    def add(self, seconds: float, item: T) -> None:
        """Limit an item's time, from now."""
        at = self._reactor.seconds() + seconds
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heappush(self._heap, (at, next(self._order), item))
        if self._timer is None or at < self._timer_at:
            self._schedule()

    def stop(self) -> None:
        """Forget all items."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        """Let go of settled items, whose time limits may be far away."""
        self._heap = [entry for entry in self._heap if not entry[2].settled]
        heapify(self._heap)
        # So that sweeping costs no more than adding.
        self._sweep_at = max(MIN_SWEEP, 2 * len(self._heap))

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._heap[0][0]
        self._timer = self._reactor.callLater(max(0.0, self._timer_at - self._reactor.seconds()), self._check)

    def _check(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        turn_ends = self._clock() + TURN_BUDGET
        while self._heap and (self._heap[0][2].settled or self._heap[0][0] <= now):
            if self._clock() >= turn_ends:
                break
            item = heappop(self._heap)[2]
            if not item.settled:
                self._expired(item)
        # An item that expired may have added another one.
        if self._heap and self._timer is None:
            self._schedule()
