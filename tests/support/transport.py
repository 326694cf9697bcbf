"""A transport in memory, whose broker and workers are the test.

It does nothing by itself: the test says when the broker has a message, and what a task became.
`FakeTransport` is a `twistedcelery.transports.interface.Transport` that clients are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from twistedcelery import TwistedCelery
from twistedcelery.calls.dispatcher import Pacer
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import Disconnected, PublishUnconfirmed, ResultError
from twistedcelery.transports.interface import ReplyReceiver, Setup, Transport

__all__ = ["FakePublisher", "FakeResults", "FakeTransport", "Publication", "bare_app", "pacer_of"]


class Publication:
    """A message that was handed to the publisher.

    :ivar sent: whether it has left; then cancelling it cannot undo that
    """

    def __init__(self, message: OutgoingMessage) -> None:
        self.message = message
        self.sent = True
        self.done: Deferred[None] = Deferred(self._cancelled)

    @property
    def open(self) -> bool:
        """Whether its fate is undecided."""
        return not self.done.called

    def confirm(self) -> None:
        """The broker has it."""
        self.done.callback(None)

    def fail(self, error: Exception) -> None:
        """The publisher gives it up."""
        self.done.errback(error)

    def _cancelled(self, done: Deferred[None]) -> None:
        done.errback(PublishUnconfirmed("cancelled too late") if self.sent else CancelledError())


class FakePublisher:
    """A `Publisher` whose broker is the test.

    :ivar publications: all that was published, in order
    :ivar refusal: makes the error that `publish` fails with at once; ``None``: it does not
    :ivar closing: what `close` returns
    """

    def __init__(self) -> None:
        self.connected = True
        self.publications: list[Publication] = []
        self.refusal: Callable[[], Exception] | None = None
        self.closed = 0
        self.closing: Deferred[None] = succeed(None)

    def publish(self, message: OutgoingMessage) -> Deferred[None]:
        if self.closed:
            return fail(Disconnected("the publisher was closed"))
        if self.refusal is not None:
            return fail(self.refusal())
        publication = Publication(message)
        self.publications.append(publication)
        return publication.done

    def close(self) -> Deferred[None]:
        self.closed += 1
        for publication in self.publications:
            if publication.open:
                publication.fail(Disconnected("the publisher was closed"))
        return self.closing

    @property
    def last(self) -> Publication:
        """What was published last."""
        return self.publications[-1]

    def tasks(self) -> list[Publication]:
        """The task messages among what was published."""
        return [each for each in self.publications if each.message.task_id is not None]


class FakeResults:
    """A `ResultSource` whose workers are the test.

    :ivar ready: whether `watch` has nothing to wait for
    :ivar waiting: what `watch` returned while it was not `ready`, by task id
    :ivar watched: the ids that are watched
    :ivar forgotten: the ids that were watched once
    """

    def __init__(self) -> None:
        self.connected = True
        self.available = True
        self.reply_to: str | None = "replies"
        self.ready = True
        self.waiting: dict[str, Deferred[None]] = {}
        self.watched: list[str] = []
        self.forgotten: list[str] = []
        self.closed = 0
        self.closing: Deferred[None] = succeed(None)
        self.receiver: ReplyReceiver

    def watch(self, task_id: str) -> Deferred[None] | None:
        self.watched.append(task_id)
        if self.ready:
            return None
        self.waiting[task_id] = Deferred()
        return self.waiting[task_id]

    def forget(self, task_id: str) -> None:
        self.forgotten.append(task_id)
        if task_id in self.watched:
            self.watched.remove(task_id)

    def close(self) -> Deferred[None]:
        self.closed += 1
        for waiter in self.waiting.values():
            if not waiter.called:
                waiter.errback(Disconnected("the result source was closed"))
        return self.closing

    def reply(self, task_id: str, status: str, result: Any = None, **meta: Any) -> None:
        """A task has a new state."""
        self.receiver.state_changed(
            task_id, {"status": status, "result": result, "traceback": None, "children": [], **meta}
        )

    def fail(self, task_id: str, error: ResultError) -> None:
        """Nothing more can be learnt of a task."""
        self.receiver.reply_failed(task_id, error)


class FakeTransport(Transport):
    """All parts, and the clients made on them.

    :ivar clock: the clients' reactor
    :ivar chosen: how often a client was bound to it
    :ivar kept: the clients' result store; ``None``: results are not kept
    :ivar consumer: the clients' subscriber
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.written = FakePublisher()
        self.replies = FakeResults()
        self.kept: Any = None
        self.consumer: Any = None
        self.chosen = 0

    def publisher(self, setup: Setup) -> FakePublisher:
        self.chosen += 1
        return self.written

    def subscriber(self, setup: Setup) -> Any:
        return self.consumer

    def results(self, setup: Setup, receiver: ReplyReceiver) -> FakeResults:
        self.replies.receiver = receiver
        return self.replies

    def store(self, setup: Setup) -> Any:
        return self.kept

    def client(self, app: Celery | None = None, reactor: Any = None, **options: Any) -> TwistedCelery:
        """Make a client.

        It paces itself by the clock, so that a slow machine changes nothing.

        :param app: a bare application where it is not given
        """
        options.setdefault("transport", self)
        client = TwistedCelery(app or bare_app(), reactor or self.clock, **options)
        pacer_of(client)._clock = self.clock.seconds
        return client

    def turn(self) -> None:
        """Let one turn of the reactor pass, in no time."""
        self.clock.advance(0)


def pacer_of(client: TwistedCelery) -> Pacer:
    """What spreads a client's bursts over reactor turns."""
    return client._dispatcher._route.pacer


def bare_app(**settings: Any) -> Celery:
    """An application that no other test sees."""
    app = Celery("unit", broker="amqp://127.0.0.1:1//", backend="rpc://", set_as_current=False)
    app.conf.update(settings)
    return app
