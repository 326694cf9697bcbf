"""Waits in tests, without blocking the reactor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred

__all__ = ["all_outcomes", "until"]


def all_outcomes(deferreds: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """Wait until all have ended.

    :return: their values and exceptions, in order
    """
    ended = DeferredList(list(deferreds), consumeErrors=True)
    return ended.addCallback(lambda outcomes: [value if ok else value.value for ok, value in outcomes])


async def until(condition: Callable[[], Any], seconds: float = 30, what: str = "the condition holds") -> Any:
    """Wait until a condition holds.

    :param condition: returns whether it does, or an awaitable of that; called again and again
    :param seconds: after which the test fails
    :param what: completes "timed out waiting until ..."
    :return: the first true value of the condition
    """
    from twisted.internet import reactor

    deadline = reactor.seconds() + seconds
    while True:
        found = condition()
        if hasattr(found, "__await__"):
            found = await ensureDeferred(found)
        if found:
            return found
        assert reactor.seconds() < deadline, f"timed out after {seconds} s waiting until {what}"
        await task.deferLater(reactor, 0.02)
