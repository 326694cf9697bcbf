"""Sends commands and returns their replies, over a connection that is made for the first command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import settle
from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, Disconnected, renewed
from twistedcelery.transports.connection import Connection, RefusedForNow, caused
from twistedcelery.transports.deadlines import cancel_after
from twistedcelery.transports.redis.link import Command, RedisLink

__all__ = ["Reads", "Requests"]

_log = Logger()


#: Seconds until a command that Redis could not carry out for the moment is sent again.
_AGAIN_AFTER = 0.25

#: Keys that one MGET asks for. Redis does nothing else while it answers.
_AT_ONCE = 100


class Requests:
    """Sends commands over one connection, whose user this is.

    :param timeout: seconds to wait for replies, connecting included; ``None``: there is no limit
    """

    def __init__(self, reactor: Clock, timeout: float | None) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._open: dict[Deferred[Any], _Request] = {}
        self._closed = False
        self._reason: BrokerUnavailable | None = None
        self._link: RedisLink | None = None
        self._next_link: Timer | None = None
        self._connection: Connection[RedisLink]

    def use(self, connection: Connection[RedisLink]) -> Requests:
        """Ask over a connection."""
        self._connection = connection
        return self

    def start(self) -> None:
        """Connect, though there is nothing to ask yet."""
        self._connection.start()

    def ask(
        self, commands: Sequence[Command], *, once: bool = False, timeout: float | None = None
    ) -> Deferred[list[Any]]:
        """Send commands, now or when there is a connection, and again after a lost connection, and
        while Redis cannot carry them out for the moment.

        :param once: fail rather than send them again
        :param timeout: seconds, if the usual limit does not fit
        :return: fires with the replies. It fails with `Refused` where Redis refuses one, with
            `BrokerUnavailable` when there is no reply in time, at once where Redis refuses the
            password, and with `Disconnected`.
        """
        if self._closed:
            return fail(Disconnected("the client was disconnected"))
        answer: Deferred[list[Any]] = Deferred(self._gave_up)
        self._open[answer] = request = _Request(commands, once)
        answer.addBoth(self._ended, answer)
        limit = self._timeout if timeout is None else timeout
        if limit is not None:
            cancel_after(limit, answer, self._reactor)
        self._connection.start()
        if self._link is not None:
            self._send(answer, request, self._link)
        return answer

    def close(self) -> Deferred[None]:
        """Close the connection; what is unanswered fails with `Disconnected`."""
        self._closed = True
        self._stay()
        self._fail_all(Disconnected("the client was disconnected before Redis had answered"))
        return self._connection.close()

    # The connection's user

    def prepare(self, link: RedisLink) -> Deferred[None]:
        """Nothing needs preparing."""
        self._link = link
        return succeed(None)

    def connection_up(self) -> None:
        """Ask what has not been answered."""
        self._reason = None
        for answer, request in list(self._open.items()):
            if self._link is not None:
                self._send(answer, request, self._link)

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        """Wait for the next link, unless Redis refused the password."""
        self._link = None
        self._stay()
        self._reason = reason
        if isinstance(reason, BrokerAccessRefused):
            self._fail_all(reason)
            return
        for answer, request in list(self._open.items()):
            if request.once and request.sent:
                settle(answer, Failure(renewed(reason)))

    def _send(self, answer: Deferred[Any], request: _Request, link: RedisLink) -> None:
        request.sent = True
        link.send(request.commands).addBoth(self._answered, answer, request)

    def _answered(self, outcome: Any, answer: Deferred[Any], request: _Request) -> None:
        if isinstance(outcome, Failure):
            error = outcome.value
            if isinstance(error, BrokerUnavailable):
                # The commands are sent again over the next link.
                return
            if isinstance(error, RefusedForNow) and not (request.once and error.partly):
                # Over the next link, too: it may lead to the new master.
                request.sent = False
                self._reason = caused(BrokerUnavailable(f"Redis says {error}"), error)
                self._leave_soon()
                return
        settle(answer, outcome)

    def _leave_soon(self) -> None:
        if self._next_link is None and self._link is not None:
            self._next_link = self._reactor.callLater(_AGAIN_AFTER, self._leave)

    def _leave(self) -> None:
        self._next_link = None
        self._connection.drop()

    def _stay(self) -> None:
        if self._next_link is not None:
            self._next_link.cancel()
            self._next_link = None

    def _gave_up(self, answer: Deferred[Any]) -> None:
        answer.errback(Failure(BrokerUnavailable(f"no answer: {self._reason or 'it takes too long'}")))

    def _ended(self, outcome: Any, answer: Deferred[Any]) -> Any:
        del self._open[answer]
        return outcome

    def _fail_all(self, error: BrokerUnavailable | Disconnected) -> None:
        for answer in list(self._open):
            settle(answer, Failure(renewed(error)))


class _Request:
    """Commands that were asked.

    :ivar sent: whether Redis may have carried them out
    """

    __slots__ = ("commands", "once", "sent")

    def __init__(self, commands: Sequence[Command], once: bool) -> None:
        self.commands = commands
        self.once = once
        self.sent = False


class Reads:
    """Reads the values of keys over a connection for `Requests`.

    The keys of one reactor turn are asked for together, and so are those that come before the answer.

    :param reactor: for ``callLater``
    :param requests: without a time limit; it is closed here
    :param found: called with a key and its value, once for each key that has one
    """

    def __init__(self, reactor: Clock, requests: Requests, found: Callable[[bytes, bytes], None]) -> None:
        self._reactor = reactor
        self._requests = requests
        self._found = found
        self._wanted: dict[bytes, None] = {}
        self._asked: dict[bytes, None] = {}
        self._turn: Timer | None = None
        self._asking = False

    def start(self) -> None:
        """Connect, though there is nothing to read yet."""
        self._requests.start()

    def add(self, key: bytes) -> None:
        """Read a key, now or when there is a connection."""
        self._asked.pop(key, None)
        self._wanted[key] = None
        self._plan()

    def discard(self, key: bytes) -> None:
        """The value is not needed any more."""
        self._wanted.pop(key, None)
        self._asked.pop(key, None)

    def close(self) -> Deferred[None]:
        """Close the connection."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._wanted.clear()
        return self._requests.close()

    def _plan(self) -> None:
        if self._wanted and self._turn is None and not self._asking:
            self._turn = self._reactor.callLater(0, self._ask)

    def _ask(self) -> None:
        self._turn = None
        keys = list(self._wanted)
        if not keys:
            return
        self._asked, self._wanted, self._asking = self._wanted, {}, True
        pieces = [keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE)]
        self._requests.ask([("MGET", *piece) for piece in pieces]).addCallbacks(
            self._answered, self._failed, callbackArgs=(keys,)
        ).addBoth(self._ended)

    def _answered(self, replies: Sequence[Sequence[bytes | None]], keys: Sequence[bytes]) -> None:
        for key, value in zip(keys, chain.from_iterable(replies), strict=True):
            if key in self._asked:
                del self._asked[key]
                if value is not None:
                    self._found(key, value)

    def _failed(self, failure: Failure) -> None:
        if failure.check(BrokerUnavailable):
            # Redis refused the password, which may be put right before the next attempt.
            self._wanted = {**self._asked, **self._wanted}
        elif not failure.check(Disconnected):
            # States still come by subscription; what was stored before is not seen.
            _log.error("Redis does not let stored results be read: {error}", error=failure.value)
        self._asked = {}

    def _ended(self, _: object) -> None:
        self._asking = False
        self._plan()
