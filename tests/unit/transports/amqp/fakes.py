"""Links, channels and brokers that do what the test says, and nothing by themselves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import BrokerUnavailable
from twistedcelery.transports.amqp.declare import Declaration
from twistedcelery.transports.connection import Connection, ConnectionUser, Refused

__all__ = ["FakeBrokers", "FakeChannel", "FakeLink", "Network", "message", "outcomes_of", "refused"]


class FakeChannel:
    """As `twistedcelery.transports.amqp.link.AmqpChannel`.

    :ivar published: what was written
    :ivar refuse: raised by `publish`
    :ivar declared: what was declared, answered or not
    :ivar unanswered: the declarations the broker has not answered, oldest first
    """

    def __init__(self, link: FakeLink) -> None:
        self.link = link
        self.open = True
        self.published: list[OutgoingMessage] = []
        self.refuse: Exception | None = None
        self.declared: list[Declaration] = []
        self.unanswered: list[Deferred[None]] = []
        self.confirming: Deferred[None] = Deferred()
        self.consuming: Deferred[None] = Deferred()
        self.consumed: list[tuple[str, int]] = []
        self.acked: list[int] = []
        self.rests: list[float] = []
        self.deleted: list[str] = []
        self.deleting: Deferred[None] = Deferred()
        self._closed_callbacks: list[Callable[[Any], None]] = []

    # What the code under test calls

    def on_closed(self, callback: Callable[[Any], None]) -> None:
        self._closed_callbacks.append(callback)

    def confirm_publishing(self, on_confirm: Any, on_return: Any) -> Deferred[None]:
        self.confirm, self.give_back = on_confirm, on_return
        if self.link.prompt:
            self.confirming.callback(None)
        return self.confirming

    def publish(self, message: OutgoingMessage) -> None:
        if not self.open:
            raise BrokerUnavailable("the channel is closed")
        if self.refuse is not None:
            raise self.refuse
        self.published.append(message)

    def declare(self, declaration: Declaration) -> Deferred[None]:
        self.declared.append(declaration)
        answer: Deferred[None] = Deferred()
        if not self.open:
            answer.errback(BrokerUnavailable("the channel is closed"))
        elif declaration.arguments.get("passive") and declaration.arguments.get("queue") in self.link.missing:
            answer.errback(refused("404"))
            self.end(refused("404"))
        elif self.link.prompt:
            answer.callback(None)
        else:
            self.unanswered.append(answer)
        return answer

    def consume(self, queue: str, prefetch: int, on_delivery: Any, on_cancelled: Any) -> Deferred[None]:
        self.consumed.append((queue, prefetch))
        self.deliver, self.cancel_consumer = on_delivery, on_cancelled
        if self.link.prompt:
            self.consuming.callback(None)
        return self.consuming

    def close(self) -> None:
        self.open = False

    def ack(self, delivery_tag: int) -> None:
        self.acked.append(delivery_tag)

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)

    def delete_consumed_queue(self, queue: str) -> Deferred[None]:
        self.deleted.append(queue)
        return self.deleting

    # What the broker does

    def answer(self, error: Exception | None = None) -> None:
        """Answer the oldest declaration; refusing it closes the channel, as a broker does."""
        answer = self.unanswered.pop(0)
        if error is None:
            answer.callback(None)
        else:
            answer.errback(error)
            self.end(error)

    def end(self, reason: Exception) -> None:
        """The channel ends, and what waits for an answer on it."""
        if not self.open:
            return
        self.open = False
        unanswered, self.unanswered = self.unanswered, []
        for answer in unanswered:
            answer.errback(reason)
        for callback in self._closed_callbacks:
            callback(reason)


class FakeLink:
    """As `twistedcelery.transports.amqp.link.AmqpLink`.

    Like a transport, it reports its end in a later reactor turn than `abort`.

    :ivar prompt: whether everything but `close` is answered at once
    :ivar channels: the channels that were opened, in order
    :ivar opening: those that were asked for and not answered
    :ivar missing: the queues that are not there when they are looked up
    """

    def __init__(self, clock: Clock, prompt: bool = True) -> None:
        self.prompt = prompt
        self.channels: list[FakeChannel] = []
        self.opening: list[Deferred[FakeChannel]] = []
        self.missing: set[str] = set()
        self.closing = False
        self.aborted = False
        self.lost: BrokerUnavailable | None = None
        self._clock = clock
        self._lost_callbacks: list[Callable[[BrokerUnavailable], None]] = []

    def on_lost(self, callback: Callable[[BrokerUnavailable], None]) -> None:
        if self.lost is not None:
            callback(self.lost)
        else:
            self._lost_callbacks.append(callback)

    def allow_silence(self, condition: Callable[[], bool]) -> None:
        self.is_silence_allowed = condition

    def give_up(self, why: str) -> None:
        self.given_up = why
        self._clock.callLater(0, self.lose, BrokerUnavailable(why))

    def on_blocked(self, blocked: Callable[[str], None], unblocked: Callable[[], None]) -> None:
        self.block, self.unblock = blocked, unblocked

    def open_channel(self) -> Deferred[FakeChannel]:
        opening: Deferred[FakeChannel] = Deferred()
        if self.lost is not None:
            opening.errback(self.lost)
        elif self.prompt:
            self.channels.append(FakeChannel(self))
            opening.callback(self.channels[-1])
        else:
            self.opening.append(opening)
        return opening

    def close(self) -> None:
        self.closing = True

    def drop(self) -> None:
        if not self.closing:
            self.abort()

    def abort(self) -> None:
        if not self.aborted and self.lost is None:
            self.aborted = True
            self._clock.callLater(0, self.lose)

    # What the broker or the network does

    def lose(self, reason: BrokerUnavailable | None = None) -> None:
        """The connection ends: its channels first, as with pika."""
        if self.lost is not None:
            return
        self.lost = reason or BrokerUnavailable("lost")
        for channel in self.channels:
            channel.end(self.lost)
        for opening in self.opening:
            if not opening.called:
                opening.errback(self.lost)
        for callback in self._lost_callbacks:
            callback(self.lost)


class FakeBrokers:
    """A failover list whose brokers are numbers.

    :ivar broken: raised by `current`
    :ivar at_once: how many are tried before waiting
    """

    at_once = 1

    def __init__(self, connect_timeout: float = 4.0, size: int = 3) -> None:
        self.connect_timeout = connect_timeout
        self.position = 0
        self.broken: Exception | None = None
        self._size = size

    def current(self) -> Any:
        if self.broken is not None:
            raise self.broken
        return SimpleNamespace(endpoint=self.position, parameters=None, address=f"amqp://{self.position}")

    def advance(self) -> int:
        self.position = (self.position + 1) % self._size
        return self.at_once


class Network:
    """Where links come from.

    :ivar attempts: the attempts to open one, each ``(broker, Deferred)``
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.brokers = FakeBrokers()
        self.attempts: list[tuple[int, Deferred[Any]]] = []

    def open(self, endpoint: int, _parameters: Any, _reactor: Any) -> Deferred[Any]:
        self.attempts.append((endpoint, Deferred()))
        return self.attempts[-1][1]

    def connection(self, user: ConnectionUser, backoff: Callable[[int], float] | None = None) -> Connection:
        """A connection over this network; it waits 1, 2, 3 ... seconds after failures."""
        backoff = backoff or (lambda failures: failures + 1.0)
        return Connection(self.brokers, user, self.clock, backoff, self.open, purpose="tests")

    def accept(self, link: FakeLink | None = None) -> FakeLink:
        """The latest attempt succeeds."""
        accepted = link or FakeLink(self.clock)
        self.attempts[-1][1].callback(accepted)
        return accepted

    def refuse(self, error: Exception | None = None) -> None:
        """The latest attempt fails."""
        self.attempts[-1][1].errback(error or BrokerUnavailable("refused"))

    def turn(self) -> None:
        """Let one turn of the reactor pass, in no time."""
        self.clock.advance(0)


def message(
    task_id: str | None = "id-1",
    *,
    body: bytes = b"body",
    exchange: str = "",
    routing_key: str = "celery",
    mandatory: bool = True,
    **fields: Any,
) -> OutgoingMessage:
    """A message, as the encoder makes them."""
    return OutgoingMessage(
        body=body,
        properties={} if task_id is None else {"correlation_id": task_id},
        headers={"task": "tasks.add"},
        exchange=exchange,
        routing_key=routing_key,
        mandatory=mandatory,
        **fields,
    )


def refused(text: str = "406") -> Refused:
    """What a channel says of a declaration that the broker refuses."""
    return Refused(f"the broker refused: {text}")


def outcomes_of(deferred: Deferred[Any]) -> list[Any]:
    """A list that the outcome is put into: the value, or the exception."""
    outcomes: list[Any] = []
    deferred.addBoth(
        lambda outcome: outcomes.append(outcome.value if isinstance(outcome, Failure) else outcome)
    )
    return outcomes
