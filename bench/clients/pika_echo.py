"""The floor: pika's Twisted adapter, and nothing that a client of tasks would need.

The same task message is sent again and again but for its correlation id, with no confirmation, and
the body of a reply is not decoded.
"""

from __future__ import annotations

import uuid
from typing import Any

from kombu.serialization import dumps
from kombu.utils.url import parse_url
from pika import BasicProperties, ConnectionParameters, PlainCredentials
from pika.adapters.twisted_connection import TwistedProtocolConnection
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from bench.calls import measure_calls
from bench.measurement import Measurement
from bench.reactor import run_in_reactor
from bench.workload import TASK, Workload, Y
from tests.support.taskapp import create_app

__all__ = ["run"]


def run(workload: Workload) -> Measurement:
    """Make the calls and measure them."""

    async def main(reactor: Any) -> Measurement:
        echo = await _Echo.connect(reactor, workload.broker)
        measured = await measure_calls(workload, lambda _: echo.call(), lambda _: True)
        await echo.disconnect()
        return measured

    return run_in_reactor(main)


class _Echo:
    """One connection, one channel; replies are matched by their correlation id."""

    def __init__(self, protocol: TwistedProtocolConnection, channel: Any, reply_queue: str) -> None:
        self._protocol = protocol
        # The adapter's own publish and consume make a Deferred for each message, which costs more
        # than the message: a floor has plain callbacks.
        self._channel = channel._channel  # noqa: SLF001
        self._reply_queue = reply_queue
        self._waiting: dict[str, Deferred[bool]] = {}
        app = create_app("memory://", "cache+memory://")
        message = app.amqp.create_task_message(str(uuid.uuid4()), TASK, (0, Y))
        self._headers = message.headers
        self._content_type, self._content_encoding, body = dumps(message.body, "json")
        self._body = body.encode()
        self._channel.basic_consume(reply_queue, self._replied, auto_ack=True)

    @classmethod
    async def connect(cls, reactor: Any, broker: str) -> _Echo:
        """Connect, and declare a reply queue that goes with the connection."""
        url = parse_url(broker)
        parameters = ConnectionParameters(
            virtual_host=url["virtual_host"], credentials=PlainCredentials(url["userid"], url["password"])
        )
        endpoint = TCP4ClientEndpoint(reactor, url["hostname"], url["port"])
        protocol = TwistedProtocolConnection(parameters, custom_reactor=reactor)
        await connectProtocol(endpoint, protocol)
        await protocol.ready
        channel = await protocol.channel()
        declared = await channel.queue_declare(queue="", exclusive=True)
        return cls(protocol, channel, declared.method.queue)

    def call(self) -> Deferred[bool]:
        """Send the message once more.

        :return: fires with whether the reply says that the task succeeded
        """
        correlation_id = str(uuid.uuid4())
        waiting = self._waiting[correlation_id] = Deferred()
        self._channel.basic_publish(
            exchange="",
            routing_key="celery",
            body=self._body,
            properties=BasicProperties(
                content_type=self._content_type,
                content_encoding=self._content_encoding,
                headers=self._headers,
                delivery_mode=2,
                correlation_id=correlation_id,
                reply_to=self._reply_queue,
            ),
        )
        return waiting

    def _replied(self, _channel: Any, _method: Any, properties: BasicProperties, body: bytes) -> None:
        self._waiting.pop(properties.correlation_id).callback(b'"SUCCESS"' in body)

    async def disconnect(self) -> None:
        """Close the connection in good order."""
        self._protocol.close()
        await self._protocol.closed
