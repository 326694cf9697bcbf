"""Consumes queues of the client by kombu's blocking code in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, succeed

from twistedcelery.errors import BrokerUnavailable, Disconnected, TwistedCeleryError
from twistedcelery.transports.interface import IncomingMessage, QueueState, SubscriptionUser
from twistedcelery.transports.threads.listener import QueueListener
from twistedcelery.transports.threads.thread import DedicatedThread, ThreadReactor

__all__ = ["ThreadedSubscriber"]


class ThreadedSubscriber:
    """A `twistedcelery.transports.interface.Subscriber` on one kombu connection in one thread.

    The thread starts with the first subscription.

    :param app: the Celery application, whose ``broker_read_url`` and options are used
    """

    def __init__(self, app: Any, reactor: ThreadReactor) -> None:
        self._subscriptions: dict[_Subscription, None] = {}
        self._thread = DedicatedThread(
            reactor, "twistedcelery-subscribe", step=self._step, finish=self._release
        )
        self._listener = QueueListener(app, self._thread)

    def subscribe(self, queue: Any, user: SubscriptionUser) -> _Subscription:
        """As `twistedcelery.transports.interface.Subscriber.subscribe`."""
        subscription = _Subscription(queue, user, self._subscriptions, self._cancelled)
        self._subscriptions[subscription] = None
        self._thread.submit(partial(self._listener.add, subscription))
        return subscription

    def purge(self, queues: Sequence[Any]) -> Deferred[int]:
        """As `twistedcelery.transports.interface.Subscriber.purge`."""
        return self._thread.call(partial(self._listener.purge, queues))

    def look(self, queue: str) -> Deferred[QueueState | None]:
        """As `twistedcelery.transports.interface.Subscriber.look`. kombu cannot tell who consumes a queue."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Subscriber.close`.

        Where the thread hangs in a blocking call of a driver it is left behind after
        `twistedcelery.transports.threads.thread.STOP_LIMIT` seconds; it ends with that call and
        does not keep the process alive.
        """
        stopped = self._thread.stop()
        for subscription in list(self._subscriptions):
            subscription.ended(Disconnected("the client was disconnected"))
        return stopped

    def _cancelled(self, subscription: _Subscription) -> Deferred[None]:
        removed = self._thread.call(partial(self._listener.remove, subscription))
        # A thread that is stopped does it as its last work.
        return removed.addErrback(lambda failure: failure.trap(Disconnected) and None)

    # In the thread

    def _step(self) -> float | None:
        return self._listener.step()

    def _release(self) -> None:
        self._listener.close()


class _Subscription:
    """One queue; what the thread posts reaches its user until it ends.

    :param all_of_them: the subscriber's; this one leaves it when it ends
    :param cancelled: has the thread give the queue up
    """

    def __init__(
        self,
        queue: Any,
        user: SubscriptionUser,
        all_of_them: dict[_Subscription, None],
        cancelled: Callable[[_Subscription], Deferred[None]],
    ) -> None:
        self.queue = queue
        self._user = user
        self._all_of_them = all_of_them
        self._cancelled = cancelled

    def renew(self) -> None:
        """As `twistedcelery.transports.interface.Subscription.renew`."""

    def cancel(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Subscription.cancel`."""
        self._all_of_them.pop(self, None)
        return self._cancelled(self)

    # What the thread posts

    def consuming(self) -> None:
        """Let the user know, until the subscription ends."""
        if self in self._all_of_them:
            self._user.consuming()

    def received(self, message: IncomingMessage) -> None:
        """Give it to the user, until the subscription ends."""
        if self in self._all_of_them:
            self._user.received(message)

    def interrupted(self, reason: BrokerUnavailable) -> None:
        """Let the user know, until the subscription ends."""
        if self in self._all_of_them:
            self._user.interrupted(reason)

    def ended(self, error: TwistedCeleryError) -> None:
        """Let the user know; nothing follows."""
        if self in self._all_of_them:
            del self._all_of_them[self]
            self._user.ended(error)
