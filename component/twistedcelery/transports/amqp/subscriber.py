"""Consumes queues of the client over AMQP: replies to control commands, and events."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters
from twistedcelery._types import Clock
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    PublishError,
    PublishRejected,
)
from twistedcelery.transports.amqp.declare import Declaration, declarations
from twistedcelery.transports.amqp.delivery import Delivery
from twistedcelery.transports.amqp.link import AmqpChannel, AmqpLink
from twistedcelery.transports.connection import Connection, Refused, State, caused
from twistedcelery.transports.deadlines import cancel_after
from twistedcelery.transports.interface import QueueState, SubscriptionUser

__all__ = ["AmqpSubscriber"]

_log = Logger()

#: Seconds that the broker may take to delete a queue that is not consumed any more.
_DELETE_TIMEOUT = 3.0

#: AMQP's code for a queue that does not exist.
_NOT_FOUND = 404


class AmqpSubscriber:
    """A `twistedcelery.transports.interface.Subscriber` on one AMQP connection.

    Each subscription has a channel of its own, since a refused declaration closes its channel.

    :param reactor: for time
    :param timeout: seconds that `purge` waits for a connection
    """

    def __init__(self, reactor: Clock, timeout: float) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._subscriptions: dict[_Subscription, None] = {}
        self._waiters: Waiters[AmqpLink] = Waiters()
        self._link: AmqpLink | None = None
        self._reason: BrokerUnavailable | None = None
        self._connection: Connection[AmqpLink]

    def use(self, connection: Connection[AmqpLink]) -> AmqpSubscriber:
        """Consume over a connection, whose user this is."""
        self._connection = connection
        return self

    def subscribe(self, queue: Any, user: SubscriptionUser) -> _Subscription:
        """As `twistedcelery.transports.interface.Subscriber.subscribe`."""
        subscription = _Subscription(queue, user, self._reactor, self._subscriptions)
        self._subscriptions[subscription] = None
        if self._link is not None:
            subscription.begin(self._link).addErrback(_link_lost)
        else:
            self._connection.start()
        return subscription

    def purge(self, queues: Sequence[Any]) -> Deferred[int]:
        """As `twistedcelery.transports.interface.Subscriber.purge`."""
        return self._connected().addCallback(self._purge, queues)

    def look(self, queue: str) -> Deferred[QueueState | None]:
        """As `twistedcelery.transports.interface.Subscriber.look`, by a passive declaration."""
        looking = self._connected().addCallback(self._look, queue)
        return cancel_after(self._timeout, looking, self._reactor)

    def _connected(self) -> Deferred[AmqpLink]:
        if self._connection.state is State.UP and self._link is not None:
            return succeed(self._link)
        if self._connection.state in (State.CLOSING, State.CLOSED):
            return fail(Disconnected("the client was disconnected"))
        connected = cancel_after(self._timeout, self._waiters.wait(self._unavailable), self._reactor)
        self._connection.start()
        return connected

    @inlineCallbacks
    def _purge(self, link: AmqpLink, queues: Sequence[Any]) -> Generator[Deferred[Any], Any, int]:
        channel: AmqpChannel = yield link.open_channel()
        purged = 0
        try:
            for queue in queues:
                for step in declarations(queue):
                    yield channel.declare(step)
                purge = yield channel.declare(Declaration("queue_purge", {"queue": queue.name}))
                purged += purge.method.message_count
        except Refused as error:
            raise PublishRejected(str(error)) from error
        finally:
            channel.close()
        return purged

    @inlineCallbacks
    def _look(self, link: AmqpLink, queue: str) -> Generator[Deferred[Any], Any, QueueState | None]:
        # A channel for each look: the broker closes it where there is no such queue.
        channel: AmqpChannel = yield link.open_channel()
        try:
            found = yield channel.declare(Declaration("queue_declare", {"queue": queue, "passive": True}))
        except Refused as error:
            if getattr(error.__cause__, "reply_code", None) == _NOT_FOUND:
                return QueueState(0, 0)
            raise PublishRejected(str(error)) from error
        finally:
            channel.close()
        return QueueState(found.method.message_count, found.method.consumer_count)

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Subscriber.close`."""
        error = Disconnected("the client was disconnected")
        self._waiters.fail(error)
        for subscription in list(self._subscriptions):
            # It goes out before the closing handshake, which is waited for.
            subscription.cancel()
            subscription.user.ended(error)
        return self._connection.close()

    # The connection's user

    @inlineCallbacks
    def prepare(self, link: AmqpLink) -> Generator[Deferred[Any], Any, None]:
        """Consume all queues on a new link."""
        self._link = link
        for subscription in list(self._subscriptions):
            yield subscription.begin(link)

    def connection_up(self) -> None:
        """Purge what waits to be purged."""
        assert self._link is not None
        self._waiters.fire(self._link)

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Interrupt the subscriptions until the next link. Purging does not wait for a wrong password."""
        self._link = None
        self._reason = reason
        for subscription in list(self._subscriptions):
            subscription.interrupt(reason)
        if isinstance(reason, BrokerAccessRefused):
            self._waiters.fail(reason)

    def _unavailable(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"no connection to purge queues: {self._reason or 'it takes too long'}")


class _Subscription:
    """One queue, consumed on a channel of its own on each link.

    :param all_of_them: the subscriber's; this one leaves it when it ends
    """

    def __init__(
        self, queue: Any, user: SubscriptionUser, reactor: Clock, all_of_them: dict[_Subscription, None]
    ) -> None:
        self.user = user
        self._queue = queue
        self._reactor = reactor
        self._all_of_them = all_of_them
        self._channel: AmqpChannel | None = None
        self._has_consumed = False

    @property
    def _over(self) -> bool:
        return self not in self._all_of_them

    @inlineCallbacks
    def begin(self, link: AmqpLink) -> Generator[Deferred[Any], Any, None]:
        """Declare and consume on a new link.

        :raises Exception: it cannot be done on this link: `Refused` or a `PublishError`
        """
        if self._over:
            return
        channel: AmqpChannel = yield link.open_channel()
        try:
            for step in declarations(self._queue):
                yield channel.declare(step)
            yield channel.consume(self._queue.name, None, self._delivered, on_cancelled=link.drop)
        except Refused as error:
            if self._has_consumed:
                # The queue may belong to the lost connection, whose end the broker has not noticed yet.
                raise
            if not self._over:
                del self._all_of_them[self]
                self.user.ended(caused(PublishRejected(str(error)), error))
            return
        # Without its channel the link is of no use here.
        channel.on_closed(lambda _reason: None if self._over else link.drop())
        self._channel = channel
        if self._over:
            yield self._delete()
            return
        self._has_consumed = True
        self.user.consuming()

    def interrupt(self, reason: BrokerUnavailable) -> None:
        """The link was lost."""
        self._channel = None
        self.user.interrupted(reason)

    def renew(self) -> None:
        """As `twistedcelery.transports.interface.Subscription.renew`."""

    def cancel(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Subscription.cancel`."""
        self._all_of_them.pop(self, None)
        return self._delete()

    def _delete(self) -> Deferred[None]:
        channel, self._channel = self._channel, None
        if channel is None:
            return succeed(None)
        if not self._queue.auto_delete:
            channel.close()
            return succeed(None)
        deleting = channel.delete_consumed_queue(self._queue.name)
        deleting.addTimeout(_DELETE_TIMEOUT, self._reactor)  # type: ignore[arg-type]  # a zope interface
        return deleting.addBoth(self._deleted, channel)

    def _deleted(self, outcome: Any, channel: AmqpChannel) -> None:
        if isinstance(outcome, Failure):
            # Then it is deleted with its connection, or expires.
            _log.debug("queue {queue} was not deleted: {error}", queue=self._queue.name, error=outcome.value)
        channel.close()

    def _delivered(self, delivery: Delivery) -> None:
        if not self._over:
            self.user.received(delivery)


def _link_lost(failure: Failure) -> None:
    """`connection_lost` follows, and the subscription goes on with the next link."""
    failure.trap(PublishError, Refused)
