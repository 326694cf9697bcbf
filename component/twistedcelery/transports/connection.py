"""Keeps a connection to one of several servers, whatever the protocol: a lost one is made again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, Protocol, TypeVar

from twisted.application.internet import backoffPolicy
from twisted.internet import defer
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters
from twistedcelery._logging import RepeatedWarnings
from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerUnavailable

__all__ = [
    "Connection",
    "ConnectionUser",
    "Link",
    "Refused",
    "RefusedForNow",
    "Server",
    "State",
    "backoff",
    "caused",
    "is_limit",
]

_log = Logger()

#: Seconds between attempts: from 0.1, growing, to 10, with a jitter so that many clients do not
#: come back to a restarted server all at once.
backoff = backoffPolicy(initialDelay=0.1, maxDelay=10.0, factor=1.5)

#: Seconds that closing in good order may take before the connection is dropped.
CLOSE_TIMEOUT = 3.0


class Refused(Exception):
    """A server answered, and did not do what it was asked. The text is the server's.

    It stays inside a transport. The part that asked translates it, for example into
    `twistedcelery.errors.PublishRejected`.

    :ivar partly: whether the server did other things that it was asked together with this
    """

    partly = False


class RefusedForNow(Refused):
    """A server cannot do what it was asked at the moment, and may be able to soon."""


_LIMIT = re.compile(r"limit \(\d+\) is reached")


def is_limit(words: str) -> bool:
    """Whether RabbitMQ refuses a connection because of a limit, which passes: of a virtual host, a user or a
    node.
    """
    return _LIMIT.search(words) is not None


E = TypeVar("E", bound=BaseException)


def caused(error: E, cause: BaseException | None) -> E:
    """An error with its cause, where it is not raised: as ``raise error from cause``."""
    error.__cause__ = cause
    return error


class State(Enum):
    """Where a connection stands."""

    IDLE = auto()  #: not asked for yet
    CONNECTING = auto()  #: TCP, TLS and the handshake
    PREPARING = auto()  #: its user makes the link ready
    UP = auto()
    WAITING = auto()  #: for the next attempt
    CLOSING = auto()
    CLOSED = auto()


class Event(Enum):
    """Moves a connection from one state to another."""

    START = auto()
    OPENED = auto()
    PREPARED = auto()
    LOST = auto()  #: an attempt failed, or the link ended
    RETRY = auto()
    STOP = auto()
    STOPPED = auto()


#: Other events are ignored: they come from a link that was given up.
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


class Link(Protocol):
    """An open connection of some protocol; it ends once, and is not used again."""

    def on_lost(self, callback: Callable[[BrokerUnavailable], None], /) -> None:
        """Call back once, when the connection has ended on either side."""

    def close(self) -> None:
        """Begin to close in good order."""

    def abort(self) -> None:
        """End the connection now."""


L = TypeVar("L", bound=Link)
L_contra = TypeVar("L_contra", bound=Link, contravariant=True)


class ConnectionUser(Protocol[L_contra]):
    """The part of a transport that uses a connection."""

    def prepare(self, link: L_contra, /) -> defer.Deferred[None]:
        """Make a new link ready for use; the connection is up once this fires."""

    def connection_up(self) -> None:
        """The prepared link may be used."""

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """The link was lost, or an attempt to make one failed. Another attempt follows."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server to try.

    :ivar endpoint: where to connect
    :ivar parameters: what the opener needs for the handshake
    :ivar address: for people to read; without the password
    """

    endpoint: IStreamClientEndpoint
    parameters: Any
    address: str


class ServerList(Protocol):
    """The servers that one setting names, in the order in which to try them.

    :ivar connect_timeout: seconds for one attempt
    """

    connect_timeout: float

    def current(self) -> Server: ...

    def advance(self) -> int:
        """Turn to the next one.

        :return: how many there are to try before it is time to wait
        """


class Connection(Generic[L]):
    """Keeps one link to one of several servers.

    :param servers: where to connect; after each failure the next one is tried, at once until all were
    :param user: prepares each link, and is called when it comes and goes
    :param reactor: for time
    :param backoff: seconds to wait after all have failed, so many times in a row
        (`twisted.application.internet.backoffPolicy`)
    :param opener: connects and shakes hands, given an endpoint, its parameters and the reactor.
        Cancelling it drops the connection.
    :param purpose: names the connection in the log, as in "connection for publishing"
    """

    def __init__(
        self,
        servers: ServerList,
        user: ConnectionUser[L],
        reactor: Clock,
        backoff: Callable[[int], float],
        opener: Callable[[Any, Any, Any], defer.Deferred[L]],
        *,
        purpose: str,
    ) -> None:
        self.state = State.IDLE
        self._purpose = purpose
        self._warnings = RepeatedWarnings(_log, reactor.seconds)
        self._servers = servers
        self._user = user
        self._reactor = reactor
        self._backoff = backoff
        self._opener = opener
        self._failures = 0
        self._address = ""
        self._link: L | None = None
        self._attempt: defer.Deferred[None] | None = None
        self._timer: Timer | None = None
        self._closed_waiters: Waiters[None] = Waiters()

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
        closed = self._closed_waiters.wait()
        if self._move(Event.STOP):
            self._clear_timer()
            if self.state is State.CLOSING:
                self._timer = self._reactor.callLater(CLOSE_TIMEOUT, self.drop)
                assert self._link is not None
                self._link.close()
            if self._attempt is not None:
                self._attempt.cancel()
        self._fire_closed()
        return closed

    def _move(self, event: Event) -> bool:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            return False
        self.state = following
        return True

    def _connect(self) -> None:
        try:
            server = self._servers.current()
        except Exception as error:
            # Settings, or the function that makes a password: both may work later.
            self._lost(caused(BrokerUnavailable(str(error) or type(error).__name__), error))
            return
        self._address = server.address
        # One limit for the whole attempt: a server may accept a connection and never answer.
        limit = self._servers.connect_timeout
        attempt: defer.Deferred[None] = self._opener(
            server.endpoint, server.parameters, self._reactor
        ).addCallback(self._opened)
        self._attempt = attempt
        attempt.addTimeout(limit, self._reactor)  # type: ignore[arg-type]  # a zope interface
        attempt.addCallbacks(
            self._prepared, self._attempt_failed, callbackArgs=(attempt,), errbackArgs=(attempt, limit)
        )

    def _opened(self, link: L) -> defer.Deferred[None]:
        if not self._move(Event.OPENED):
            # The attempt was given up.
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
            self._warnings.reset()
            _log.info("connected for {purpose} to {address}", purpose=self._purpose, address=self._address)
            self._user.connection_up()

    def _attempt_failed(self, failure: Failure, attempt: defer.Deferred[None], limit: float) -> None:
        if attempt is not self._attempt:
            return
        self._attempt = None
        link = self._link
        error = failure.value
        if not isinstance(error, BrokerUnavailable):
            text = f"no answer within {limit:g} s" if failure.check(defer.TimeoutError) else str(error)
            error = caused(BrokerUnavailable(text), failure.value)
        if self.state is not State.CLOSING:
            self._lost(error)
        if link is not None:
            link.abort()

    def _link_lost(self, link: L, reason: BrokerUnavailable) -> None:
        if link is not self._link:
            # It was given up before.
            return
        if self._move(Event.STOPPED):
            self._link = None
            self._clear_timer()
            self._fire_closed()
        else:
            self._lost(reason)

    def _lost(self, reason: BrokerUnavailable) -> None:
        if not self._move(Event.LOST):
            return
        self._link = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        self._failures += 1
        rounds, tried = divmod(self._failures, self._servers.advance())
        delay = 0.0 if tried else self._backoff(rounds - 1)
        described = caused(type(reason)(f"{self._address}: {reason}"), reason)
        text = str(described).rstrip(".")
        self._warnings.warn(f"no connection for {self._purpose}: {text}. The client keeps trying.")
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

    def _fire_closed(self) -> None:
        if self.state is State.CLOSED:
            self._closed_waiters.fire(None)
