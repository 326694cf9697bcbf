"""Queues of the client's own on Redis: replies to control commands, and events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from twistedcelery.errors import Disconnected
from twistedcelery.transports.interface import SubscriptionUser
from twistedcelery.transports.redis.intake import Intake
from twistedcelery.transports.redis.reader import QueueReader
from twistedcelery.transports.redis.requests import Requests

__all__ = ["RedisSubscriber"]


class RedisSubscriber:
    """A `twistedcelery.transports.interface.Subscriber` with a connection for each queue.

    :param requests: purges and deletes
    :param make_intake: makes what consumes a queue for its user
    :param make_reader: makes what knows the keys of a queue that is purged
    """

    def __init__(
        self,
        requests: Requests,
        make_intake: Callable[[Any, SubscriptionUser], Intake[Any]],
        make_reader: Callable[[Any], QueueReader],
    ) -> None:
        self._requests = requests
        self._make_intake = make_intake
        self._make_reader = make_reader
        self._intakes: dict[Intake[Any], None] = {}
        self._closing = False
        self._closed = False
        self._close_waiters: list[Deferred[None]] = []

    def subscribe(self, queue: Any, user: SubscriptionUser) -> Intake[Any]:
        """As `twistedcelery.transports.interface.Subscriber.subscribe`."""
        intake = self._make_intake(queue, user)
        self._intakes[intake] = None
        intake.start(lambda: self._intakes.pop(intake, None))
        return intake

    def purge(self, queues: Sequence[Any]) -> Deferred[int]:
        """As `twistedcelery.transports.interface.Subscriber.purge`."""
        return Deferred.fromCoroutine(self._purge(queues))

    async def _purge(self, queues: Sequence[Any]) -> int:
        purged = 0
        for queue in queues:
            reader = self._make_reader(queue)
            # Done twice, it would give another number.
            replies = await self._requests.ask([*reader.declare(), *reader.purge()], once=True)
            purged += reader.purged(replies)
        return purged

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Subscriber.close`."""
        waiter: Deferred[None] = Deferred()
        self._close_waiters.append(waiter)
        if not self._closing:
            self._closing = True
            intakes = list(self._intakes)
            cancelled = gatherResults([intake.cancel() for intake in intakes])
            for intake in intakes:
                intake.user.ended(Disconnected("the client was disconnected"))
            # Over these the queues are deleted.
            cancelled.addCallback(lambda _: self._requests.close()).addCallback(self._all_closed)
        elif self._closed:
            self._all_closed(None)
        return waiter

    def _all_closed(self, _: None) -> None:
        self._closed = True
        waiters, self._close_waiters = self._close_waiters, []
        for waiter in waiters:
            waiter.callback(None)
