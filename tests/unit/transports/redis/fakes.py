"""Links to a Redis that does what the test says, and nothing by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twistedcelery.errors import BrokerUnavailable

__all__ = ["FakeLink", "redis_app"]


class FakeLink:
    """As `twistedcelery.transports.redis.link.RedisLink` and ``SubscriberLink``.

    :ivar unanswered: the commands that Redis has not answered, oldest first
    :ivar commands: all commands
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.is_alive = True
        self.aborted = False
        self.rests: list[float] = []
        self.commands: list[tuple[Any, ...]] = []
        self.unanswered: list[tuple[tuple[Any, ...], Deferred[Any]]] = []
        self.deliver: Callable[[bytes, bytes], None]
        self._lost_callbacks: list[Callable[[BrokerUnavailable], None]] = []
        self._lost: BrokerUnavailable | None = None

    # What the code under test calls

    def on_lost(self, callback: Callable[[BrokerUnavailable], None]) -> None:
        self._lost_callbacks.append(callback)

    def on_message(self, callback: Callable[[bytes, bytes], None]) -> None:
        self.deliver = callback

    def ask(self, command: tuple[Any, ...]) -> Deferred[Any]:
        if self._lost is not None:
            return fail(self._lost)
        self.commands.append(command)
        self.unanswered.append((command, Deferred()))
        return self.unanswered[-1][1]

    def send(self, commands: list[tuple[Any, ...]]) -> Deferred[Any]:
        replies = DeferredList([self.ask(one) for one in commands], consumeErrors=True)

        def ended(all_of_them: Any) -> Failure | list[Any]:
            failed = (value for worked, value in all_of_them if not worked)
            return next(failed, [value for _, value in all_of_them])

        return replies.addCallback(ended)

    def subscribe(self, *channels: bytes) -> Deferred[Any]:
        return self.ask(("SUBSCRIBE", *channels))

    def unsubscribe(self, *channels: bytes) -> Deferred[Any]:
        return self.ask(("UNSUBSCRIBE", *channels))

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self._clock.callLater(0, self.lose)

    # What Redis or the network does

    def answer(self, *replies: Any) -> None:
        """Answer the oldest commands; an exception is an error reply."""
        for reply in replies:
            _, answered = self.unanswered.pop(0)
            if isinstance(reply, Exception):
                answered.errback(reply)
            else:
                answered.callback(reply)

    def answer_all(self) -> None:
        """Answer everything with OK."""
        while self.unanswered:
            self.answer(b"OK")

    def names(self) -> list[str]:
        """The names of the commands, in order."""
        return [command[0] for command in self.commands]

    def lose(self) -> None:
        """The connection ends."""
        if self._lost is not None:
            return
        self._lost = BrokerUnavailable("lost")
        unanswered, self.unanswered = self.unanswered, []
        for _, answered in unanswered:
            answered.errback(self._lost)
        for callback in self._lost_callbacks:
            callback(self._lost)


def redis_app(**settings: Any) -> Celery:
    """An application that no other test sees."""
    app = Celery(
        "unit", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/1", set_as_current=False
    )
    app.conf.update(settings)
    return app
