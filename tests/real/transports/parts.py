"""The brokers and result backends that the contract suite runs on, each behind the same face."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery
import kombu
from celery.app.task import Context
from twisted.internet import reactor

from tests.real.transports.relay import Relay
from tests.support.taskapp import create_app
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.testing import MemoryTransport
from twistedcelery.transports.interface import Setup
from twistedcelery.transports.registry import find

__all__ = ["IMPLEMENTATIONS", "Parts", "Receiver", "descriptors", "make_parts", "message"]


class Receiver:
    """A `twistedcelery.transports.interface.ReplyReceiver` that keeps what it is told."""

    def __init__(self) -> None:
        self.states: list[tuple[str, str, Any]] = []
        self.failures: list[tuple[str, Exception]] = []

    def state_changed(self, task_id, meta):
        self.states.append((task_id, meta["status"], meta["result"]))

    def reply_failed(self, task_id, error):
        self.failures.append((task_id, error))

    def resumed(self, replies_lost):
        """Not of interest."""

    def of(self, task_id):
        """The states of a task, without repetitions: a transport may tell one twice."""
        told = [state[1:] for state in self.states if state[0] == task_id]
        return [state for index, state in enumerate(told) if state not in told[:index]]


class Parts:
    """One broker with one result backend.

    :param url: the broker as the client sees it; it can be taken away
    :param direct: the same broker as workers see it
    """

    #: Whether each state reaches the client, or only the latest when it looks.
    tells_every_state = True
    #: Whether the result backend fails when it is taken away.
    notices_absence = True
    #: Whether the result backend stores results with ``result_serializer``.
    uses_serializer = True
    #: Whether the client's own implementation is used, not the threads.
    native = False
    #: Whether the broker refuses a queue that exists with other arguments.
    compares_declarations = False
    #: Whether results come through a queue of the client's.
    has_reply_queue = False
    #: Whether nothing is told of a task any more that was forgotten.
    forgets = True
    #: Whether the broker asks for a password.
    has_passwords = True

    def __init__(self, url: str, backend: str, *, direct=None, direct_backend=None, **config):
        self.config = config
        self.url, self.backend = url, backend
        self.direct, self.direct_backend = direct or url, direct_backend or backend
        self._opened: list[Any] = []
        self._worker_apps: list[Any] = []

    def app(self, url=None, **config):
        return create_app(url or self.url, self.backend, **{**self.config, **config})

    def open(self, receiver=None, *, publish_timeout=10.0, app=None):
        """A publisher and a result source. They are closed after the test."""
        app = app or self.app()
        transport = find(app, "auto" if self.native else "threads")
        setup = Setup(app, reactor, publish_timeout)
        halves = transport.publisher(setup), transport.results(setup, receiver or Receiver())
        self._opened.extend(halves)
        return halves

    async def close(self):
        for half in self._opened:
            await half.close()
        for app in self._worker_apps:
            app.close()

    @contextmanager
    def consumer(self) -> Iterator[Any]:
        """A blocking kombu connection of the test's own."""
        with self.app(self.direct).connection_for_read() as connection:
            yield connection

    def take(self, queue: str, count: int = 1, timeout: float = 10.0) -> list[kombu.Message]:
        """Take messages from a queue as a worker would."""
        taken: list[kombu.Message] = []
        with self.consumer() as connection, connection.channel() as channel:
            # Bodies as they came, whatever their content type.
            consumer = kombu.Consumer(channel, [kombu.Queue(queue)], on_message=taken.append, no_ack=True)
            with consumer:
                while len(taken) < count:
                    connection.drain_events(timeout=timeout)
        return taken

    def is_empty(self, queue: str) -> bool:
        """Whether there is nothing to take."""
        try:
            self.take(queue, timeout=0.2)
        except TimeoutError:
            return True
        return False

    def worker(self, **config):
        """An application as a worker has it, which stores results."""
        app = create_app(self.direct, self.direct_backend, **{**self.config, **config})
        self._worker_apps.append(app)
        return app

    def store(self, source, task_id, result, state="SUCCESS", *, worker=None):
        """Store a state as a worker does."""
        request = Context(id=task_id, correlation_id=task_id, reply_to=source.reply_to)
        backend = (worker or self._default_worker()).backend
        backend.store_result(task_id, result, state, request=request)

    def _default_worker(self):
        if not self._worker_apps:
            self.worker()
        return self._worker_apps[0]

    def store_raw(self, source, task_id, text: str) -> None:
        """Store something in the place of a task's state."""
        backend = self._default_worker().backend
        backend.set(backend.get_key_for_task(task_id), text)

    def take_away(self) -> None:
        """Make the broker and the result backend unreachable, and drop connections."""
        raise NotImplementedError

    def give_back(self) -> None:
        """Undo `take_away`."""
        raise NotImplementedError


class FilesystemParts(Parts):
    """``filesystem://`` with ``file://``, or with another backend in the same directory."""

    tells_every_state = False
    notices_absence = False
    has_passwords = False

    def __init__(self, directory, backend="file://{}/results"):
        self._directory = directory / "broker"
        self._away = directory / "away"
        for name in ("messages", "control", "results"):
            (self._directory / name).mkdir(parents=True)
        super().__init__(
            "filesystem://",
            backend.format(self._directory),
            broker_transport_options={
                "data_folder_in": str(self._directory / "messages"),
                "data_folder_out": str(self._directory / "messages"),
                "control_folder": str(self._directory / "control"),
                "polling_interval": 0.02,
            },
        )

    def take_away(self):
        self._directory.rename(self._away)

    def give_back(self):
        self._away.rename(self._directory)


