"""A broker, a worker and a result backend in memory, for tests: no server, no thread, no socket.

Messages are those that any transport would be given. Tasks are run on demand, by Celery's own
tracer, or are answered by hand; either way states go through Celery's own backend code, so that
what cannot be serialised fails in a test as it would in a worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

from celery import _state, states
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.backends.base import KeyValueStoreBackend
from celery.worker.strategy import proto1_to_proto2
from kombu.compression import decompress
from kombu.serialization import loads
from twisted.internet.defer import Deferred, fail, succeed

from twistedcelery._deferreds import Waiters
from twistedcelery.encoding.encoder import Recorder
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import BrokerUnavailable, Disconnected, ResultError, ResultLost, Unroutable
from twistedcelery.transports.connection import Connection, Server
from twistedcelery.transports.decoding import FINAL_STATES, FailureBackend, ReplyDecoder
from twistedcelery.transports.interface import (
    IncomingMessage,
    QueueState,
    ReplyReceiver,
    Setup,
    SubscriptionUser,
    Transport,
)
from twistedcelery.transports.publishing import Publication, QueuedPublisher
from twistedcelery.transports.store import BackendStore

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["MemoryTransport", "SentTask"]


class MemoryTransport(Transport):
    """Everything between a client and its tasks, for a test to look at and to play.

    Give one to the clients under test: ``TwistedCelery(app, clock, transport=MemoryTransport())``.
    The broker takes each message at once, and a task waits until the test runs or answers it.

    :ivar sent: every task that the broker has taken, oldest first
    :ivar messages: every message that it has taken, control commands and events included
    :ivar revoked: the ids of all tasks that were revoked
    :ivar answer_command: answers control commands: called with each command, a dictionary with
        ``method``, ``arguments`` and ``destination``, it returns replies by worker; ``None``: there
        are no workers
    """

    # It stands still: a test's burst of calls is sent at once, however slow the machine is.
    pacing_clock = staticmethod(lambda: 0.0)

    def __init__(self) -> None:
        self.sent: list[SentTask] = []
        self.messages: list[OutgoingMessage] = []
        self.revoked: set[str] = set()
        self.answer_command: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
        self._is_there = True
        self._holds_confirmations = False
        self._links: dict[_Link, None] = {}
        self._sources: dict[_Results, None] = {}
        self._subscriptions: dict[_Subscription, None] = {}
        #: The queues that are bound, by exchange and routing key.
        self._bindings: dict[tuple[str, str], set[str]] = {}
        self._worker: _Worker | None = None

    # The parts

    def publisher(self, setup: Setup) -> _Publisher:
        """Takes messages at once, while the broker is there."""
        publisher = _Publisher(setup.reactor, setup.timeout, self)
        return publisher.use(
            Connection(_Servers(), publisher, setup.reactor, lambda _: 1.0, self._open, purpose="publishing")
        )

    def subscriber(self, setup: Setup) -> _Subscriber:
        """Delivers replies to control commands, and what `send_event` sends."""
        return _Subscriber(self)

    def results(self, setup: Setup, receiver: ReplyReceiver) -> _Results:
        """Brings states as soon as they are stored."""
        self._prepare(setup)
        source = _Results(self, receiver)
        self._sources[source] = None
        return source

    def store(self, setup: Setup) -> _Store:
        """Answers from memory."""
        return _Store(setup.app, self._prepare(setup).backend)

    # What a test does

    @property
    def waiting(self) -> list[SentTask]:
        """The tasks that have neither been run nor answered."""
        return [task for task in self.sent if not task.is_over]

    def run_all(self, limit: int = 1000) -> None:
        """Run the tasks that wait, those that they send meanwhile included, until none is left.

        An ETA is not waited for.

        :param limit: how many tasks are run at most, where tasks send others without end
        :raises RuntimeError: there are more
        """
        for _ in range(limit):
            waiting = self.waiting
            if not waiting:
                return
            waiting[0].run()
        if self.waiting:
            raise RuntimeError(f"{limit} tasks were run, and {len(self.waiting)} more wait")

    def go_away(self) -> None:
        """Lose the broker: connections end, and none is made, until `come_back`."""
        self._is_there = False
        for link in list(self._links):
            link.lose(BrokerUnavailable("the broker went away"))
        for subscription in list(self._subscriptions):
            subscription.user.interrupted(BrokerUnavailable("the broker went away"))

    def come_back(self) -> None:
        """Have the broker there again. Clients connect at their next attempt, a second later at most."""
        self._is_there = True
        for source in list(self._sources):
            source.go_on()
        for subscription in list(self._subscriptions):
            subscription.user.consuming()

    def hold_confirmations(self) -> None:
        """Confirm no message any more, until the test calls `SentTask.confirm`."""
        self._holds_confirmations = True

    def send_event(self, event_type: str, **fields: Any) -> None:
        """Have a worker send one of Celery's events, such as ``"task-received"`` with a ``uuid``."""
        event = {"type": event_type, "timestamp": 0.0, "utcoffset": 0, "clock": 0, "pid": 0, **fields}
        event.setdefault("hostname", "memory")
        self._deliver("celeryev", event, {})

    @property
    def is_open(self) -> bool:
        """Whether a client that was bound to it has not been disconnected."""
        return bool(self._sources)

    # Inside

    @property
    def is_there(self) -> bool:
        """Whether the broker can be reached."""
        return self._is_there

    def _prepare(self, setup: Setup) -> _Worker:
        if self._worker is None:
            self._worker = _Worker(setup, self)
        return self._worker

    @property
    def worker(self) -> _Worker:
        """Runs tasks; there is one as soon as there is a client."""
        assert self._worker is not None
        return self._worker

    def _open(self, *_: Any) -> Deferred[_Link]:
        if not self._is_there:
            return fail(BrokerUnavailable("the broker is away"))
        link = _Link(self._links)
        self._links[link] = None
        return succeed(link)

    def take(self, message: OutgoingMessage, publication: Publication | None = None) -> bool:
        """Take a message, as the broker.

        :return: whether it is confirmed
        :raises Unroutable: it is mandatory, and reaches no queue
        """
        for entity in message.declare:
            exchange = getattr(entity, "exchange", None)
            if exchange is not None:
                key = exchange.name or "", entity.routing_key or ""
                self._bindings.setdefault(key, set()).add(entity.name)
                self._bindings.setdefault(("", entity.name), set()).add(entity.name)
        routed = (message.exchange, message.routing_key) in self._bindings
        if message.mandatory and message.exchange and not routed:
            raise Unroutable(
                f"no queue is bound to exchange {message.exchange!r} with routing key {message.routing_key!r}"
            )
        self.messages.append(message)
        if message.task_id is not None:
            self.sent.append(SentTask(message, self, publication))
            return not self._holds_confirmations
        if message.exchange.endswith(".pidbox"):
            self._command(loads(message.body, "application/json", "utf-8"))
        return True

    def stored(self, task_id: str, payload: bytes) -> None:
        """Tell all clients of a state."""
        for source in list(self._sources):
            source.found(task_id, payload)

    def reply_failed(self, task_id: str, error: ResultError) -> None:
        """Tell all clients that nothing more will be known of a task."""
        for source in list(self._sources):
            source.lose(task_id, error)

    def purge(self, queues: Sequence[Any]) -> int:
        """Discard the tasks that wait in some queues."""
        names = {queue.name for queue in queues}
        purged = [task for task in self.waiting if task.queue in names]
        for task in purged:
            task.is_over = True
        return len(purged)

    def queue_of(self, message: OutgoingMessage) -> str:
        """The queue that a message has reached."""
        bound = self._bindings.get((message.exchange, message.routing_key))
        return min(bound) if bound else message.routing_key

    def _command(self, command: dict[str, Any]) -> None:
        if command["method"] in ("revoke", "terminate"):
            ids = command["arguments"]["task_id"]
            self.revoked.update([ids] if isinstance(ids, str) else ids)
        if self.answer_command is None or not command.get("reply_to"):
            return
        address = command["reply_to"]
        headers = {"ticket": command["ticket"], "clock": 1}
        for worker, reply in self.answer_command(command).items():
            # A worker's reply comes after the broker's confirmation.
            self.worker.reactor.callLater(0, self._deliver, address["exchange"], {worker: reply}, headers)

    def _deliver(self, exchange: str, payload: Any, headers: Mapping[str, Any]) -> None:
        message = IncomingMessage(json.dumps(payload), "application/json", "utf-8", headers)
        for subscription in list(self._subscriptions):
            if subscription.queue.exchange.name == exchange:
                subscription.user.received(message)

    def subscribe(self, subscription: _Subscription) -> None:
        """Deliver to a queue from now on."""
        self._subscriptions[subscription] = None
        if self._is_there:
            subscription.user.consuming()

    def unsubscribe(self, subscription: _Subscription) -> None:
        """Deliver to a queue no longer."""
        self._subscriptions.pop(subscription, None)

    def drop_source(self, source: _Results) -> None:
        """A client is closed."""
        self._sources.pop(source, None)


