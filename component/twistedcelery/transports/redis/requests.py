"""Commands whose replies are wanted, over a connection that is made when the first one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from twistedcelery._types import Clock
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, Disconnected
from twistedcelery.transports.connection import Connection
from twistedcelery.transports.redis.link import Command, RedisLink

__all__ = ["Requests"]


class Requests:
    """Sends commands over one connection, whose user this is.

    :param timeout: seconds to wait for replies, connecting included
    """

    def __init__(self, reactor: Clock, timeout: float) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._open: dict[Deferred[Any], _Request] = {}
        self._closed = False
        self._reason: BrokerUnavailable | None = None
        self._link: RedisLink | None = None
        self._connection: Connection[RedisLink]

    def use(self, connection: Connection[RedisLink]) -> Requests:
        """Ask over a connection."""
        self._connection = connection
        return self

    def ask(
        self, commands: Sequence[Command], *, once: bool = False, timeout: float | None = None
    ) -> Deferred[list[Any]]:
        """Send commands, now or when there is a connection, and again when it is lost meanwhile.

        :param once: rather fail than send them again
        :param timeout: seconds, where it is not that of the others
        :return: fires with the replies. It fails with `PublishRejected` where Redis refuses one,
            with `BrokerUnavailable` when there is no reply in time, at once where that is for a
            password, and with `Disconnected`.
        """
        if self._closed:
            return fail(Disconnected("the client was disconnected"))
        answer: Deferred[list[Any]] = Deferred(self._gave_up)
        self._open[answer] = request = _Request(commands, once)
        answer.addBoth(self._ended, answer)
        limit = self._timeout if timeout is None else timeout
        # Its own reason says more than Twisted's.
        answer.addTimeout(limit, self._reactor, lambda failure, _: failure)  # type: ignore[arg-type]  # a zope interface
        self._connection.start()
        if self._link is not None:
            self._send(answer, request, self._link)
        return answer

    def close(self) -> Deferred[None]:
        """Close the connection; what is unanswered fails with `Disconnected`."""
        self._closed = True
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
        """Wait for the next link, but not for a password that is wrong."""
        self._link = None
        self._reason = reason
        if isinstance(reason, BrokerAccessRefused):
            self._fail_all(reason)
            return
        for answer, request in list(self._open.items()):
            if request.once and request.sent:
                self._fail(answer, reason)

    def _send(self, answer: Deferred[Any], request: _Request, link: RedisLink) -> None:
        request.sent = True
        link.send(request.commands).addCallbacks(
            self._answered, self._refused, callbackArgs=(answer,), errbackArgs=(answer,)
        )

    def _answered(self, replies: list[Any], answer: Deferred[Any]) -> None:
        # Not, where nobody waits any more.
        if answer in self._open:
            answer.callback(replies)

    def _refused(self, failure: Failure, answer: Deferred[Any]) -> None:
        # The connection tells of its end itself.
        if answer in self._open and not failure.check(BrokerUnavailable):
            answer.errback(failure)

    def _gave_up(self, answer: Deferred[Any]) -> None:
        self._fail(answer, BrokerUnavailable(f"no answer: {self._reason or 'it takes too long'}"))

    def _ended(self, outcome: Any, answer: Deferred[Any]) -> Any:
        del self._open[answer]
        return outcome

    def _fail_all(self, error: BrokerUnavailable | Disconnected) -> None:
        for answer in list(self._open):
            self._fail(answer, error)

    def _fail(self, answer: Deferred[Any], error: BrokerUnavailable | Disconnected) -> None:
        made = type(error)(*error.args)
        made.__cause__ = error.__cause__
        if answer in self._open:
            answer.errback(Failure(made))


class _Request:
    """What was asked.

    :ivar sent: whether Redis may have carried it out
    """

    __slots__ = ("commands", "once", "sent")

    def __init__(self, commands: Sequence[Command], once: bool) -> None:
        self.commands = commands
        self.once = once
        self.sent = False
