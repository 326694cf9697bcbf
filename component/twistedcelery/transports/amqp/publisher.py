"""Publishes messages over AMQP, each confirmed by the broker."""

from __future__ import annotations

from itertools import takewhile

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twistedcelery.errors import (
    BrokerUnavailable,
    PublishRejected,
    TwistedCeleryError,
    Unroutable,
)
from twistedcelery.transports.amqp.declarer import Declarer
from twistedcelery.transports.amqp.link import AmqpChannel, AmqpLink
from twistedcelery.transports.connection import caused
from twistedcelery.transports.publishing import Publication, QueuedPublisher

__all__ = ["AmqpPublisher"]


class AmqpPublisher(QueuedPublisher[AmqpLink, int]):
    """A `twistedcelery.transports.publishing.QueuedPublisher` with RabbitMQ's publisher confirms.

    An unconfirmed message is known by its delivery tag.
    """

    _last_tag = 0
    _channel: AmqpChannel | None = None
    _declarer: Declarer | None = None

    # What the queue asks for

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
        link.on_blocked(self._alarm_set, self.link_unblocked)
        return link.open_channel().addCallback(opened)

    def _alarm_set(self, reason: str) -> None:
        self.link_blocked(
            f"the broker takes no messages, since it is out of memory or disk space (it says {reason!r})"
        )

    def _has_link(self) -> bool:
        return self._channel is not None

    def _let_go(self) -> None:
        self._channel = self._declarer = None

    def _dispatch(self, publication: Publication) -> None:
        declarer = self._declarer
        assert declarer is not None
        if not declarer.missing(publication.message):
            self._send(publication)
            return
        self._preparing[publication] = None
        declarer.declare_for(publication.message).addBoth(self._declared, publication)

    def _declared(self, outcome: Failure | None, publication: Publication) -> None:
        if publication not in self._preparing:
            # It ended while the declaration was on its way.
            return
        if isinstance(outcome, Failure) and outcome.check(BrokerUnavailable):
            # `connection_lost` follows; the message waits for the next link.
            return
        del self._preparing[publication]
        if not isinstance(outcome, Failure):
            self._send(publication)
        else:
            error = PublishRejected(f"{publication} cannot be sent: {outcome.value}")
            publication.fail(caused(error, outcome.value))
            self._pump()

    def _send(self, publication: Publication) -> None:
        if self._channel is None:
            # `connection_lost` follows; the message waits for the next link.
            self._waiting.prepend([publication])
            return
        try:
            self._channel.publish(publication.message)
        except BrokerUnavailable:
            self._channel = None
            self._waiting.prepend([publication])
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