class SentTask:
    """A task that the broker has taken.

    :ivar message: the message as it was published
    :ivar id: the task's id
    :ivar name: the task's name
    :ivar args: its positional arguments, as a worker decodes them
    :ivar kwargs: its keyword arguments
    :ivar headers: the message's headers
    :ivar queue: the queue that it is in
    :ivar is_over: whether it was run, has a final answer, or was purged
    """

    def __init__(
        self, message: OutgoingMessage, transport: MemoryTransport, publication: Publication | None
    ) -> None:
        self._transport = transport
        self._publication = publication
        self.message = message
        self.queue = transport.queue_of(message)
        self.is_over = False
        body, headers = _decoded(message)
        args, kwargs, self._embedded = body
        self.headers: Mapping[str, Any] = headers
        self.id: str = headers["id"]
        self.name: str = headers["task"]
        self.args: tuple[Any, ...] = tuple(args)
        self.kwargs: dict[str, Any] = dict(kwargs)

    @property
    def is_revoked(self) -> bool:
        """Whether it was revoked."""
        return self.id in self._transport.revoked

    def run(self) -> None:
        """Run it, as a worker does: by Celery's tracer, with its retries, callbacks and chords.

        What the task sends waits in turn. A task that was revoked is not run, and ends as such.

        :raises LookupError: the application has no such task
        """
        self.is_over = True
        self._transport.worker.run(self, self._request())

    def succeed(self, value: Any = None) -> None:
        """End it with a value."""
        self._answer(value, states.SUCCESS)

    def fail(self, error: Exception) -> None:
        """End it with an exception."""
        self._answer(error, states.FAILURE)

    def update(self, state: str, meta: Any = None) -> None:
        """Give it a state that is not final, such as ``"PROGRESS"``."""
        self._answer(meta, state)

    def lose(self, error: ResultError | None = None) -> None:
        """Lose its result for good.

        :param error: what the call fails with; a `twistedcelery.ResultLost` if not given
        """
        self.is_over = True
        lost = error or ResultLost(f"the result of task {self.name} [{self.id}] was lost")
        self._transport.reply_failed(self.id, lost)

    def confirm(self) -> None:
        """Confirm its message, where `MemoryTransport.hold_confirmations` was called."""
        if self._publication is not None:
            self._publication.succeed()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name} [{self.id}]>"

    def _request(self) -> dict[str, Any]:
        properties = self.message.properties
        return {
            **self.headers,
            **(self._embedded or {}),
            "args": self.args,
            "kwargs": self.kwargs,
            "is_eager": False,
            "hostname": "memory",
            "correlation_id": properties.get("correlation_id"),
            "reply_to": properties.get("reply_to"),
            "delivery_info": {
                "exchange": self.message.exchange,
                "routing_key": self.message.routing_key,
                "priority": properties.get("priority"),
                "redelivered": False,
            },
        }

    def _answer(self, value: Any, state: str) -> None:
        self.is_over = self.is_over or state in FINAL_STATES
        backend = self._transport.worker.backend
        backend.store_result(self.id, value, state, request=Context(self._request()))


