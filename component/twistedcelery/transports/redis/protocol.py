"""Redis' protocol, RESP 2, on a Twisted transport. hiredis, in C, reads and writes it.

https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from twistedcelery._deferreds import settle
from twistedcelery._types import Clock
from twistedcelery.errors import BrokerUnavailable, EncodeError
from twistedcelery.transports.connection import caused
from twistedcelery.transports.resting import Resting

__all__ = ["Command", "RedisProtocol", "ReplyError"]

#: A command's name and its arguments: text, bytes and numbers.
Command = tuple[Any, ...]

#: An error that Redis replies with.
ReplyError = hiredis.ReplyError

#: What the reader gives while a reply is not complete. ``None`` is a reply.
_INCOMPLETE = object()

#: What begins a message of a subscription, and where its channel stands.
_MESSAGES = {b"message": 1, b"pmessage": 2}


class RedisProtocol(Protocol):
    """A connection that sends commands and matches the replies, which come in order.

    :param reactor: for time
    :ivar on_message: called with the channel and the payload of each message of a subscription;
        ``None`` where nothing is subscribed
    """

    def __init__(self, reactor: Clock) -> None:
        self.on_message: Callable[[bytes, bytes], None] | None = None
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._unanswered: deque[_Asked] = deque()
        self._reason: BaseException | None = None
        self._lost = False
        self._lost_callbacks: list[Callable[[BrokerUnavailable], None]] = []
        self._resting = Resting(reactor)

    def ask(self, commands: Sequence[Command], replies: int = 0) -> Deferred[list[Any]]:
        """Send commands at once.

        :param replies: how many come for a single command, where it is more than one
        :return: fires with the replies once all are there: text as bytes, errors as `ReplyError`. It fails
            with `BrokerUnavailable` when the connection ends first, and with `EncodeError` for what cannot
            be sent.
        """
        if self._lost:
            return fail(self.error())
        try:
            data = b"".join(map(hiredis.pack_command, commands))
        except (TypeError, ValueError) as problem:
            return fail(caused(EncodeError(f"Redis cannot be asked: {problem}"), problem))
        asked = _Asked(replies or len(commands), len(commands) == 1)
        self._unanswered.append(asked)
        transport: Any = self.transport
        transport.write(data)
        return asked.done

    def when_lost(self, callback: Callable[[BrokerUnavailable], None]) -> None:
        """Call back once, when the connection has ended on either side, or at once where it has."""
        self._lost_callbacks.append(callback)
        if self._lost:
            self._call_back()

    def give_up(self, why: str) -> None:
        """End the connection now, and say why."""
        self._reason = BrokerUnavailable(why)
        self.abort()

    def abort(self) -> None:
        """End the connection now."""
        transport: Any = self.transport
        transport.abortConnection()

    def error(self) -> BrokerUnavailable:
        """Why the connection has ended."""
        return connection_error(self._reason)

    def rest(self, seconds: float) -> None:
        """Read nothing more for a moment. Does nothing while it rests already."""
        self._resting.begin(self.transport, seconds)

    # The transport's protocol

    def dataReceived(self, data: bytes) -> None:
        """Match what has come."""
        reader = self._reader
        reader.feed(data)
        while self._reason is None:
            try:
                reply = reader.gets()
            except hiredis.ProtocolError as problem:
                self.give_up(f"it does not speak Redis' protocol: {problem}")
                return
            if reply is _INCOMPLETE:
                return
            self._received(reply)

    def _received(self, reply: Any) -> None:
        if self.on_message is not None and type(reply) is list and reply and type(reply[0]) is bytes:
            place = _MESSAGES.get(reply[0])
            if place is not None:
                self.on_message(reply[place], reply[place + 1])
                return
        if not self._unanswered:
            self.give_up(f"it says what it was not asked: {reply!r:.200}")
            return
        asked = self._unanswered[0]
        asked.replies.append(reply)
        if len(asked.replies) >= asked.expected or (asked.is_one and type(reply) is ReplyError):
            self._unanswered.popleft()
            settle(asked.done, asked.replies)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell all who wait."""
        if self._reason is None:
            self._reason = reason.value
        self._lost = True
        self._resting.end()
        unanswered, self._unanswered = self._unanswered, deque()
        for asked in unanswered:
            settle(asked.done, Failure(self.error()))
        self._call_back()

    def _call_back(self) -> None:
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback(self.error())


class _Asked:
    """Commands whose replies have not all come.

    :param is_one: whether they are one command, of which an error is the last reply
    """

    __slots__ = ("done", "expected", "is_one", "replies")

    def __init__(self, expected: int, is_one: bool) -> None:
        self.expected = expected
        self.is_one = is_one
        self.replies: list[Any] = []
        self.done: Deferred[list[Any]] = Deferred()


def connection_error(reason: BaseException | None) -> BrokerUnavailable:
    """Why there is no connection, or none any more.

    :param reason: what Twisted says, or an error of ours
    """
    if isinstance(reason, BrokerUnavailable):
        return reason
    if isinstance(reason, ConnectionDone):
        return caused(BrokerUnavailable("the server closed the connection"), reason)
    return caused(BrokerUnavailable(str(reason) or type(reason).__name__), reason)
