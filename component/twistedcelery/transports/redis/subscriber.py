"""Consumes queues of the client on Redis: replies to control commands, and events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kombu.entity import Queue
from twisted.internet.defer import Deferred

from twistedcelery._deferreds import all_done, fork
from twistedcelery.errors import Disconnected, PublishRejected
from twistedcelery.transports.connection import Refused
from twistedcelery.transports.interface import QueueState, SubscriptionUser
from twistedcelery.transports.redis.intake import Intake
from twistedcelery.transports.redis.link import Command
from twistedcelery.transports.redis.queue_reader import QueueReader
from twistedcelery.transports.redis.requests import Requests

__all__ = ["RedisSubscriber"]


class RedisSubscriber:
    """A `twistedcelery.transports.interface.Subscriber` with a connection for each queue.

    :param requests: purges and deletes
    :param make_intake: makes what consumes a queue for its user
    :param make_reader: makes what knows the keys of a queue that is purged or looked at
    :param pidbox: the name of the exchange that control commands are broadcast to
    """

    def __init__(
        self,
        requests: Requests,
        make_intake: Callable[[Any, SubscriptionUser], Intake[Any]],
        make_reader: Callable[[Any], QueueReader],
        pidbox: str,
    ) -> None:
        self._requests = requests
        self._pidbox = pidbox
        self._make_intake = make_intake
        self._make_reader = make_reader
        self._intakes: dict[Intake[Any], None] = {}
        self._closing: Deferred[None] | None = None

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
            try:
                purged += await reader.purge(partial(self._ask_once, reader.declare()))
            except Refused as error:
                raise PublishRejected(str(error)) from error
        return purged

    def look(self, queue: str) -> Deferred[QueueState | None]:
        """As `twistedcelery.transports.interface.Subscriber.look`."""
        reader = self._make_reader(Queue(queue))
        return Deferred.fromCoroutine(self._look(reader))

    async def _look(self, reader: QueueReader) -> QueueState | None:
        try:
            return reader.looked(await self._requests.ask(reader.look(self._pidbox)))
        except Refused as error:
            raise PublishRejected(str(error)) from error

    def _ask_once(self, declaring: Sequence[Command], commands: Sequence[Command]) -> Deferred[Any]:
        # Purged twice, the second number would be wrong.
        replies = self._requests.ask([*declaring, *commands], once=True)
        return replies.addCallback(lambda each: each[-1])

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Subscriber.close`."""
        if self._closing is None:
            intakes = list(self._intakes)
            # The requests delete the queues, so they are closed last.
            self._closing = all_done([intake.cancel() for intake in intakes])
            self._closing.addCallback(lambda _: self._requests.close())
            for intake in intakes:
                intake.user.ended(Disconnected("the client was disconnected"))
        return fork(self._closing)
