"""Publishes messages over AMQP, each confirmed by the broker."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import (
    BrokerUnavailable,
    PublishRejected,
    TwistedCeleryError,
    Unroutable,
)
from twistedcelery.transports.amqp.closing import max_size, suspects
from twistedcelery.transports.amqp.declarer import Declarer
from twistedcelery.transports.amqp.link import AmqpChannel, AmqpLink
from twistedcelery.transports.connection import Refused, caused
from twistedcelery.transports.publishing import Publication, QueuedPublisher

__all__ = ["AmqpPublisher"]


class AmqpPublisher(QueuedPublisher[AmqpLink, int]):
    """A `twistedcelery.transports.publishing.QueuedPublisher` with RabbitMQ's publisher confirms.

    An unconfirmed message is known by its delivery tag. RabbitMQ closes the channel for a message that it
    refuses; that message fails with `PublishRejected`, and the others go on over the next channel.
    """

    _last_tag = 0
    _link: AmqpLink | None = None
    _channel: AmqpChannel | None = None
    _declarer: Declarer | None = None
    #: The longest body that the broker takes, in bytes, once it has refused a longer one.
    _max_size: int | None = None
    #: When the broker has last confirmed something, or the first of what it has not confirmed was sent.
    _confirmed_at = 0.0
    _confirm_timer: Timer | None = None

    def __init__(self, reactor: Clock, publish_timeout: float, **limits: Any) -> None:
        super().__init__(reactor, publish_timeout, **limits)
        # Messages to send one at a time, since the broker closed the channel for one of them.
        self._suspects: deque[Publication] = deque()

    # What the queue asks for

    def prepare(self, link: AmqpLink) -> Deferred[None]:
        """Open the publishing channel of a new link."""
        self._link = link
        self._declarer = Declarer(link)
        self._max_size = None
        link.on_blocked(self._alarm_set, self._alarm_cleared)
        # `_check_confirmations` has the time limit then, and the broker reads nothing while it blocks.
        link.allow_silence(lambda: bool(self._unconfirmed) or self._blocked is not None)
        return self._open_channel(link)

    def _open_channel(self, link: AmqpLink) -> Deferred[None]:
        def opened(channel: AmqpChannel) -> Deferred[None]:
            channel.on_closed(lambda reason: self._channel_closed(link, channel, reason))
            ready = channel.confirm_publishing(self._confirmed, self._returned)
            return ready.addCallback(lambda _: begin(channel))

        def begin(channel: AmqpChannel) -> None:
            self._channel = channel
            self._last_tag = 0

        return link.open_channel().addCallback(opened)

    def _alarm_set(self, reason: str) -> None:
        self.link_blocked(
            f"the broker takes no messages, since it is out of memory or disk space (it says {reason!r})"
        )

    def _alarm_cleared(self) -> None:
        self._confirmed_at = self._reactor.seconds()
        self.link_unblocked()

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Publisher.close`."""
        self._stop_timer()
        return super().close()

    def _has_link(self) -> bool:
        return self._channel is not None

    def _let_go(self) -> None:
        self._link = self._channel = self._declarer = None
        self._stop_timer()

    def _has_room(self) -> bool:
        while self._suspects and self._suspects[0].settled:
            self._suspects.popleft()
        if self._suspects and (self._unconfirmed or self._preparing):
            return False
        return super()._has_room()

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
            # The message waits for the next channel or, if `connection_lost` follows, for the next link.
            self._waiting.prepend([publication])
            return
        length = len(publication.message.body)
        if self._max_size is not None and length > self._max_size:
            # RabbitMQ would close the channel again.
            publication.fail(
                PublishRejected(f"{publication}: it has {length} bytes; the broker takes {self._max_size}")
            )
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
        if not self._unconfirmed:
            self._confirmed_at = self._reactor.seconds()
        self._unconfirmed[self._last_tag] = publication
        if self._confirm_timer is None:
            self._confirm_timer = self._reactor.callLater(self._publish_timeout, self._check_confirmations)

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
        self._confirmed_at = self._reactor.seconds()
        tags = list(takewhile(tag.__ge__, self._unconfirmed)) if multiple else [tag]
        # All of them first: a callback may do anything, disconnecting included.
        confirmed = [self._unconfirmed.pop(each) for each in tags if each in self._unconfirmed]
        for publication in confirmed:
            if taken or publication.returned is not None:
                self._taken(publication)
            else:
                publication.fail(PublishRejected(f"{publication}: the broker refused it (basic.nack)"))
        self._pump()

    def _check_confirmations(self) -> None:
        """Give up a link on which confirmations have stopped to come."""
        self._confirm_timer = None
        if not self._unconfirmed or self._link is None:
            return
        now = self._reactor.seconds()
        if self._blocked is not None:
            self._confirmed_at = now
        oldest = next(iter(self._unconfirmed.values())).message
        # A large message over a slow network may be allowed more.
        allowed = max(self._publish_timeout, oldest.confirm_timeout or 0.0)
        left = self._confirmed_at + allowed - now
        if left > 0:
            self._confirm_timer = self._reactor.callLater(left, self._check_confirmations)
        else:
            self._channel = None
            self._link.give_up(f"the broker has confirmed nothing for {allowed:g} s")

    def _stop_timer(self) -> None:
        if self._confirm_timer is not None:
            self._confirm_timer.cancel()
            self._confirm_timer = None

    # A channel that the broker closes

    def _channel_closed(
        self, link: AmqpLink, channel: AmqpChannel, reason: Refused | BrokerUnavailable
    ) -> None:
        ready = channel is self._channel
        if ready:
            self._channel = None
        if not (ready and isinstance(reason, Refused)):
            # Without a channel the link is of no use here.
            link.drop()
            return
        assert self._declarer is not None
        # What was declared may be gone.
        self._declarer.forget()
        words = str(reason)
        self._max_size = max_size(words) or self._max_size
        sent = list(self._unconfirmed.values())
        self._unconfirmed.clear()
        places = suspects(words, [publication.message for publication in sent])
        before, doubtful, after = sent[: places.start], sent[places.start : places.stop], sent[places.stop :]
        refused = doubtful if len(doubtful) == 1 else []
        again = [each for each in doubtful if each.message.resend and not (each.settled or refused)]
        after = [each for each in after if not each.settled]
        for publication in after:
            # One that may be sent again may have been sent over an earlier link, too.
            publication.sent = publication.message.resend
        self._suspects.extend(again)
        self._waiting.prepend([*again, *after])
        self._open_channel(link).addCallbacks(lambda _: self._pump(), lambda _failure: link.drop())
        # These last: a callback may do anything, disconnecting included.
        for publication in before:
            self._taken(publication)
        for publication in doubtful:
            if refused:
                publication.fail(caused(PublishRejected(f"{publication}: {words}"), reason))
            elif not publication.message.resend:
                publication.fail(
                    publication.unconfirmed(f"{words}. It was for this message or for another one")
                )

    def _taken(self, publication: Publication) -> None:
        """The broker has routed a message."""
        if publication.returned is None:
            publication.succeed()
        else:
            publication.fail(
                Unroutable(f"{publication}: no queue takes it (the broker says {publication.returned})")
            )
