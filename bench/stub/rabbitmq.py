"""Tasks from a RabbitMQ queue, and replies to reply queues.

py-amqp opens the connections. The frames are read and written here, since py-amqp would take as long for a
message as the client that is measured. Their layout is that of AMQP 0-9-1, section 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from kombu import Connection, Exchange, Queue

__all__ = ["RabbitMQReplies", "RabbitMQTasks"]

#: Type, channel and size of a frame's payload, which an octet ends.
_FRAME = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME_END = b"\xce"

#: Class, weight, size of the body, and which properties follow.
_CONTENT = struct.Struct(">HHQH")
_BASIC = 60
_PUBLISH = 40
_TYPE, _ENCODING, _HEADERS, _MODE, _PRIORITY, _CORRELATION_ID, _REPLY_TO = (
    1 << bit for bit in range(15, 8, -1)
)


class RabbitMQTasks:
    """Consumes the queue ``celery`` without acknowledgements."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(url, heartbeat=0)
        channel = self._connection.default_channel
        queue = Queue("celery", Exchange("celery", "direct"), routing_key="celery")(channel)
        queue.declare()
        queue.purge()
        queue.consume("bench", no_ack=True)
        self._socket = _socket(self._connection)
        self._data = b""
        self._task = ("", "")

    def receive(self) -> list[tuple[str, str, bytes]]:
        """Wait for messages: the id of the task, its reply queue, and the body of each."""
        received = self._socket.recv(1 << 18)
        if not received:
            raise ConnectionError("RabbitMQ has closed the connection")
        data = self._data + received
        tasks = []
        at = 0
        while len(data) - at > _FRAME.size:
            kind, _, size = _FRAME.unpack_from(data, at)
            begin, end = at + _FRAME.size, at + _FRAME.size + size
            if len(data) <= end:
                break
            if kind == _HEADER:
                self._task = _names(data, begin)
            elif kind == _BODY:
                # The bodies of the bench fit into one frame.
                tasks.append((*self._task, data[begin:end]))
            at = end + len(_FRAME_END)
        self._data = data[at:]
        return tasks


class RabbitMQReplies:
    """Publishes replies without confirmation."""

    def __init__(self, url: str) -> None:
        # A connection of its own: where one does both, the broker stops reading while we do not.
        self._connection = Connection(url, heartbeat=0)
        self._channel: int = self._connection.default_channel.channel_id
        self._socket = _socket(self._connection)

    def send(self, answers: Iterable[tuple[str, str, bytes]]) -> None:
        """Publish the bodies of results, each with its task's id to its reply queue."""
        frames: list[bytes] = []
        for task_id, reply_to, body in answers:
            method = struct.pack(">HHH", _BASIC, _PUBLISH, 0) + _short("") + _short(reply_to) + b"\0"
            which = _TYPE | _ENCODING | _MODE | _CORRELATION_ID
            content = (
                _CONTENT.pack(_BASIC, 0, len(body), which) + _short("application/json") + _short("utf-8")
            )
            frames += (
                self._frame(_METHOD, method),
                self._frame(_HEADER, content + b"\1" + _short(task_id)),
                self._frame(_BODY, body),
            )
        self._socket.sendall(b"".join(frames))

    def _frame(self, kind: int, payload: bytes) -> bytes:
        return _FRAME.pack(kind, self._channel, len(payload)) + payload + _FRAME_END


def _socket(connection: Connection) -> Any:
    found = connection.connection.transport.sock
    found.settimeout(None)
    return found


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _names(data: bytes, at: int) -> tuple[str, str]:
    """The correlation id and the reply queue in a content header."""
    which: int = _CONTENT.unpack_from(data, at)[3]
    at += _CONTENT.size
    found = {_CORRELATION_ID: "", _REPLY_TO: ""}
    for name in (_TYPE, _ENCODING, _HEADERS, _MODE, _PRIORITY, _CORRELATION_ID, _REPLY_TO):
        if not which & name:
            continue
        if name == _HEADERS:
            at += 4 + struct.unpack_from(">I", data, at)[0]
        elif name in {_MODE, _PRIORITY}:
            at += 1
        else:
            end = at + 1 + data[at]
            found[name] = data[at + 1 : end].decode()
            at = end
    return found[_CORRELATION_ID], found[_REPLY_TO]
