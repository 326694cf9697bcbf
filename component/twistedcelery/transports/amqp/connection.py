"""A connection to the broker that is made again whenever it is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Protocol

from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerUnavailable
from twistedcelery.transports.amqp.brokers import Broker
from twistedcelery.transports.amqp.link import AmqpLink, open_link

__all__ = ["Connection", "ConnectionUser", "State"]

_log = Logger()

#: Seconds that closing in good order may take before the connection is dropped.
CLOSE_TIMEOUT = 3.0


class State(Enum):
    """Where a connection stands."""

    IDLE = auto()  #: not asked for yet
    CONNECTING = auto()  #: TCP, TLS and the AMQP handshake
    PREPARING = auto()  #: its user opens channels and declares
    UP = auto()
    WAITING = auto()  #: for the next attempt
    CLOSING = auto()
    CLOSED = auto()


class Event(Enum):
    """What moves it."""

    START = auto()
    OPENED = auto()
    PREPARED = auto()
    LOST = auto()  #: an attempt failed, or the link ended
    RETRY = auto()
    STOP = auto()
    STOPPED = auto()


#: What does not stand here is ignored: it comes from a link that no longer counts.
TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.IDLE, Event.START): State.CONNECTING,
    (State.IDLE, Event.STOP): State.CLOSED,
    (State.CONNECTING, Event.OPENED): State.PREPARING,
    (State.CONNECTING, Event.LOST): State.WAITING,
    (State.CONNECTING, Event.STOP): State.CLOSED,
    (State.PREPARING, Event.PREPARED): State.UP,
    (State.PREPARING, Event.LOST): State.WAITING,
    (State.PREPARING, Event.STOP): State.CLOSING,
    (State.UP, Event.LOST): State.WAITING,
    (State.UP, Event.STOP): State.CLOSING,
    (State.WAITING, Event.RETRY): State.CONNECTING,
    (State.WAITING, Event.STOP): State.CLOSED,
    (State.CLOSING, Event.STOPPED): State.CLOSED,
}


class ConnectionUser(Protocol):
    """Who a connection is kept for."""

    def prepare(self, link: AmqpLink) -> defer.Deferred[None]:
        """Open channels and declare on a new link; the connection is up once this fires."""

    def connection_up(self) -> None:
        """The prepared link may be used."""

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """The link, or an attempt to make one, came to nothing. Another attempt follows."""


class BrokerList(Protocol):
    """As `twistedcelery.transports.amqp.brokers.Brokers`."""

    connect_timeout: float

    def current(self) -> Broker: ...

    def advance(self) -> None: ...


class Connection:
    """Keeps one link to one of several brokers.

    :param brokers: where to connect; after each failure the next one is tried
    :param user: is told when the link comes and goes
    :param reactor: for time
    :param backoff: seconds to wait after so many failures in a row
        (`twisted.application.internet.backoffPolicy`)
    :param opener: connects and shakes hands
    """

    def __init__(
        self,
        brokers: BrokerList,
        user: ConnectionUser,
        reactor: Clock,
        backoff: Callable[[int], float],
        opener: Callable[..., defer.Deferred[AmqpLink]] = open_link,
    ) -> None:
        self.state = State.IDLE
        self._brokers = brokers
        self._user = user
        self._reactor = reactor
        self._backoff = backoff
        self._opener = opener
        self._failures = 0
        self._address = ""
        self._link: AmqpLink | None = None
        self._attempt: defer.Deferred[None] | None = None
        self._timer: Timer | None = None
        self._closed_waiters: list[defer.Deferred[None]] = []

    def start(self) -> None:
        """Connect, and stay connected until `close`. Does nothing once started."""
        if self._move(Event.START):
            self._connect()

    def drop(self) -> None:
        """Give up the present link and make another one."""
        if self._link is not None:
            self._link.abort()

    def close(self) -> defer.Deferred[None]:
        """Stop, in good order where there is a link. Bounded in time; safe to call twice."""
        closed: defer.Deferred[None] = defer.Deferred()
        self._closed_waiters.append(closed)
        if self._move(Event.STOP):
            self._clear_timer()
            if self.state is State.CLOSING:
                self._timer = self._reactor.callLater(CLOSE_TIMEOUT, self.drop)
                assert self._link is not None
                self._link.close()
            if self._attempt is not None:
                self._attempt.cancel()
        self._tell_closed()
        return closed

    def _move(self, event: Event) -> bool:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            return False
        self.state = following
        return True

    def _connect(self) -> None:
        try:
            broker = self._brokers.current()
        except Exception as error:
            # Settings, or the function that makes a password: what is wrong may be put right later.
            reason = BrokerUnavailable(str(error) or type(error).__name__)
            reason.__cause__ = error
            self._lost(reason)
            return
        self._address = broker.address
        # One limit for the whole attempt: a broker that accepts and never answers is no broker.
        limit = self._brokers.connect_timeout
        attempt: defer.Deferred[None] = self._opener(
            broker.endpoint, broker.parameters, self._reactor
        ).addCallback(self._opened)
        self._attempt = attempt
        attempt.addTimeout(limit, self._reactor)  # type: ignore[arg-type]  # a zope interface
        attempt.addCallbacks(
            self._prepared, self._attempt_failed, callbackArgs=(attempt,), errbackArgs=(attempt, limit)
        )

    def _opened(self, link: AmqpLink) -> defer.Deferred[None]:
        if not self._move(Event.OPENED):
            # Of an attempt that was given up.
            link.abort()
            raise defer.CancelledError
        self._link = link
        link.on_lost(lambda reason: self._link_lost(link, reason))
        return self._user.prepare(link)

    def _prepared(self, _: None, attempt: defer.Deferred[None]) -> None:
        if attempt is not self._attempt:
            return
        self._attempt = None
        if self._move(Event.PREPARED):
            self._failures = 0
            _log.info("connected to {address}", address=self._address)
            self._user.connection_up()

    def _attempt_failed(self, failure: Failure, attempt: defer.Deferred[None], limit: float) -> None:
        if attempt is not self._attempt:
            return
        self._attempt = None
        link = self._link
        error = failure.value
        if not isinstance(error, BrokerUnavailable):
            text = f"no answer within {limit:g} s" if failure.check(defer.TimeoutError) else str(error)
            error = BrokerUnavailable(text)
            error.__cause__ = failure.value
        if self.state is not State.CLOSING:
            self._lost(error)
        if link is not None:
            link.abort()

    def _link_lost(self, link: AmqpLink, reason: BrokerUnavailable) -> None:
        if link is not self._link:
            # One that was given up before; its end is no news.
            return
        if self._move(Event.STOPPED):
            self._link = None
            self._clear_timer()
            self._tell_closed()
        else:
            self._lost(reason)

    def _lost(self, reason: BrokerUnavailable) -> None:
        if not self._move(Event.LOST):
            return
        self._link = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        delay = self._backoff(self._failures)
        self._failures += 1
        self._brokers.advance()
        described = type(reason)(f"{self._address}: {reason}")
        described.__cause__ = reason
        _log.warn("no connection: {reason}; trying again in {delay:.1f} s", reason=described, delay=delay)
        self._timer = self._reactor.callLater(delay, self._retry)
        self._user.connection_lost(described)

    def _retry(self) -> None:
        self._timer = None
        if self._move(Event.RETRY):
            self._connect()

    def _clear_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _tell_closed(self) -> None:
        if self.state is State.CLOSED:
            waiters, self._closed_waiters = self._closed_waiters, []
            for waiter in waiters:
                waiter.callback(None)