class SqlParts(FilesystemParts):
    """``db+sqlite://``, with ``filesystem://``."""

    notices_absence = True
    # Before 5.7 Celery pickled all results that go into a database.
    uses_serializer = celery.VERSION >= (5, 7)

    def __init__(self, directory):
        super().__init__(directory, "db+sqlite:///{}/results/results.db")

    def store_raw(self, source, task_id, text):
        from celery.backends.database.models import Task

        session = self._default_worker().backend.ResultSession()
        row = Task(task_id)
        row.status, row.result = "SUCCESS", text.encode()
        session.add(row)
        session.commit()
        session.close()


class NetworkParts(Parts):
    """A server on the network, seen through a `Relay`."""

    def __init__(self, url, backend, port):
        self._relay = Relay(port)
        relayed = [text.replace(f":{port}/", f":{self._relay.port}/") for text in (url, backend)]
        super().__init__(*relayed, direct=url, direct_backend=backend)

    def take_away(self):
        self._relay.down()

    def give_back(self):
        self._relay.up()

    async def close(self):
        await super().close()
        self._relay.down()


class RedisParts(NetworkParts):
    """Redis as broker and as result backend."""

    def __init__(self, server):
        super().__init__(server.url(0), server.url(1), server.port)


class NativeRedisParts(RedisParts):
    """The same, by the client's own implementation."""

    native = True


class AmqpParts(NetworkParts):
    """RabbitMQ with ``rpc://``."""

    compares_declarations = True
    has_reply_queue = True

    def __init__(self, broker_url, port):
        super().__init__(broker_url, "rpc://", port)

    def store_raw(self, source, task_id, text):
        with self.consumer() as connection, connection.channel() as channel:
            channel.basic_publish(
                channel.prepare_message(
                    text,
                    content_type="application/json",
                    content_encoding="utf-8",
                    properties={"correlation_id": task_id},
                ),
                exchange="",
                routing_key=source.reply_to,
            )


class NativeAmqpParts(AmqpParts):
    """The same, by the client's own implementation."""

    native = True
    # One queue has the replies of all tasks; the receiver drops what nobody waits for.
    forgets = False


class MemoryParts(Parts):
    """What is shipped for users' tests."""

    native = True
    has_passwords = False

    def __init__(self) -> None:
        super().__init__("memory://", "cache+memory://")
        self.transport = MemoryTransport()
        self._taken: set[int] = set()

    def open(self, receiver=None, *, publish_timeout=10.0, app=None):
        setup = Setup(app or self.app(), reactor, publish_timeout)
        halves = self.transport.publisher(setup), self.transport.results(setup, receiver or Receiver())
        self._opened.extend(halves)
        return halves

    def take(self, queue, count=1, timeout=10.0):
        waiting = [
            one
            for one in self.transport.messages
            if id(one) not in self._taken and self.transport.queue_of(one) == queue
        ]
        if len(waiting) < count:
            raise TimeoutError
        self._taken.update(id(one) for one in waiting[:count])
        names = ("content_type", "content_encoding")
        return [
            SimpleNamespace(
                body=one.body,
                headers=one.headers,
                properties=one.properties,
                **{name: one.properties[name] for name in names},
            )
            for one in waiting[:count]
        ]

    def store(self, source, task_id, result, state="SUCCESS", *, worker=None):
        request = Context(id=task_id, correlation_id=task_id)
        self.transport.worker.backend.store_result(task_id, result, state, request=request)

    def store_raw(self, source, task_id, text):
        self.transport.stored(task_id, text.encode())

    def take_away(self):
        self.transport.go_away()

    def give_back(self):
        self.transport.come_back()


IMPLEMENTATIONS: dict[str, type[Parts]] = {
    "memory": MemoryParts,
    "filesystem, file": FilesystemParts,
    "filesystem, sqlite": SqlParts,
    "redis, threads": RedisParts,
    "redis, native": NativeRedisParts,
    "amqp, threads": AmqpParts,
    "amqp, native": NativeAmqpParts,
}


def make_parts(name: str, request, tmp_path) -> Parts:
    """The parts of an implementation; servers are those of the run's fixtures."""
    kind: Any = IMPLEMENTATIONS[name]
    if kind is MemoryParts:
        return kind()
    if issubclass(kind, FilesystemParts):
        return kind(tmp_path)
    if issubclass(kind, RedisParts):
        return kind(request.getfixturevalue("redis_server"))
    return kind(request.getfixturevalue("broker_url"), request.getfixturevalue("rabbitmq").port)


def message(queue: str, number: int = 0, **changes: Any) -> OutgoingMessage:
    """A message as the encoder makes it, for a queue that it declares."""
    task_id = str(uuid.uuid4())
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": 0,
        "correlation_id": task_id,
        "reply_to": "nobody",
    }
    fields = {
        "body": json.dumps([[number, "grün"], {}, {}]).encode(),
        "properties": properties,
        "headers": {"id": task_id, "task": "taskapp.add", "number": number},
        "exchange": "",
        "routing_key": queue,
        "declare": (kombu.Queue(queue, kombu.Exchange(queue, "direct"), routing_key=queue),),
        "mandatory": True,
    }
    return OutgoingMessage(**{**fields, **changes})


def descriptors() -> set[str]:
    """The open file descriptors of this process."""
    # The last one listed may be that of the listing itself, which is gone afterwards.
    return {entry.name for entry in list(Path("/proc/self/fd").iterdir()) if entry.is_symlink()}