class _Worker:
    """Runs tasks in the process of the test, with the application's own code."""

    def __init__(self, setup: Setup, transport: MemoryTransport) -> None:
        self.app = setup.app
        self.reactor = setup.reactor
        self._transport = transport
        self.backend = _MemoryBackend(transport, app=self.app)
        self._recorder = Recorder(self.app.connection_for_write())

    def run(self, task: SentTask, request: dict[str, Any]) -> None:
        """Run one task."""
        if task.is_revoked:
            self.backend.mark_as_revoked(task.id, reason="revoked", request=Context(request))
            return
        if task.name not in self.app.tasks:
            raise LookupError(f"application {self.app.main!r} has no task {task.name!r}")
        registered = self.app.tasks[task.name]
        with self._inside() as recorded:
            trace = build_tracer(task.name, registered, hostname="memory", app=self.app)
            trace(task.id, task.args, task.kwargs, request)
        for one in recorded:
            self._transport.take(one.outgoing())

    @contextmanager
    def _inside(self) -> Iterator[list[Any]]:
        """Whatever the application sends or stores meanwhile stays in memory."""
        own: Any = vars(self.app)
        before = {name: own[name] for name in ("producer_or_acquire", "_backend_cache") if name in own}
        current = _state._tls.current_app  # Celery has no public name for it  # noqa: SLF001  # see before
        own["producer_or_acquire"] = lambda given=None: nullcontext(given or self._recorder)
        own["_backend_cache"] = self.backend
        # As in a worker: signatures that were serialised belong to the current application.
        self.app.set_current()
        try:
            with self._recorder.recording() as recorded:
                yield recorded
        finally:
            _state._set_current_app(current)  # as above  # noqa: SLF001  # see before
            for name in ("producer_or_acquire", "_backend_cache"):
                own.pop(name, None)
            own.update(before)


