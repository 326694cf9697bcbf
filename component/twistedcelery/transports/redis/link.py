"""Holds one live Redis connection, from the handshake to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from socket import MSG_PEEK
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable
from twistedcelery.transports.connection import Refused, RefusedForNow, caused
from twistedcelery.transports.redis.protocol import Command, RedisProtocol, ReplyError, connection_error

__all__ = ["Command", "RedisLink", "RedisParameters", "SubscriberLink", "open_link", "open_subscriber"]

#: Redis' codes for what passes by itself, or with a failover.
_PASSING = frozenset(
    {
        *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF"),
        *("NOREPLICAS", "READONLY", "TRYAGAIN", "UNBLOCKED"),
    }
)
#: The other words for one.
_MAX_CLIENTS = "ERR max number of clients"


@dataclass(frozen=True, slots=True)
class RedisParameters:
    """The parameters of the handshake, and of the checks that follow.

    :ivar username: ``None`` for Redis' default user
    :ivar password: ``None`` for a server that asks for none
    :ivar db: ``None`` for a server that has none
    :ivar name: shown in Redis' list of clients
    :ivar check_interval: seconds; a server that leaves a PING without an answer for so long is given up
    :ivar master: whether a replica is of no use
    """

    username: str | None
    password: str | None = field(repr=False)
    db: int | None
    name: str | None
    check_interval: float
    master: bool = False


class RedisLink:
    """An open connection for commands; it ends once, and is not used again."""

    def __init__(self, protocol: RedisProtocol, reactor: Clock, parameters: RedisParameters) -> None:
        self._protocol = protocol
        self._reactor = reactor
        self._check_interval = parameters.check_interval
        self._answered = True
        self._check: Timer | None = reactor.callLater(self._check_interval, self._ping)
        protocol.when_lost(self._stop_checking)

    def on_lost(self, callback: Callable[[BrokerUnavailable], None], /) -> None:
        """Call back once, when the connection has ended on either side."""
        self._protocol.when_lost(callback)

    @property
    def is_alive(self) -> bool:
        """Whether the connection is open, as far as the operating system knows.

        The reactor learns of a closed one a turn later, which is too late for a message.
        """
        transport: Any = self._protocol.transport
        socket = getattr(transport, "socket", None)
        if socket is None:
            return not transport.disconnecting
        try:
            return bool(socket.recv(1, MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def ask(self, command: Command) -> defer.Deferred[Any]:
        """Send a command.

        :return: fires with the reply, text as bytes. Fails with `Refused` for an error reply, with
            `RefusedForNow` for one that may pass, or with `BrokerUnavailable` when the connection ends first.
        """
        return self._send((command,)).addCallback(itemgetter(0))

    def send(self, commands: Sequence[Command]) -> defer.Deferred[list[Any]]:
        """Send several commands at once.

        :return: fires with the replies once all are answered well; fails as `ask` for the first
            that is not, with ``partly`` set where others were
        """
        return self._send(commands) if commands else defer.succeed([])

    def _send(self, commands: Sequence[Command], replies: int = 0) -> defer.Deferred[list[Any]]:
        return self._protocol.ask(commands, replies).addCallback(_checked, commands)

    def close(self) -> None:
        """Begin to close: what was written before goes out first."""
        transport: Any = self._protocol.transport
        transport.loseConnection()

    def abort(self) -> None:
        """End the connection now."""
        self._protocol.abort()

    def _ping(self) -> None:
        self._check = None
        if not self._answered:
            self._protocol.give_up(f"no answer to a PING for {self._check_interval:g} s")
            return
        self._answered = False
        self._check = self._reactor.callLater(self._check_interval, self._ping)
        # An error is an answer, too. If the connection has ended, `on_lost` calls back.
        self.ask(("PING",)).addBoth(self._pong)

    def _pong(self, _outcome: object) -> None:
        self._answered = True

    def _stop_checking(self, _reason: BrokerUnavailable) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None


class SubscriberLink(RedisLink):
    """An open connection for subscriptions. Redis takes few other commands on it."""

    def on_message(self, callback: Callable[[bytes, bytes], None]) -> None:
        """Call back with the channel and the payload of each message."""
        self._protocol.on_message = callback

    def subscribe_pattern(self, pattern: str) -> defer.Deferred[Any]:
        """Subscribe to all channels that match; fires, or fails, as `subscribe`."""
        return self.ask(("PSUBSCRIBE", pattern))

    def subscribe(self, *channels: bytes) -> defer.Deferred[Any]:
        """Subscribe to channels; fires once no later message is missed. It fails as `ask`, for all of them
        where the user may not subscribe to one.
        """
        return self._for_each("SUBSCRIBE", channels)

    def unsubscribe(self, *channels: bytes) -> defer.Deferred[Any]:
        """End subscriptions; fires, or fails as `ask`."""
        return self._for_each("UNSUBSCRIBE", channels)

    def rest(self, seconds: float) -> None:
        """Read nothing more for a moment. Does nothing while it rests already."""
        self._protocol.rest(seconds)

    def _for_each(self, name: str, channels: Sequence[bytes]) -> defer.Deferred[Any]:
        return self._send([(name, *channels)], len(channels))


L = TypeVar("L", bound=RedisLink)


def open_link(
    endpoint: IStreamClientEndpoint, parameters: RedisParameters, reactor: Clock
) -> defer.Deferred[RedisLink]:
    """Connect, log in and choose the database.

    :return: fires with the link once the server is ready. It fails with `BrokerAccessRefused` or
        another `BrokerUnavailable`. Cancelling it drops the connection; there is no other limit
        on the time it takes.
    """
    return _open(endpoint, parameters, reactor, RedisLink)


def open_subscriber(
    endpoint: IStreamClientEndpoint, parameters: RedisParameters, reactor: Clock
) -> defer.Deferred[SubscriberLink]:
    """As `open_link`, for subscriptions."""
    return _open(endpoint, parameters, reactor, SubscriberLink)


def _open(
    endpoint: IStreamClientEndpoint,
    parameters: RedisParameters,
    reactor: Clock,
    link_class: type[L],
) -> defer.Deferred[L]:
    protocols: list[RedisProtocol] = []

    @defer.inlineCallbacks
    def opening() -> Any:
        # mypy cannot see that zope interfaces leave out self.
        connect: Any = endpoint.connect
        protocol = yield connect(_ProtocolFactory(reactor))
        protocols.append(protocol)
        for command in _handshake(parameters):
            (reply,) = yield protocol.ask([command])
            if type(reply) is ReplyError:
                raise _handshake_error(reply)
        # While a server loads its data it selects databases, but does nothing else. One that cannot write to
        # its disk can be read from.
        (reply,) = yield protocol.ask([("PING",)])
        if type(reply) is ReplyError and not str(reply).startswith("MISCONF"):
            raise _handshake_error(reply)
        if parameters.master:
            (role,) = yield protocol.ask([("ROLE",)])
            _check_role(role)
        return link_class(protocol, reactor, parameters)

    def failed(failure: Failure) -> Failure:
        protocol = protocols[0] if protocols else None
        if protocol is not None:
            protocol.abort()
        if failure.check(defer.CancelledError, BrokerUnavailable):
            return failure
        return Failure(connection_error(failure.value))

    return opening().addErrback(failed)


def _handshake(parameters: RedisParameters) -> list[Command]:
    commands: list[Command] = []
    if parameters.password is not None:
        user = () if parameters.username is None else (parameters.username,)
        commands.append(("AUTH", *user, parameters.password))
    if parameters.name:
        commands.append(("CLIENT", "SETNAME", parameters.name))
    if parameters.db is not None:
        commands.append(("SELECT", parameters.db))
    return commands


def _checked(replies: list[Any], commands: Sequence[Command]) -> list[Any]:
    """Raise the first error among replies."""
    for reply in replies:
        # Of EXEC: one reply for each command of the transaction.
        for one in reply if type(reply) is list else (reply,):
            if type(one) is ReplyError:
                words = str(one)
                refused = (RefusedForNow if _passes(words) else Refused)(words)
                refused.partly = any(map(_is_done, commands, replies))
                raise caused(refused, one)
    return replies


def _is_done(command: Command, reply: Any) -> bool:
    """Whether Redis did what a command says. A transaction with an error in it is not carried out."""
    return type(reply) is not ReplyError and command[0] != "MULTI" and reply != b"QUEUED"


def _check_role(reply: Any) -> None:
    # A user may lack the right to ask; a replica refuses the first write. Sentinels may not know yet, or not
    # any more.
    if type(reply) is not ReplyError and reply[0] != b"master":
        raise BrokerUnavailable("it is not the master")


class _ProtocolFactory(Factory):
    """Makes one protocol."""

    noisy = False

    def __init__(self, reactor: Clock) -> None:
        self._reactor = reactor

    def buildProtocol(self, addr: IAddress | None) -> RedisProtocol:
        return RedisProtocol(self._reactor)


def _handshake_error(reply: Exception) -> BrokerUnavailable:
    words = str(reply)
    return caused((BrokerUnavailable if _passes(words) else BrokerAccessRefused)(words), reply)


def _passes(words: str) -> bool:
    return words.startswith(_MAX_CLIENTS) or words.partition(" ")[0] in _PASSING
