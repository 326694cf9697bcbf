"""The floor on Redis: the commands that a call needs, and nothing that a client of tasks would need.

The same message is pushed again and again but for its task's id; a result is not decoded.
"""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import urlsplit

import hiredis
from kombu import Connection
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from bench.calls import measure_calls
from bench.measurement import Measurement
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""

    async def main(reactor: Any) -> Measurement:
        server = urlsplit(workload.broker)
        endpoint = TCP4ClientEndpoint(reactor, server.hostname, server.port)
        database = server.path.strip("/") or "0"
        publisher = await connectProtocol(endpoint, _Connection(database))
        subscriber = await connectProtocol(endpoint, _Connection(database))
        calls = _Raw(publisher, subscriber)
        measured = await measure_calls(workload, lambda _: calls.call(), lambda _: True)
        publisher.transport.loseConnection()
        subscriber.transport.loseConnection()
        return measured

    return run_in_reactor(main)


class _Raw:
    """A call is SUBSCRIBE, LPUSH, the message with the result, and UNSUBSCRIBE."""

    def __init__(self, publisher: _Connection, subscriber: _Connection) -> None:
        self._publisher = publisher
        self._subscriber = subscriber
        subscriber.waiting = self._waiting = {}
        self._task_id = str(uuid.uuid4()).encode()
        self._message = _message(self._task_id.decode())

    def call(self) -> Deferred[bool]:
        """Send the message once more.

        :return: fires with whether the result says that the task succeeded
        """
        task_id = str(uuid.uuid4()).encode()
        channel = b"celery-task-meta-" + task_id
        waiting = self._waiting[channel] = Deferred()
        self._subscriber.send(b"SUBSCRIBE", channel)
        self._publisher.send(b"LPUSH", b"celery", self._message.replace(self._task_id, task_id))
        return waiting


class _Connection(Protocol):
    def __init__(self, database: str) -> None:
        self.waiting: dict[bytes, Deferred[bool]] = {}
        self._database = database
        self._reader = hiredis.Reader()

    def connectionMade(self) -> None:
        self.send("SELECT", self._database)

    def send(self, *command: Any) -> None:
        """Send a command whose reply nobody needs."""
        self.transport.write(hiredis.pack_command(command))

    def dataReceived(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if type(reply) is list and reply[0] == b"message":
                self.send(b"UNSUBSCRIBE", reply[1])
                self.waiting.pop(reply[1]).callback(b'"SUCCESS"' in reply[2])


def _message(task_id: str) -> bytes:
    """A task's message as kombu puts it into Redis: its transport in memory has the same."""
    app = create_app("memory://", "cache+memory://")
    with Connection("memory://") as connection:
        app.send_task(TASK, args=(0, Y), task_id=task_id, connection=connection)
        return json.dumps(connection.default_channel.queues["celery"].get()).encode()
