"""Collects workers' replies to control commands, from one queue for all commands of a client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters
from twistedcelery._types import Clock, Timer
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    RepliesLost,
    TwistedCeleryError,
    renewed,
)
from twistedcelery.transports.binding import Binding
from twistedcelery.transports.interface import IncomingMessage, Subscription
from twistedcelery.workers.inbox import Inbox

__all__ = ["Replies", "Request"]

_log = Logger()


@dataclass(frozen=True, slots=True)
class Request:
    """Which replies are waited for, and how long: kombu's ``Mailbox._collect``.

    :ivar ticket: what the replies carry
    :ivar limit: the number of replies after which nothing more is waited for; ``None``, 0: no limit
    :ivar timeout: seconds without a reply after which nothing more is waited for; ``None``: for ever
    :ivar callback: called with each reply
    """

    ticket: str
    limit: int | None
    timeout: float | None
    callback: Callable[[Any], object] | None


class Replies:
    """A `twistedcelery.transports.interface.SubscriptionUser` that sorts replies by ticket.

    :param queue: the reply queue, a kombu ``Queue``
    :param inbox: decodes replies
    :param binding: has the transport that consumes the queue
    :param timeout: seconds that the broker may take until the queue is consumed
    :param adjust_clock: called with the logical clock of each worker that replies
    """

    def __init__(
        self,
        reactor: Clock,
        queue: Any,
        inbox: Inbox,
        binding: Binding,
        timeout: float,
        adjust_clock: Callable[[int], object],
    ) -> None:
        self._reactor = reactor
        self._queue = queue
        self._inbox = inbox
        self._binding = binding
        self._timeout = timeout
        self._adjust_clock = adjust_clock
        self._subscription: Subscription | None = None
        self._consumed = False
        self._reason: BrokerUnavailable | None = None
        self._waiters: Waiters[None] = Waiters()
        self._collectors: dict[str, _Collector] = {}

    def ready(self) -> Deferred[None]:
        """:return: fires once replies would be seen; fails with a `TwistedCeleryError`"""
        if self._subscription is None:
            self._subscription = self._binding.use().subscriber.subscribe(self._queue, self)
        if self._consumed:
            return self._subscription.renew() or succeed(None)
        waiter = self._waiters.wait()
        waiter.addTimeout(self._timeout, self._reactor, self._too_late)  # type: ignore[arg-type]  # a zope interface
        return waiter

    def collect(self, request: Request, published: Deferred[None]) -> Deferred[list[Any]]:
        """Wait for replies.

        :param published: fires when the broker has the command
        :return: fires with the replies, in the order in which they came. It fails as ``published``
            does, with `RepliesLost`, or with what the callback raises.
        """
        collector = _Collector(self._reactor, request, published, self._collectors)
        self._collectors[request.ticket] = collector
        published.addCallbacks(collector.start, collector.fail)
        return collector.done

    # The subscription's user

    def consuming(self) -> None:
        """Let commands be sent."""
        self._consumed = True
        self._waiters.fire(None)

    def received(self, message: IncomingMessage) -> None:
        """Pass a reply on to the command it answers. A late reply is dropped."""
        clock, ticket = message.headers.get("clock"), message.headers.get("ticket")
        # Any publisher may write anything there.
        if isinstance(clock, int):
            self._adjust_clock(clock)
        collector = self._collectors.get(ticket) if isinstance(ticket, str) else None
        if collector is None:
            return
        reply = self._inbox.decode(message)
        if isinstance(reply, Mapping):
            collector.add(reply)

    def interrupted(self, reason: BrokerUnavailable) -> None:
        """The queue is gone, with what was in it."""
        self._reason = reason
        if self._consumed:
            self._consumed = False
            self._fail_collectors(lambda: RepliesLost(f"workers' replies were lost: {reason}"))
        if isinstance(reason, BrokerAccessRefused):
            # Waiting does not help: the password or the permissions have to change.
            self._waiters.fail(reason)

    def ended(self, error: TwistedCeleryError) -> None:
        """Fail all that wait."""
        self._consumed = False
        self._subscription = None
        self._waiters.fail(error)
        self._fail_collectors(lambda: renewed(error))

    def _too_late(self, _cancelled: Any, _seconds: float) -> Failure:
        why = self._reason or "it takes too long"
        return Failure(BrokerUnavailable(f"no connection to receive workers' replies: {why}"))

    def _fail_collectors(self, make: Callable[[], TwistedCeleryError]) -> None:
        for collector in list(self._collectors.values()):
            collector.fail(Failure(make()))


class _Collector:
    """Gathers the replies to one command.

    :param all_of_them: by ticket; this one leaves when it ends
    """

    def __init__(
        self,
        reactor: Clock,
        request: Request,
        published: Deferred[None],
        all_of_them: dict[str, _Collector],
    ) -> None:
        self._reactor = reactor
        self._request = request
        self._published = published
        self._all_of_them = all_of_them
        self._replies: list[Any] = []
        self._timer: Timer | None = None
        self._started = False
        self.done: Deferred[list[Any]] = Deferred(self._cancelled)

    def start(self, _: None) -> None:
        """The command is on its way; the time begins."""
        self._started = True
        self._restart_timer()

    def add(self, reply: Any) -> None:
        """Take a reply in."""
        if self._request.callback is not None:
            try:
                self._request.callback(reply)
            except Exception:
                # Celery's client lets it through to the caller.
                self.fail(Failure())
                return
        self._replies.append(reply)
        if self._request.limit and len(self._replies) >= self._request.limit:
            self._finish()
        else:
            self._restart_timer()

    def fail(self, failure: Failure) -> None:
        """End without a list of replies. A failure after the end is ignored."""
        if not self.done.called:
            self._leave()
            self.done.errback(failure)

    def _finish(self) -> None:
        if not self.done.called:
            self._leave()
            self.done.callback(self._replies)

    def _cancelled(self, done: Deferred[list[Any]]) -> None:
        self._leave()
        done.errback(Failure(CancelledError()))
        self._published.cancel()

    def _leave(self) -> None:
        self._all_of_them.pop(self._request.ticket, None)
        self._stop_timer()

    def _restart_timer(self) -> None:
        """As kombu does it: the timeout is that between two replies."""
        self._stop_timer()
        if self._started and not self.done.called and self._request.timeout is not None:
            self._timer = self._reactor.callLater(self._request.timeout, self._finish)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
