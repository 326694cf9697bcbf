"""Holds one live Redis connection. The only module that imports txredisapi.

txredisapi does the protocol. Its factories choose when to reconnect and where; here that is
`twistedcelery.transports.connection`'s work, so its protocols run on endpoints of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from socket import MSG_PEEK
from typing import Any, TypeVar

import txredisapi
from twisted.internet import defer, error
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable
from twistedcelery.transports.connection import Refused, RefusedForNow, caused

__all__ = ["Command", "RedisLink", "RedisParameters", "SubscriberLink", "open_link", "open_subscriber"]

#: A command's name and its arguments.
Command = tuple[Any, ...]

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

    def __init__(self, protocol: _Ending, reactor: Clock, parameters: RedisParameters) -> None:
        self._protocol: Any = protocol
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
        socket = getattr(self._protocol.transport, "socket", None)
        if socket is None:
            return not self._protocol.transport.disconnecting
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
        try:
            asked: defer.Deferred[Any] = self._protocol.execute_command(*command)
        except txredisapi.RedisError as problem:
            return defer.fail(_translated(problem, self._protocol))
        return asked.addErrback(lambda failure: Failure(_translated(failure.value, self._protocol)))

    def send(self, commands: Sequence[Command]) -> defer.Deferred[list[Any]]:
        """Send several commands at once.

        :return: fires with the replies once all are answered well; fails as `ask` for the first
            that is not, with ``partly`` set where others were
        """
        # Answers come in order, so the last one completes the list.
        done: defer.Deferred[list[Any]] = defer.Deferred()
        problems: list[BaseException | None] = []
        replies: list[Any] = []

        def answered(reply: Any) -> None:
            replies.append(reply)
            if isinstance(reply, Failure):
                problems.append(reply.value)
            elif isinstance(reply, list):
                # Of EXEC: one reply for each command of the transaction.
                errors = [one for one in reply if isinstance(one, txredisapi.RedisError)]
                problems.extend(_translated(one, self._protocol) for one in errors)
            if len(replies) < len(commands):
                return
            if problems:
                first = problems[0]
                if isinstance(first, Refused):
                    first.partly = any(map(_is_done, commands, replies))
                done.errback(Failure(first))
            else:
                done.callback(replies)

        for command in commands:
            self.ask(command).addBoth(answered)
        if not commands:
            done.callback([])
        return done

    def close(self) -> None:
        """Begin to close: what was written before goes out first."""
        self._protocol.transport.loseConnection()

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
        self._protocol.deliver = callback

    def subscribe_pattern(self, pattern: str) -> defer.Deferred[Any]:
        """Subscribe to all channels that match; fires, or fails, as `subscribe`."""
        return self.ask(("PSUBSCRIBE", pattern))

    def subscribe(self, channel: bytes) -> defer.Deferred[Any]:
        """Subscribe to a channel; fires once no later message is missed, or fails as `ask`."""
        return self.ask(("SUBSCRIBE", channel))

    def unsubscribe(self, channel: bytes) -> defer.Deferred[Any]:
        """End a subscription; fires, or fails as `ask`."""
        return self.ask(("UNSUBSCRIBE", channel))


L = TypeVar("L", bound=RedisLink)


def open_link(
    endpoint: IStreamClientEndpoint, parameters: RedisParameters, reactor: Clock
) -> defer.Deferred[RedisLink]:
    """Connect, log in and choose the database.

    :return: fires with the link once the server is ready. It fails with `BrokerAccessRefused` or
        another `BrokerUnavailable`. Cancelling it drops the connection; there is no other limit
        on the time it takes.
    """
    return _open(endpoint, parameters, reactor, _CommandProtocol, RedisLink)


def open_subscriber(
    endpoint: IStreamClientEndpoint, parameters: RedisParameters, reactor: Clock
) -> defer.Deferred[SubscriberLink]:
    """As `open_link`, for subscriptions."""
    return _open(endpoint, parameters, reactor, _SubscriberProtocol, SubscriberLink)


def _open(
    endpoint: IStreamClientEndpoint,
    parameters: RedisParameters,
    reactor: Clock,
    protocol_class: type[_Ending],
    link_class: type[L],
) -> defer.Deferred[L]:
    protocols: list[_Ending] = []

    @defer.inlineCallbacks
    def opening() -> Any:
        # mypy cannot see that zope interfaces leave out self.
        connect: Any = endpoint.connect
        protocol = yield connect(_ProtocolFactory(protocol_class, reactor))
        protocols.append(protocol)
        for command in _handshake(parameters):
            yield protocol.execute_command(*command)
        # While a server loads its data it selects databases, but does nothing else.
        yield protocol.execute_command("PING").addErrback(_can_answer)
        if parameters.master:
            yield protocol.execute_command("ROLE").addCallbacks(_check_role, _role_unknown)
        return link_class(protocol, reactor, parameters)

    def failed(failure: Failure) -> Failure:
        protocol = protocols[0] if protocols else None
        if protocol is not None:
            protocol.abort()
        if failure.check(defer.CancelledError, BrokerUnavailable):
            return failure
        return Failure(_handshake_error(failure.value, protocol))

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


def _is_done(command: Command, reply: Any) -> bool:
    """Whether Redis did what a command says. A transaction with an error in it is not carried out."""
    return not isinstance(reply, Failure) and command[0] != "MULTI" and reply not in ("QUEUED", b"QUEUED")


def _can_answer(failure: Failure) -> None:
    """A server that cannot write to its disk answers like this, though it can be read from."""
    failure.trap(txredisapi.ResponseError)
    if not str(failure.value).startswith("MISCONF"):
        failure.raiseException()


def _check_role(reply: Any) -> None:
    # Sentinels may not know yet, or not any more.
    if reply[0] != b"master":
        raise BrokerUnavailable("it is not the master")


def _role_unknown(failure: Failure) -> None:
    """A user may lack the right to ask; a replica refuses the first write."""
    failure.trap(txredisapi.ResponseError)


class _Ending(Protocol):
    """A protocol that calls back when it ends. Mixed into txredisapi's."""

    def __init__(self, reactor: Clock) -> None:
        # Payloads as they are: neither text nor numbers.
        super().__init__(charset=None, convertNumbers=False)  # type: ignore[call-arg]  # of the class mixed into
        #: txredisapi would take it from the global reactor.
        self.callLater = reactor.callLater
        self.reason: BaseException | None = None
        self._lost_callbacks: list[Callable[[BrokerUnavailable], None]] = []
        self._lost = False

    def when_lost(self, callback: Callable[[BrokerUnavailable], None]) -> None:
        self._lost_callbacks.append(callback)
        if self._lost:
            self._call_back()

    def give_up(self, why: str) -> None:
        self.reason = BrokerUnavailable(why)
        self.abort()

    def abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # it has no default here
        if self.reason is None:
            self.reason = reason.value
        super().connectionLost(reason)
        self._lost = True
        self._call_back()

    def _call_back(self) -> None:
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback(_connection_error(self.reason))


