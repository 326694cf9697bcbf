"""Publishes over a native connection: queues messages that wait, are prepared, or are not confirmed.

A protocol adds how one message is sent over a link, and how it is confirmed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._types import Clock
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    Overloaded,
    PublishError,
    PublishUnconfirmed,
    TwistedCeleryError,
)
from twistedcelery.transports.connection import Connection, Link, State
from twistedcelery.transports.deadlines import Deadlines
from twistedcelery.transports.turns import Turns

__all__ = ["Publication", "QueuedPublisher"]

_log = Logger()

L = TypeVar("L", bound=Link)
#: By this a protocol finds an unconfirmed message.
K = TypeVar("K", bound=Hashable)


class Publication:
    """One message on its way. It is settled once; later outcomes are ignored.

    :param withdraw: called when its caller cancels
    :ivar done: its caller's
    :ivar sent: whether the broker may have it, over the present link or an earlier one
    :ivar returned: why it reached no queue
    """

    __slots__ = ("_withdraw", "done", "message", "returned", "sent", "settled")

    def __init__(self, message: OutgoingMessage, withdraw: Callable[[Publication], None]) -> None:
        self.message = message
        self._withdraw = withdraw
        self.done: Deferred[None] = Deferred(self._cancelled)
        self.sent = False
        self.returned: str | None = None
        self.settled = False

    def succeed(self) -> None:
        """The broker has it. Does nothing once settled."""
        if not self.settled:
            self.settled = True
            self.done.callback(None)

    def fail(self, error: TwistedCeleryError | CancelledError) -> None:
        """It did not, or may not, get there. Does nothing once settled."""
        if not self.settled:
            self.settled = True
            self.done.errback(Failure(error))

    def unconfirmed(self, why: str) -> PublishUnconfirmed:
        """The error of a message that was sent, and whose confirmation did not come."""
        return PublishUnconfirmed(
            f"{self} was sent, but not confirmed: {why}. The broker may or may not have it; "
            "retry=True allows it to be sent again under the same id"
        )

    def __str__(self) -> str:
        message = self.message
        if message.task_id is None:
            return f"the message to {message.exchange or message.routing_key!r}"
        return f"task {message.headers.get('task', '')} [{message.task_id}]".replace("  ", " ")

    def _cancelled(self, _: Deferred[Any]) -> None:
        self._withdraw(self)
        error: PublishError | CancelledError = CancelledError()
        if self.sent:
            error = self.unconfirmed("its caller cancelled before the confirmation came")
        self.fail(error)


class _Line:
    """Messages that wait to be sent, first to last.

    :ivar size: the bytes of their bodies
    """

    def __init__(self) -> None:
        self.size = 0
        # Messages that end early are taken out, so that it does not fill up while the broker is away.
        self._publications: OrderedDict[Publication, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._publications)

    def __iter__(self) -> Iterator[Publication]:
        return iter(self._publications)

    def append(self, publication: Publication) -> None:
        """Put a message behind all others."""
        self._publications[publication] = None
        self.size += len(publication.message.body)

    def prepend(self, publications: Sequence[Publication]) -> None:
        """Put messages, none of which waits, before all others."""
        for publication in reversed(publications):
            self.append(publication)
            self._publications.move_to_end(publication, last=False)

    def pop(self) -> Publication:
        """Take the first one out."""
        publication, _ = self._publications.popitem(last=False)
        self.size -= len(publication.message.body)
        return publication

    def discard(self, publication: Publication) -> None:
        """Take a message out, if it is there."""
        if publication in self._publications:
            del self._publications[publication]
            self.size -= len(publication.message.body)

    def clear(self) -> None:
        """Take all out."""
        self._publications.clear()
        self.size = 0


class QueuedPublisher(ABC, Generic[L, K]):
    """A `twistedcelery.transports.interface.Publisher` over one connection.

    Messages wait, bounded in number, bytes and time, while there is no link, while the broker takes no
    messages, and while it is slow to confirm. When a link is lost, what was not sent yet waits for the
    next one. What was sent and not confirmed fails with `PublishUnconfirmed`, unless its caller allowed
    it to be sent again.

    :param reactor: for time
    :param publish_timeout: seconds for the broker to take a message that sets no limit of its own
    :param max_waiting: messages that may wait to be sent
    :param max_waiting_bytes: past so many bytes of bodies, no more messages may wait
    :param max_unconfirmed: messages that may be sent and not confirmed
    :param clock: seconds of real time
    """

    def __init__(
        self,
        reactor: Clock,
        publish_timeout: float,
        max_waiting: int = 50_000,
        max_waiting_bytes: int = 2**26,
        max_unconfirmed: int = 5_000,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reactor = reactor
        # Thousands may wait for a link, or for confirmations.
        self._sending = Turns(
            reactor,
            clock,
            lambda: bool(self._waiting) and self._has_room(),
            lambda: self._dispatch(self._waiting.pop()),
        )
        self._failing_turns = Turns(reactor, clock, lambda: bool(self._failing), self._fail_one)
        self._publish_timeout = publish_timeout
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._max_unconfirmed = max_unconfirmed
        self._deadlines: Deadlines[Publication] = Deadlines(reactor, self._expired)
        self._waiting = _Line()
        # An ordered set: these need something of the broker before they are sent.
        self._preparing: dict[Publication, None] = {}
        self._unconfirmed: dict[K, Publication] = {}
        # Sent over lost links, and about to fail.
        self._failing: deque[tuple[Publication, TwistedCeleryError]] = deque()
        self._reason: BrokerUnavailable | None = None
        #: Why the broker takes no messages, though there is a link.
        self._blocked: str | None = None
        self._connection: Connection[L]

    def use(self, connection: Connection[L]) -> Self:
        """Publish over a connection, whose user this is."""
        self._connection = connection
        return self

    @property
    def connected(self) -> bool:
        """Whether a message published now would go out at once."""
        return self._connection.state is State.UP and self._blocked is None

    def publish(self, message: OutgoingMessage) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Publisher.publish`."""
        if self._connection.state in (State.CLOSING, State.CLOSED):
            return fail(Disconnected("the connection to the broker was closed by disconnect()"))
        if len(self._waiting) >= self._max_waiting:
            return fail(
                Overloaded(f"{self._max_waiting} messages already wait for the broker; try again later")
            )
        if self._waiting.size >= self._max_waiting_bytes:
            return fail(
                Overloaded(
                    f"messages with {self._waiting.size} bytes already wait for the broker; try again later"
                )
            )
        publication = Publication(message, self._withdraw)
        allowed = message.confirm_timeout
        self._deadlines.add(self._publish_timeout if allowed is None else allowed, publication)
        if self._waiting or not self._has_room():
            self._waiting.append(publication)
            self._connection.start()
        else:
            self._dispatch(publication)
        return publication.done

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Publisher.close`."""
        unfinished = [*self._unconfirmed.values(), *self._preparing, *self._waiting]
        self._unconfirmed.clear()
        self._preparing.clear()
        self._waiting.clear()
        self._deadlines.stop()
        self._sending.stop()
        self._failing_turns.stop()
        failing, self._failing = self._failing, deque()
        closed = self._connection.close()
        for publication, error in failing:
            publication.fail(error)
        for publication in unfinished:
            publication.fail(
                Disconnected("the client was disconnected before the broker confirmed the message")
            )
        return closed

    # What a protocol adds

    @abstractmethod
    def prepare(self, link: L) -> Deferred[None]:
        """As `twistedcelery.transports.connection.ConnectionUser.prepare`."""

    @abstractmethod
    def _has_link(self) -> bool:
        """Whether the present link, if there is one, can still send."""

    @abstractmethod
    def _let_go(self) -> None:
        """Forget the link, which is lost."""

    @abstractmethod
    def _dispatch(self, publication: Publication) -> None:
        """Send a message, or keep it in ``_preparing`` until it can be sent; one that was sent is
        ``_unconfirmed``.
        """

    # The connection's user

    def connection_up(self) -> None:
        """Send what waits."""
        self._reason = None
        self._pump()

    def link_blocked(self, why: str) -> None:
        """Write nothing more to the link until `link_unblocked`: what was written could not be withdrawn.

        :param why: completes "it was not sent: ..."
        """
        if self._blocked is None:
            _log.warn("messages wait: {why}", why=why)
        self._blocked = why

    def link_unblocked(self) -> None:
        """Send what waits."""
        if self._blocked is not None:
            self._blocked = None
            _log.info("the broker takes messages again")
            self._pump()

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Settle, or keep for the next link, what the lost one leaves."""
        self._reason = reason
        self._blocked = None
        self._let_go()
        sent = [publication for publication in self._unconfirmed.values() if not publication.settled]
        self._unconfirmed.clear()
        again = [publication for publication in sent if publication.message.resend]
        self._waiting.prepend([*again, *self._preparing])
        self._preparing.clear()
        self._failing.extend(
            (publication, publication.unconfirmed(str(reason)))
            for publication in sent
            if not publication.message.resend
        )
        self._failing_turns.run()
        if isinstance(reason, BrokerAccessRefused):
            # Waiting does not help: the password or the permissions have to change.
            refused = list(self._waiting)
            self._waiting.clear()
            for publication in refused:
                publication.fail(
                    publication.unconfirmed(str(reason))
                    if publication.sent
                    else BrokerAccessRefused(str(reason))
                )

    def _fail_one(self) -> None:
        publication, error = self._failing.popleft()
        publication.fail(error)

    # The queue

    def _has_room(self) -> bool:
        return (
            self._has_link()
            and self.connected
            and len(self._unconfirmed) + len(self._preparing) < self._max_unconfirmed
        )

    def _pump(self) -> None:
        """Send what waits, over as many reactor turns as it takes."""
        self._sending.run()

    def _withdraw(self, publication: Publication) -> None:
        self._waiting.discard(publication)
        self._preparing.pop(publication, None)

    def _expired(self, publication: Publication) -> None:
        self._withdraw(publication)
        if publication.sent:
            publication.fail(publication.unconfirmed("the confirmation did not come in time"))
            return
        why = self._reason or self._blocked or "it is connected, but takes no messages"
        publication.fail(BrokerUnavailable(f"{publication} was not sent: {why}"))
