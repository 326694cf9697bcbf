"""Idioms for Deferreds that the whole package uses.

Each caller gets a Deferred of their own, so that what one caller adds to it, or its cancellation,
changes nothing for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredList, FirstError, gatherResults, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.errors import renewed

__all__ = ["Waiters", "all_done", "all_of", "close_all", "fork", "settle"]

_log = Logger()

T = TypeVar("T")


class Waiters(Generic[T]):
    """Callers that wait for the same thing to happen."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # Ordered: the first to wait is the first to be called back.
        self._waiting: dict[Deferred[T], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, given_up: Callable[[], Exception] | None = None) -> Deferred[T]:
        """Wait for the next `fire` or `fail`. Cancelling the Deferred ends the waiting.

        :param given_up: makes the error of a Deferred that is cancelled; ``None``: Twisted's
            `twisted.internet.defer.CancelledError`
        """

        def cancelled(waiter: Deferred[T]) -> None:
            self._waiting.pop(waiter, None)
            if given_up is not None:
                waiter.errback(Failure(given_up()))

        waiter: Deferred[T] = Deferred(cancelled)
        self._waiting[waiter] = None
        return waiter

    def fire(self, value: T) -> None:
        """Give a value to all who wait now."""
        self._end(lambda waiter: waiter.callback(value))

    def fire_first(self, value: T) -> None:
        """Give a value to the one that has waited longest, if any."""
        for waiter in self._waiting:
            del self._waiting[waiter]
            waiter.callback(value)
            return

    def fail(self, error: BaseException) -> None:
        """Fail all who wait now, each with an error of their own.

        :param error: one that `twistedcelery.errors.renewed` can make anew
        """
        self._end(lambda waiter: waiter.errback(Failure(renewed(error))))

    def settle(self, outcome: Any) -> None:
        """Give the same value, or the same `Failure`, to all who wait now."""
        self._end(lambda waiter: settle(waiter, outcome))

    def _end(self, end: Callable[[Deferred[T]], None]) -> None:
        # Not those who begin to wait meanwhile; nor those who are cancelled by what an earlier one does.
        for waiter in tuple(self._waiting):
            if waiter in self._waiting:
                del self._waiting[waiter]
                end(waiter)


def settle(deferred: Deferred[Any], outcome: Any) -> None:
    """Fire a Deferred with a value, or fail it with a `Failure`. Does nothing once it has fired."""
    if deferred.called:
        return
    if isinstance(outcome, Failure):
        deferred.errback(outcome)
    else:
        deferred.callback(outcome)


def fork(deferred: Deferred[Any]) -> Deferred[None]:
    """Return a new Deferred that fires with ``None`` once another has a result or a failure."""
    own: Deferred[None] = Deferred()

    def ended(result: Any) -> Any:
        settle(own, None)
        return result

    deferred.addBoth(ended)
    return own


def all_of(deferreds: Iterable[Deferred[Any]]) -> Deferred[list[Any]]:
    """Fire with all values, or fail as the first one that fails. Later errors are consumed."""
    return gatherResults(list(deferreds), consumeErrors=True).addErrback(_unwrapped)


def all_done(deferreds: Iterable[Deferred[Any]]) -> Deferred[None]:
    """As `all_of`, without the values."""
    return all_of(deferreds).addCallback(lambda _: None)


def _unwrapped(failure: Failure) -> Failure:
    assert isinstance(failure.value, FirstError)
    return failure.value.subFailure


class Closeable(Protocol):
    """Something that has to be closed."""

    def close(self) -> Deferred[None]: ...


def close_all(*parts: Closeable | None) -> Deferred[None]:
    """Close several things at once.

    :param parts: ``None`` where there is nothing to close
    :return: fires once all are closed. It never fails: what goes wrong is logged.
    """
    closing = [maybeDeferred(part.close).addErrback(_log_close_failure) for part in parts if part is not None]
    return DeferredList(closing).addCallback(lambda _: None)


def _log_close_failure(failure: Failure) -> None:
    # Log it: nothing else can be done here, and a leak must be seen.
    _log.failure("disconnecting left something behind", failure=failure)
