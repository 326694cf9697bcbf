"""Consumes one queue over its own connection, again after each lost connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import all_done
from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerUnavailable, PublishRejected
from twistedcelery.transports.connection import Connection, Refused, RefusedForNow, caused
from twistedcelery.transports.interface import SubscriptionUser
from twistedcelery.transports.redis.link import RedisLink, SubscriberLink
from twistedcelery.transports.redis.queue_reader import QueueReader
from twistedcelery.transports.redis.requests import Requests

__all__ = ["FanoutIntake", "Intake", "ListIntake"]

_log = Logger()

#: Seconds that Redis may take to delete a queue that is not consumed any more.
_DELETE_TIMEOUT = 3.0

#: Seconds between looks whether bindings that expire have to be renewed. kombu gives them an hour or more.
_REFRESH_EVERY = 60.0

L = TypeVar("L", bound=RedisLink)


class Intake(ABC, Generic[L]):
    """A `twistedcelery.transports.interface.Subscription`, the user of one connection.

    :param reactor: for time
    :param queue: a kombu ``Queue``
    :param make_reader: makes what knows the queue's keys, for each link
    :param requests: renews and deletes, as a subscribed connection takes no other commands
    """

    def __init__(
        self,
        reactor: Clock,
        queue: Any,
        user: SubscriptionUser,
        make_reader: Callable[[], QueueReader],
        requests: Requests,
    ) -> None:
        self.user = user
        self._reactor = reactor
        self._queue = queue
        self._make_reader = make_reader
        self._requests = requests
        # The last link's: what it has declared may still be there.
        self._reader: QueueReader | None = None
        self._link: L | None = None
        self._over = False
        self._has_consumed = False
        self._refusal: Refused | None = None
        self._refreshing: Timer | None = None
        self._left: Callable[[], object] = lambda: None
        self._connection: Connection[L]

    def use(self, connection: Connection[L]) -> Intake[L]:
        """Consume over a connection, which connects at `start`."""
        self._connection = connection
        return self

    def start(self, left: Callable[[], object]) -> None:
        """Begin.

        :param left: called when it is over
        """
        self._left = left
        self._connection.start()

    def renew(self) -> Deferred[None] | None:
        """As `twistedcelery.transports.interface.Subscription.renew`: bindings may have been deleted."""
        if self._reader is None:
            return None
        # Another reader: one declares a queue only once.
        renewed: Deferred[Any] = self._requests.ask(self._make_reader().declare())
        return renewed.addCallbacks(lambda _: None, _not_renewed)

    def cancel(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Subscription.cancel`."""
        self._leave()
        closed = self._connection.close()
        reader, self._reader = self._reader, None
        if reader is None or not self._queue.auto_delete:
            return closed
        deleted: Deferred[Any] = self._requests.ask(reader.delete(), timeout=_DELETE_TIMEOUT)
        return all_done([closed, deleted.addErrback(self._not_deleted)])

    @abstractmethod
    def _consume(self, link: L, reader: QueueReader) -> Deferred[Any] | None:
        """Begin to consume the declared queue; ``None``: there is nothing to wait for."""

    def _consuming(self, link: L, reader: QueueReader) -> None:
        """The user knows that no message is missed."""

    def _received(self, message: Any) -> None:
        if message is not None and not self._over:
            self.user.received(message)

    def _refused(self, error: Refused) -> None:
        """Redis does not let this queue be consumed."""
        if not self._over:
            self._leave()
            self._connection.close()
            self.user.ended(caused(PublishRejected(str(error)), error))

    # The connection's user

    @inlineCallbacks
    def prepare(self, link: L) -> Generator[Deferred[Any], Any, None]:
        """Declare the queue, and consume it where that takes no waiting for messages."""
        reader = self._reader = self._make_reader()
        self._link = link
        try:
            yield link.send(reader.declare())
            consuming = self._consume(link, reader)
            if consuming is not None:
                yield consuming
        except Refused as error:
            if self._has_consumed or isinstance(error, RefusedForNow):
                # It worked before, or may work soon; Redis may be out of memory for the moment.
                raise
            self._refusal = error

    def connection_up(self) -> None:
        """Let the user know."""
        if self._refusal is not None:
            self._refused(self._refusal)
            return
        assert self._link is not None
        assert self._reader is not None
        link, reader = self._link, self._reader
        self._has_consumed = True
        self._refreshing = self._reactor.callLater(_REFRESH_EVERY, self._refresh)
        self.user.consuming()
        if not self._over:
            self._consuming(link, reader)

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Wait for the next link."""
        self._link = None
        self._stop_refreshing()
        if not self._over:
            self.user.interrupted(reason)

    def _leave(self) -> None:
        self._over = True
        self._stop_refreshing()
        self._left()

    def _not_deleted(self, failure: Failure) -> None:
        # Then its bindings expire, like those of a client that was killed.
        _log.debug("queue {queue} was not deleted: {error}", queue=self._queue.name, error=failure.value)

    def _refresh(self) -> None:
        assert self._reader is not None
        self._refreshing = self._reactor.callLater(_REFRESH_EVERY, self._refresh)
        commands = self._reader.refresh()
        if commands:
            self._requests.ask(commands).addErrback(self._not_refreshed, self._link)

    def _not_refreshed(self, failure: Failure, link: L | None) -> None:
        _log.warn(
            "the bindings of queue {queue} were not renewed: {error}",
            queue=self._queue.name,
            error=failure.value,
        )
        if link is not None and link is self._link and not self._over:
            # Redis may have lost kombu's script. The next link declares everything again.
            link.abort()

    def _stop_refreshing(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None


def _not_renewed(failure: Failure) -> Failure:
    error = failure.value
    return Failure(caused(PublishRejected(str(error)), error)) if isinstance(error, Refused) else failure


class FanoutIntake(Intake[SubscriberLink]):
    """A queue of a fanout exchange: a subscription."""

    def _consume(self, link: SubscriberLink, reader: QueueReader) -> Deferred[Any]:
        def message(channel: bytes, payload: bytes) -> None:
            if link is self._link:
                self._received(reader.published(channel, payload))

        link.on_message(message)
        return link.send(reader.consume())


class ListIntake(Intake[RedisLink]):
    """Any other queue: lists, of which one message after another is taken."""

    _has_popped = False

    def _consume(self, link: RedisLink, reader: QueueReader) -> None:
        # Messages stay in the lists from now on.
        reader.consume()

    def _consuming(self, link: RedisLink, reader: QueueReader) -> None:
        link.ask(reader.pop()).addCallbacks(
            self._popped, self._not_popped, callbackArgs=(link, reader), errbackArgs=(link,)
        )

    def _popped(self, reply: Any, link: RedisLink, reader: QueueReader) -> None:
        if link is not self._link:
            return
        self._has_popped = True
        if reply:
            self._received(reader.popped(reply))
        if not self._over:
            self._consuming(link, reader)

    def _not_popped(self, failure: Failure, link: RedisLink) -> None:
        error = failure.value
        # After a lost connection `connection_lost` follows.
        if link is self._link and isinstance(error, Refused):
            if self._has_popped or isinstance(error, RefusedForNow):
                link.abort()
            else:
                self._refused(error)
