"""Messages to the broker over AMQP, each confirmed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import takewhile

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    Overloaded,
    PublishRejected,
    TwistedCeleryError,
    Unroutable,
)
from twistedcelery.message import OutgoingMessage
from twistedcelery.transports.amqp.declarer import Declarer
from twistedcelery.transports.amqp.link import AmqpChannel, AmqpLink
from twistedcelery.transports.connection import Connection, State
from twistedcelery.transports.deadlines import Deadlines
from twistedcelery.transports.publication import Publication

__all__ = ["AmqpPublisher"]

#: Seconds of a reactor turn that sending what waited may take: thousands may wait for a link.
TURN_BUDGET = 0.004


class AmqpPublisher:
    """A `twistedcelery.transports.interface.Publisher` over one AMQP connection.

    Messages wait, bounded in number and time, while there is no link, and while the broker is
    slow to confirm. When a link is lost, what was not sent yet waits for the next one. What was
    sent and not confirmed fails with `PublishUnconfirmed`, unless its caller allowed it to be
    sent again.

    :param reactor: for time
    :param publish_timeout: seconds for the broker to take a message that sets no limit of its own
    :param max_waiting: messages that may wait to be sent
    :param max_unconfirmed: messages that may be sent and not confirmed
    :param clock: seconds of real time
    """

    def __init__(
        self,
        reactor: Clock,
        publish_timeout: float,
        max_waiting: int = 50_000,
        max_unconfirmed: int = 5_000,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._pump_turn: Timer | None = None
        self._publish_timeout = publish_timeout
        self._max_waiting = max_waiting
        self._max_unconfirmed = max_unconfirmed
        self._deadlines: Deadlines[Publication] = Deadlines(reactor, self._expired)
        # Ordered sets: whatever ends early is taken out, so that a broker that stays away does not
        # fill them up.
        self._waiting: OrderedDict[Publication, None] = OrderedDict()
        self._declaring: dict[Publication, None] = {}
        self._unconfirmed: dict[int, Publication] = {}
        self._last_tag = 0
        self._channel: AmqpChannel | None = None
        self._declarer: Declarer | None = None
        self._reason: BrokerUnavailable | None = None
        self._connection: Connection[AmqpLink]

    def use(self, connection: Connection[AmqpLink]) -> AmqpPublisher:
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
            self._dispatch(publication)
        return publication.done

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Publisher.close`."""
        unfinished = [*self._unconfirmed.values(), *self._declaring, *self._waiting]
        self._unconfirmed.clear()
        self._declaring.clear()
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

    def prepare(self, link: AmqpLink) -> Deferred[None]:
        """Open the publishing channel of a new link."""

        def opened(channel: AmqpChannel) -> Deferred[None]:
            def closed(_reason: object) -> None:
                # Without its channel the link is of no use here.
                if self._channel is channel:
                    self._channel = None
                link.drop()

            self._channel = channel
            self._last_tag = 0
            channel.on_closed(closed)
            return channel.confirm_publishing(self._confirmed, self._returned)

        self._declarer = Declarer(link)
        return link.open_channel().addCallback(opened)

    def connection_up(self) -> None:
        """Send what waits."""
        self._reason = None
        self._pump()

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Settle, or keep for the next link, what the lost one leaves."""
        self._reason = reason
        self._channel = self._declarer = None
        sent = [publication for publication in self._unconfirmed.values() if not publication.settled]
        self._unconfirmed.clear()
        again = [publication for publication in sent if publication.message.resend]
        self._wait_first([*again, *self._declaring])
        self._declaring.clear()
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
            self._channel is not None
            and self.connected
            and len(self._unconfirmed) + len(self._declaring) < self._max_unconfirmed
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
            self._dispatch(publication)

    def _pump_on(self) -> None:
        self._pump_turn = None
        self._pump()

    def _wait_first(self, publications: Sequence[Publication]) -> None:
        for publication in reversed(publications):
            self._waiting[publication] = None
            self._waiting.move_to_end(publication, last=False)

    def _withdraw(self, publication: Publication) -> None:
        self._waiting.pop(publication, None)
        self._declaring.pop(publication, None)

    def _dispatch(self, publication: Publication) -> None:
        declarer = self._declarer
        assert declarer is not None
        if not declarer.missing(publication.message):
            self._send(publication)
            return
        self._declaring[publication] = None
        declarer.declare_for(publication.message).addBoth(self._declared, publication)

    def _declared(self, outcome: Failure | None, publication: Publication) -> None:
        if publication not in self._declaring:
            # It has ended meanwhile.
            return
        if isinstance(outcome, Failure) and outcome.check(BrokerUnavailable):
            # The link's end is about to be reported; the message waits for the next one.
            return
        del self._declaring[publication]
        if not isinstance(outcome, Failure):
            self._send(publication)
        else:
            error = PublishRejected(f"{publication} cannot be sent: {outcome.value}")
            error.__cause__ = outcome.value
            publication.fail(error)
            self._pump()

    def _send(self, publication: Publication) -> None:
        if self._channel is None:
            # The link's end is about to be reported; the message waits for the next one.
            self._wait_first([publication])
            return
        try:
            self._channel.publish(publication.message)
        except BrokerUnavailable:
            self._channel = None
            self._wait_first([publication])
            return
        except TwistedCeleryError as error:
            publication.fail(error)
            return
        publication.sent = True
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = publication

    def _returned(self, correlation_id: str | None, exchange: str, routing_key: str, reason: str) -> None:
        # Messages are returned in the order in which they were sent, before they are confirmed.
        for publication in self._unconfirmed.values():
            message = publication.message
            if (
                publication.returned is None
                and message.mandatory
                and (message.task_id, message.exchange, message.routing_key)
                == (correlation_id, exchange, routing_key)
            ):
                publication.returned = reason
                return

    def _confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        tags = list(takewhile(tag.__ge__, self._unconfirmed)) if multiple else [tag]
        # All of them first: a callback may do anything, disconnecting included.
        confirmed = [self._unconfirmed.pop(each) for each in tags if each in self._unconfirmed]
        for publication in confirmed:
            if publication.returned is not None:
                publication.fail(
                    Unroutable(f"{publication}: no queue takes it (the broker says {publication.returned})")
                )
            elif not taken:
                publication.fail(PublishRejected(f"{publication}: the broker refused it (basic.nack)"))
            else:
                publication.succeed()
        self._pump()

    def _expired(self, publication: Publication) -> None:
        self._withdraw(publication)
        if publication.sent:
            publication.fail(publication.unconfirmed("the confirmation did not come in time"))
            return
        why = self._reason or "it is connected, but takes no messages"
        publication.fail(BrokerUnavailable(f"{publication} was not sent: {why}"))
