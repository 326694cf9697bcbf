"""Messages to Redis, each confirmed by the replies to its commands."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    Overloaded,
    PublishRejected,
    TwistedCeleryError,
)
from twistedcelery.message import OutgoingMessage
from twistedcelery.transports.connection import Connection, State
from twistedcelery.transports.deadlines import Deadlines
from twistedcelery.transports.publication import Publication
from twistedcelery.transports.redis.link import Command, RedisLink
from twistedcelery.transports.redis.recorder import AnswerNeeded, Recorder

__all__ = ["RedisPublisher"]

#: Seconds of a reactor turn that sending what waited may take: thousands may wait for a link.
TURN_BUDGET = 0.004


class RedisPublisher:
    """A `twistedcelery.transports.interface.Publisher` over one Redis connection.

    Messages wait, bounded in number and time, while there is no link, and while Redis is slow to
    reply. When a link is lost, what was not sent yet waits for the next one. What was sent and
    not replied to fails with `PublishUnconfirmed`, unless its caller allowed it to be sent again.

    :param reactor: for time
    :param publish_timeout: seconds for Redis to take a message that sets no limit of its own
    :param make_recorder: makes what turns messages into commands, for each link
    :param max_waiting: messages that may wait to be sent
    :param max_unconfirmed: messages that may be sent and not confirmed
    :param clock: seconds of real time
    """

    def __init__(
        self,
        reactor: Clock,
        publish_timeout: float,
        make_recorder: Callable[[], Recorder],
        max_waiting: int = 50_000,
        max_unconfirmed: int = 5_000,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._pump_turn: Timer | None = None
        self._publish_timeout = publish_timeout
        self._make_recorder = make_recorder
        self._max_waiting = max_waiting
        self._max_unconfirmed = max_unconfirmed
        self._deadlines: Deadlines[Publication] = Deadlines(reactor, self._expired)
        # Ordered sets: whatever ends early is taken out, so that a Redis that stays away does not
        # fill them up. The second one has those whose bindings are being read.
        self._waiting: OrderedDict[Publication, None] = OrderedDict()
        self._asking: dict[Publication, None] = {}
        self._unconfirmed: dict[Publication, None] = {}
        self._link: RedisLink | None = None
        self._recorder: Recorder | None = None
        self._reason: BrokerUnavailable | None = None
        self._connection: Connection[RedisLink]

    def use(self, connection: Connection[RedisLink]) -> RedisPublisher:
        """Publish over a connection, whose user this is."""
        self._connection = connection
        return self

    @property
    def connected(self) -> bool:
        """Whether a message published now would go out at once."""
        return self._connection.state is State.UP

    def publish(self, message: OutgoingMessage) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Publisher.publish`."""
        if self._connection.state in (State.CLOSING, State.CLOSED):
            return fail(Disconnected("the connection to the broker was closed by disconnect()"))
        if len(self._waiting) >= self._max_waiting:
            return fail(
                Overloaded(f"{self._max_waiting} messages already wait for the broker; try again later")
            )
        publication = Publication(message, self._withdraw)
        allowed = message.confirm_timeout
        self._deadlines.add(self._publish_timeout if allowed is None else allowed, publication)
        if self._waiting or not self._has_room():
            self._waiting[publication] = None
            self._connection.start()
        else:
            self._dispatch(publication, {})
        return publication.done

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Publisher.close`."""
        unfinished = [*self._unconfirmed, *self._asking, *self._waiting]
        self._unconfirmed.clear()
        self._asking.clear()
        self._waiting.clear()
        self._deadlines.stop()
        if self._pump_turn is not None:
            self._pump_turn.cancel()
            self._pump_turn = None
        closed = self._connection.close()
        for publication in unfinished:
            publication.fail(
                Disconnected("the client was disconnected before the broker confirmed the message")
            )
        return closed

    # The connection's user

    def prepare(self, link: RedisLink) -> Deferred[None]:
        """Begin anew: what was declared over another link may be gone with another server's data."""
        self._recorder = self._make_recorder()
        self._link = link
        return succeed(None)

    def connection_up(self) -> None:
        """Send what waits."""
        self._reason = None
        self._pump()

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Settle, or keep for the next link, what the lost one leaves."""
        self._reason = reason
        self._link = self._recorder = None
        sent = [publication for publication in self._unconfirmed if not publication.settled]
        self._unconfirmed.clear()
        again = [publication for publication in sent if publication.message.resend]
        self._wait_first([*again, *self._asking])
        self._asking.clear()
        for publication in sent:
            if not publication.message.resend:
                publication.fail(publication.unconfirmed(str(reason)))
        if isinstance(reason, BrokerAccessRefused):
            # Waiting does not help: somebody has to change the password or the permissions.
            refused = list(self._waiting)
            self._waiting.clear()
            for publication in refused:
                publication.fail(
                    publication.unconfirmed(str(reason))
                    if publication.sent
                    else BrokerAccessRefused(str(reason))
                )

    # The way of one message

    def _has_room(self) -> bool:
        return (
            self._link is not None
            and self.connected
            and len(self._unconfirmed) + len(self._asking) < self._max_unconfirmed
        )

    def _pump(self) -> None:
        """Send what waits, over as many reactor turns as it takes."""
        if self._pump_turn is not None:
            return
        turn_ends = self._clock() + TURN_BUDGET
        while self._waiting and self._has_room():
            if self._clock() >= turn_ends:
                self._pump_turn = self._reactor.callLater(0, self._pump_on)
                return
            publication, _ = self._waiting.popitem(last=False)
            self._dispatch(publication, {})

    def _pump_on(self) -> None:
        self._pump_turn = None
        self._pump()

    def _wait_first(self, publications: Sequence[Publication]) -> None:
        for publication in reversed(publications):
            self._waiting[publication] = None
            self._waiting.move_to_end(publication, last=False)

    def _withdraw(self, publication: Publication) -> None:
        self._waiting.pop(publication, None)
        self._asking.pop(publication, None)

    def _dispatch(self, publication: Publication, answers: Mapping[Command, Any]) -> None:
        assert self._recorder is not None
        try:
            commands = self._recorder.record(publication.message, answers)
        except AnswerNeeded as needed:
            self._ask(publication, needed)
        except TwistedCeleryError as error:
            described = type(error)(f"{publication}: {error}")
            described.__cause__ = error
            publication.fail(described)
        else:
            self._send(publication, commands)

    def _ask(self, publication: Publication, needed: AnswerNeeded) -> None:
        link = self._link
        assert link is not None
        self._asking[publication] = None
        if needed.before:
            link.send(needed.before).addErrback(self._not_taken, publication, link)
        link.ask(needed.question).addCallbacks(
            self._answered,
            self._not_taken,
            callbackArgs=(publication, link, needed.question),
            errbackArgs=(publication, link),
        )

    def _answered(self, reply: Any, publication: Publication, link: RedisLink, question: Command) -> None:
        if link is self._link and publication in self._asking:
            del self._asking[publication]
            self._dispatch(publication, {question: reply})

    def _send(self, publication: Publication, commands: list[Command]) -> None:
        link = self._link
        assert link is not None
        if not commands:
            # Nothing is bound, and nobody wants to be told.
            publication.succeed()
            return
        if not link.is_alive:
            # The message waits for the next link, which this one's end, about to be told, brings.
            self._wait_first([publication])
            self._link = None
            link.abort()
            return
        publication.sent = True
        self._unconfirmed[publication] = None
        link.send(commands).addCallbacks(
            self._taken,
            self._not_taken,
            callbackArgs=(publication, link),
            errbackArgs=(publication, link),
        )

    def _taken(self, _: None, publication: Publication, link: RedisLink) -> None:
        if link is not self._link:
            return
        self._unconfirmed.pop(publication, None)
        publication.succeed()
        self._pump()

    def _not_taken(self, failure: Failure, publication: Publication, link: RedisLink) -> None:
        if link is not self._link or failure.check(BrokerUnavailable):
            # The connection tells of its end itself.
            return
        self._unconfirmed.pop(publication, None)
        self._asking.pop(publication, None)
        # What was declared may have been among what Redis refused: declare it again.
        self._recorder = self._make_recorder()
        error = PublishRejected(f"{publication}: Redis says {failure.value}")
        error.__cause__ = failure.value
        publication.fail(error)
        self._pump()

    def _expired(self, publication: Publication) -> None:
        self._withdraw(publication)
        if publication.sent:
            publication.fail(publication.unconfirmed("the confirmation did not come in time"))
            return
        why = self._reason or "it is connected, but takes no messages"
        publication.fail(BrokerUnavailable(f"{publication} was not sent: {why}"))
