"""Declares the queues and exchanges that messages need, once for each link."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.transports.amqp.declare import Declaration, declarations
from twistedcelery.transports.amqp.link import AmqpChannel, AmqpLink
from twistedcelery.transports.connection import Refused

__all__ = ["Declarer"]

#: Entities that are remembered as declared. An application has far fewer, unless it makes a new
#: ``Queue`` for each call; then some are declared again.
MAX_REMEMBERED = 1000


class Declarer:
    """Declares queues and exchanges on a channel of its own.

    The broker closes the channel on which it refuses a declaration, for example of a queue that
    exists with other arguments. On a separate channel a refusal fails only the messages that need
    that queue.

    :param link: lives as long as the declarer
    """

    def __init__(self, link: AmqpLink) -> None:
        self._link = link
        self._channel: AmqpChannel | None = None
        self._queue: deque[tuple[OutgoingMessage, Deferred[None]]] = deque()
        self._running = False
        # By identity, which is cheap; the entities are kept, so that no identity is used twice.
        self._declared: dict[int, Any] = {}
        self._exchanges = {""}

    def missing(self, message: OutgoingMessage) -> bool:
        """Whether something must be declared before the message can be sent."""
        if message.exchange not in self._exchanges:
            return True
        return any(id(entity) not in self._declared for entity in message.declare)

    def declare_for(self, message: OutgoingMessage) -> Deferred[None]:
        """Declare what a message needs, after what messages before it need.

        :return: fails with `Refused` where the broker refuses, or with `BrokerUnavailable` when the
            link is lost
        """
        done: Deferred[None] = Deferred()
        self._queue.append((message, done))
        if not self._running:
            self._running = True
            self._run()
        return done

    def forget(self) -> None:
        """Declare everything again: some of it may be gone."""
        self._declared.clear()
        self._exchanges = {""}

    @inlineCallbacks
    def _run(self) -> Generator[Deferred[Any], Any, None]:
        while self._queue:
            message, done = self._queue.popleft()
            try:
                yield from self._declare(message)
            except Exception as error:
                # kombu's code runs here as well; its error belongs to this message.
                done.errback(Failure(error))
            else:
                done.callback(None)
        self._running = False

    def _declare(self, message: OutgoingMessage) -> Generator[Deferred[Any], Any, None]:
        for entity in message.declare:
            if id(entity) not in self._declared:
                yield from self._carry_out(declarations(entity))
                self._remember(entity)
        if message.exchange not in self._exchanges:
            # Publishing to an exchange that does not exist closes the channel for all messages.
            check = Declaration("exchange_declare", {"exchange": message.exchange, "passive": True})
            yield from self._carry_out([check])
            self._exchanges.add(message.exchange)

    def _remember(self, entity: Any) -> None:
        exchange = getattr(entity, "exchange", entity)
        self._exchanges.add(exchange.name if exchange is not None else "")
        if entity.can_cache_declaration:
            if len(self._declared) >= MAX_REMEMBERED:
                self._declared.clear()
            self._declared[id(entity)] = entity

    def _carry_out(self, steps: Sequence[Declaration]) -> Generator[Deferred[Any], Any, None]:
        if self._channel is None:
            self._channel = yield self._link.open_channel()
        try:
            for step in steps:
                yield self._channel.declare(step)
        except Refused:
            self._channel = None
            raise