class _MemoryBackend(FailureBackend, KeyValueStoreBackend):
    """Celery's result backend on a dictionary."""

    implements_incr = True
    supports_native_join = True
    persistent = False

    def __init__(self, transport: MemoryTransport, **options: Any) -> None:
        self._transport = transport
        self._kept: dict[bytes, Any] = {}
        super().__init__(**options)

    def get(self, key: bytes) -> Any:
        return self._kept.get(key)

    def mget(self, keys: Sequence[bytes]) -> list[Any]:
        return [self._kept.get(key) for key in keys]

    def set(self, key: bytes, value: Any) -> None:
        self._kept[key] = value

    def _set_with_state(self, key: bytes, value: Any, state: str) -> None:
        super()._set_with_state(key, value, state)
        if key.startswith(self.task_keyprefix):
            task_id = key[len(self.task_keyprefix) :].decode()
            self._transport.stored(task_id, value)

    def incr(self, key: bytes) -> int:
        self._kept[key] = self._kept.get(key, 0) + 1
        value: int = self._kept[key]
        return value

    def expire(self, key: bytes, value: Any) -> None:
        """Nothing expires while a test runs."""

    def delete(self, key: bytes) -> None:
        self._kept.pop(key, None)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing needs preparing."""


class _Store(BackendStore):
    """Asks the backend in memory."""

    def __init__(self, app: Celery, backend: _MemoryBackend) -> None:
        super().__init__(app)
        self._memory = backend

    def _run(self, work: Callable[[Any], Any]) -> Deferred[Any]:
        try:
            return succeed(work(self._memory))
        except Exception as error:
            # As with any backend, the caller is told.
            return fail(error)

    def close(self) -> Deferred[None]:
        """Nothing is open."""
        return succeed(None)


class _Publisher(QueuedPublisher["_Link", int]):
    """Hands messages to the transport."""

    def __init__(self, reactor: Any, publish_timeout: float, transport: MemoryTransport) -> None:
        super().__init__(reactor, publish_timeout, clock=transport.pacing_clock)
        self._transport = transport
        self._link: _Link | None = None
        self._numbers = count(1)

    def prepare(self, link: _Link) -> Deferred[None]:
        self._link = link
        return succeed(None)

    def _has_link(self) -> bool:
        return self._link is not None

    def _let_go(self) -> None:
        self._link = None

    def _dispatch(self, publication: Publication) -> None:
        number = next(self._numbers)
        publication.sent = True
        self._unconfirmed[number] = publication
        # A callback of the confirmation may do anything.
        publication.done.addBoth(self._ended, number)
        try:
            confirmed = self._transport.take(publication.message, publication)
        except Unroutable as error:
            publication.fail(Unroutable(f"{publication}: {error}"))
            return
        if confirmed:
            publication.succeed()

    def _ended(self, outcome: Any, number: int) -> Any:
        self._unconfirmed.pop(number, None)
        return outcome


class _Results:
    """A `twistedcelery.transports.interface.ResultSource` on memory."""

    available = True
    reply_to: str | None = None

    def __init__(self, transport: MemoryTransport, receiver: ReplyReceiver) -> None:
        self._transport = transport
        self._receiver = receiver
        self._decoder = ReplyDecoder(transport.worker.app)
        self._watched: dict[str, None] = {}
        self._missed: list[tuple[str, bytes]] = []
        self._waiters: Waiters[None] = Waiters()
        self._is_closed = False

    @property
    def connected(self) -> bool:
        return self._transport.is_there and not self._is_closed

    def watch(self, task_id: str) -> Deferred[None] | None:
        if self._is_closed:
            return fail(Disconnected("the client was disconnected"))
        self._watched[task_id] = None
        if self._transport.is_there:
            return None
        return self._waiters.wait(lambda: BrokerUnavailable("no connection to receive results"))

    def forget(self, task_id: str) -> None:
        self._watched.pop(task_id, None)

    def close(self) -> Deferred[None]:
        self._is_closed = True
        self._transport.drop_source(self)
        self._waiters.fail(Disconnected("the client was disconnected before the task was sent"))
        return succeed(None)

    # What the transport does

    def found(self, task_id: str, payload: bytes) -> None:
        """A state was stored."""
        if not self._transport.is_there:
            self._missed.append((task_id, payload))
        elif task_id in self._watched:
            backend = self._transport.worker.backend
            try:
                meta = self._decoder.decode(payload, backend.content_type, backend.content_encoding, {})
            except ResultError as error:
                self.lose(task_id, error)
            else:
                self._receiver.state_changed(task_id, meta)

    def lose(self, task_id: str, error: ResultError) -> None:
        """Nothing more will be known of a task."""
        if task_id in self._watched:
            self.forget(task_id)
            self._receiver.reply_failed(task_id, error)

    def go_on(self) -> None:
        """The broker is there again, with what was missed."""
        missed, self._missed = self._missed, []
        for task_id, payload in missed:
            self.found(task_id, payload)
        self._waiters.fire(None)


class _Subscriber:
    """A `twistedcelery.transports.interface.Subscriber` on memory."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._subscriptions: dict[_Subscription, None] = {}

    def subscribe(self, queue: Any, user: SubscriptionUser) -> _Subscription:
        subscription = _Subscription(queue, user, self._transport)
        self._subscriptions[subscription] = None
        self._transport.subscribe(subscription)
        return subscription

    def purge(self, queues: Sequence[Any]) -> Deferred[int]:
        return succeed(self._transport.purge(queues))

    def look(self, queue: str) -> Deferred[QueueState | None]:
        # The test says when a task is lost.
        return succeed(None)

    def close(self) -> Deferred[None]:
        subscriptions, self._subscriptions = self._subscriptions, {}
        for subscription in subscriptions:
            subscription.cancel()
            subscription.user.ended(Disconnected("the client was disconnected"))
        return succeed(None)