class _CommandProtocol(_Ending, txredisapi.RedisProtocol):
    """For commands."""


class _SubscriberProtocol(_Ending, txredisapi.SubscriberProtocol):
    """For subscriptions."""

    deliver: Callable[[bytes, bytes], None] | None = None

    def messageReceived(self, pattern: object, channel: bytes, message: bytes) -> None:
        if self.deliver is not None:
            self.deliver(channel, message)


class _ProtocolFactory(Factory):
    """Makes one protocol."""

    noisy = False

    def __init__(self, protocol_class: type[_Ending], reactor: Clock) -> None:
        self._protocol_class = protocol_class
        self._reactor = reactor

    def buildProtocol(self, addr: IAddress | None) -> _Ending:
        return self._protocol_class(self._reactor)


def _translated(problem: BaseException | None, protocol: _Ending) -> BrokerUnavailable | Refused:
    if isinstance(problem, txredisapi.ResponseError):
        words = str(problem)
        return caused((RefusedForNow if _passes(words) else Refused)(words), problem)
    return _connection_error(protocol.reason or problem)


def _handshake_error(problem: BaseException | None, protocol: _Ending | None) -> BrokerUnavailable:
    if isinstance(problem, txredisapi.ResponseError):
        words = str(problem)
        return caused((BrokerUnavailable if _passes(words) else BrokerAccessRefused)(words), problem)
    reason = None if protocol is None else protocol.reason
    return _connection_error(reason or problem)


def _passes(words: str) -> bool:
    return words.startswith(_MAX_CLIENTS) or words.partition(" ")[0] in _PASSING


def _connection_error(reason: BaseException | None) -> BrokerUnavailable:
    if isinstance(reason, BrokerUnavailable):
        return reason
    if isinstance(reason, error.ConnectionDone):
        return caused(BrokerUnavailable("the server closed the connection"), reason)
    return caused(BrokerUnavailable(str(reason) or type(reason).__name__), reason)
