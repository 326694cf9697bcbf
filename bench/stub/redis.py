"""Tasks from a list in Redis, and results in Redis, in as few round trips as there can be."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import hiredis

__all__ = ["RedisReplies", "RedisTasks"]

#: Tasks that are taken at once.
_BATCH = 500
#: Seconds that results are kept, as `tests.support.taskapp` has it.
_KEPT = 600


class RedisTasks:
    """Takes messages from the list ``celery``."""

    def __init__(self, url: str) -> None:
        self._connection = _Connection(url)

    def receive(self) -> list[tuple[str, str, bytes]]:
        """Wait for messages: the id of the task, nothing, and the body of each."""
        taken = self._connection.ask([("BLMPOP", 0, 1, "celery", "RIGHT", "COUNT", _BATCH)])[0]
        tasks = []
        for text in taken[1]:
            message = json.loads(text)
            tasks.append((message["headers"]["id"], "", base64.b64decode(message["body"])))
        return tasks


class RedisReplies:
    """Stores results and publishes them, as Celery's backend does."""

    def __init__(self, url: str) -> None:
        self._connection = _Connection(url)

    def send(self, answers: Iterable[tuple[str, str, bytes]]) -> None:
        """Store the bodies of results under their tasks' ids."""
        commands: list[tuple[Any, ...]] = []
        for task_id, _, body in answers:
            key = f"celery-task-meta-{task_id}"
            commands += (("SETEX", key, _KEPT, body), ("PUBLISH", key, body))
        self._connection.ask(commands)


class _Connection:
    def __init__(self, url: str) -> None:
        server = urlsplit(url)
        self._socket = socket.create_connection((server.hostname, server.port))
        self._reader = hiredis.Reader()
        self.ask([("SELECT", server.path.strip("/") or "0")])

    def ask(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send commands at once, and wait for all replies."""
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            # RESP 2 knows no booleans: this is a reply that is not complete.
            if reply is False:
                received = self._socket.recv(1 << 18)
                if not received:
                    raise ConnectionError("Redis has closed the connection")
                self._reader.feed(received)
            elif isinstance(reply, Exception):
                raise reply
            else:
                replies.append(reply)
        return replies