class _Subscription:
    """One queue."""

    def __init__(self, queue: Any, user: SubscriptionUser, transport: MemoryTransport) -> None:
        self.queue = queue
        self.user = user
        self._transport = transport

    def renew(self) -> None:
        """Nothing is forgotten here."""

    def cancel(self) -> Deferred[None]:
        self._transport.unsubscribe(self)
        return succeed(None)


class _Link:
    """An open connection to memory."""

    def __init__(self, links: dict[_Link, None]) -> None:
        self._links = links
        self._lost: BrokerUnavailable | None = None
        self._callback: Callable[[BrokerUnavailable], None] = lambda _: None

    def on_lost(self, callback: Callable[[BrokerUnavailable], None], /) -> None:
        self._callback = callback

    def lose(self, reason: BrokerUnavailable) -> None:
        if self._links.pop(self, self) is None:
            self._callback(reason)

    def close(self) -> None:
        self.lose(BrokerUnavailable("the connection was closed"))

    def abort(self) -> None:
        self.close()


class _Servers:
    """Where memory is."""

    connect_timeout = 4.0

    def current(self) -> Server:
        return Server(None, None, "memory")  # type: ignore[arg-type]  # the opener needs no endpoint

    def advance(self) -> int:
        return 1


def _decoded(message: OutgoingMessage) -> tuple[Any, Mapping[str, Any]]:
    """A task message as a worker decodes it: ``(args, kwargs, embedded)`` and the headers.

    Protocol 1 has in its body what protocol 2 has in its headers.
    """
    content_type = message.properties["content_type"]
    body = message.body
    if "compression" in message.headers:
        body = decompress(body, message.headers["compression"])
    # The process made it, so nothing in it is foreign.
    decoded = loads(body, content_type, message.properties["content_encoding"], accept={content_type})
    if "task" in message.headers:
        return decoded, message.headers
    decoded, headers, _, _ = proto1_to_proto2(message, decoded)
    return decoded, headers
