"""Keeps channels subscribed, again after each lost connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.errors import BrokerUnavailable
from twistedcelery.transports.connection import Connection, Refused, State
from twistedcelery.transports.redis.link import SubscriberLink

__all__ = ["Subscriptions", "SubscriptionsOwner"]

_log = Logger()


class SubscriptionsOwner(Protocol):
    """Gets what comes over the subscriptions."""

    def message(self, channel: bytes, payload: bytes) -> None:
        """A message came."""

    def subscribed(self, channel: bytes) -> None:
        """No later message of a channel is missed. Called again after each lost connection."""

    def refused(self, channel: bytes, error: Refused) -> None:
        """Redis does not allow this subscription."""

    def up(self) -> None:
        """The connection is there."""

    def lost(self, reason: BrokerUnavailable) -> None:
        """The connection is not there; it is tried again."""


class Subscriptions:
    """Keeps a set of channels subscribed over one connection, whose user this is.

    :param owner: gets the messages
    """

    def __init__(self, owner: SubscriptionsOwner) -> None:
        self._owner = owner
        self._channels: dict[bytes, None] = {}
        self._link: SubscriberLink | None = None
        self._connection: Connection[SubscriberLink]

    def use(self, connection: Connection[SubscriberLink]) -> Subscriptions:
        """Subscribe over a connection."""
        self._connection = connection
        return self

    @property
    def connected(self) -> bool:
        """Whether the connection is there."""
        return self._connection.state is State.UP

    def add(self, channel: bytes) -> None:
        """Subscribe, now or when there is a connection."""
        self._channels[channel] = None
        self._connection.start()
        if self._link is not None:
            self._subscribe(self._link, channel)

    def discard(self, channel: bytes) -> None:
        """Unsubscribe."""
        self._channels.pop(channel, None)
        if self._link is not None:
            self._link.unsubscribe(channel).addErrback(
                lambda failure: _log.debug("a subscription was left: {error}", error=failure.value)
            )

    def catch_up(self, then: Callable[[], None]) -> None:
        """Call back once every message that was published before now has been delivered.

        It is not called when the connection is lost first.
        """
        if self._link is not None:
            self._link.ask(("PING",)).addCallbacks(lambda _: then(), lambda _failure: None)

    def close(self) -> Deferred[None]:
        """Close the connection."""
        return self._connection.close()

    # The connection's user

    def prepare(self, link: SubscriberLink) -> Deferred[None]:
        """Subscribe to everything on a new link."""
        self._link = link
        link.on_message(self._owner.message)
        return succeed(None)

    def connection_up(self) -> None:
        """Subscribe to everything on a new link."""
        assert self._link is not None
        for channel in tuple(self._channels):
            self._subscribe(self._link, channel)
        self._owner.up()

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Wait for the next link."""
        self._link = None
        self._owner.lost(reason)

    def _subscribe(self, link: SubscriberLink, channel: bytes) -> None:
        def subscribed(_: object) -> None:
            if link is self._link and channel in self._channels:
                self._owner.subscribed(channel)

        def failed(failure: Failure) -> None:
            # After a lost connection `connection_up` subscribes again.
            if isinstance(failure.value, Refused) and channel in self._channels:
                del self._channels[channel]
                self._owner.refused(channel, failure.value)

        link.subscribe(channel).addCallbacks(subscribed, failed)
