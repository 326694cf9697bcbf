"""Sends serialised messages over a kombu connection. All of it blocks."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from kombu.common import maybe_declare

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import Unroutable
from twistedcelery.transports.threads.filesystem import SpoolFolder

__all__ = ["BrokerConnection", "connect_once"]

#: Seconds after which a connection that was not used is tried before a message is trusted to it.
_TRUSTED_FOR = 1.0


class BrokerConnection:
    """One connection to the application's broker, with one channel.

    Exceptions are kombu's and its drivers'; `Unroutable` is the only one of this package.

    :param app: the Celery application
    """

    def __init__(self, app: Any) -> None:
        self._kombu = app.connection_for_write()
        transport = self._kombu.get_transport_cls()
        self._is_amqp = transport.driver_name == "py-amqp"
        self._is_redis = transport.driver_type == "redis"
        if self._is_amqp:
            self._kombu.transport_options = {**self._kombu.transport_options, "confirm_publish": True}
        self._spool = (
            SpoolFolder(self._kombu.transport_options) if transport.driver_type == "filesystem" else None
        )
        self._channel: Any = None
        self._used_at = 0.0
        self._returned: Exception | None = None

    @property
    def channel_errors(self) -> tuple[type[Exception], ...]:
        """The driver raises these for something that the broker refuses."""
        errors: tuple[type[Exception], ...] = self._kombu.channel_errors
        return errors

    @property
    def connection_errors(self) -> tuple[type[Exception], ...]:
        """The driver raises these for a connection that failed."""
        errors: tuple[type[Exception], ...] = self._kombu.connection_errors
        return errors

    def open(self) -> None:
        """Connect where needed, to any of the application's brokers.

        A connection that is there already is tried first: one that the broker closed since the
        last message must be noticed now, while nothing is sent.
        """
        if self._channel is not None:
            if not self._is_alive():
                raise ConnectionResetError("the broker closed the connection")
            return
        if self._spool is not None:
            self._kombu.transport_options = {**self._kombu.transport_options, **self._spool.open()}
        connect_once(self._kombu)
        self._channel = self._kombu.channel()
        if self._is_amqp:
            self._channel.events["basic_return"].add(self._on_return)
        self._used_at = time.monotonic()

    def declare(self, entities: tuple[Any, ...]) -> None:
        """Declare queues and exchanges which this connection has not declared yet."""
        for entity in entities:
            maybe_declare(entity.bind(self._channel), self._channel)

    def send(self, message: OutgoingMessage, timeout: float) -> None:
        """Send a message, and wait until the broker has it as far as the driver can tell.

        :param timeout: seconds; only AMQP drivers take notice
        :raises Unroutable: no queue took a message that is ``mandatory``
        """
        channel = self._channel
        properties = dict(message.properties)
        content_encoding = properties.pop("content_encoding", None)
        if message.mandatory and not self._is_amqp and not self._has_route(message):
            raise Unroutable(
                f"no queue is bound to exchange {message.exchange!r} with routing key {message.routing_key!r}"
            )
        prepared = channel.prepare_message(
            message.body if self._is_amqp else message.body_for_kombu,
            priority=properties.pop("priority", 0),
            content_type=properties.pop("content_type", None),
            content_encoding=content_encoding,
            headers=dict(message.headers),
            properties=properties,
        )
        self._returned = None
        channel.basic_publish(
            prepared,
            exchange=message.exchange,
            routing_key=message.routing_key,
            mandatory=message.mandatory,
            immediate=False,
            timeout=timeout,
            confirm_timeout=timeout,
        )
        if self._spool is not None:
            self._spool.send()
        self._used_at = time.monotonic()
        if self._returned is not None:
            raise Unroutable(
                f"the broker has no queue for exchange {message.exchange!r} and routing key "
                f"{message.routing_key!r}"
            ) from self._returned

    def discard(self) -> None:
        """Drop a connection that failed, without a word to the broker."""
        self._channel = None
        if self._spool is not None:
            self._spool.close()
        with contextlib.suppress(Exception):  # it failed already, and that was reported
            if self._is_amqp:
                self._kombu.collect()
            else:
                # collect() of other transports sets a time limit for all new sockets of the process.
                self._kombu.close()

    def close(self) -> None:
        """Close in good order."""
        self._channel = None
        if self._spool is not None:
            self._spool.close()
        self._kombu.release()

    def _is_alive(self) -> bool:
        if self._is_amqp:
            with contextlib.suppress(TimeoutError):  # it said nothing
                # It may have said that it closes the connection.
                self._kombu.drain_events(timeout=0)
            return bool(self._kombu.connected)
        if self._is_redis and time.monotonic() - self._used_at > _TRUSTED_FOR:
            self._channel.client.ping()
        return True

    def _has_route(self, message: OutgoingMessage) -> bool:
        """Whether one of kombu's virtual transports has a queue for a message.

        They know no ``mandatory``, and store a message without a route in a queue that is never read.
        """
        exchange_type = getattr(self._channel, "typeof", None)
        if not message.exchange or exchange_type is None:
            # The default exchange creates the queue that it is asked for.
            return True
        exchange = exchange_type(message.exchange)
        if exchange.type == "fanout":
            return True
        table = self._channel.get_table(message.exchange)
        return bool(exchange.lookup(table, message.exchange, message.routing_key, None))

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned = error


def connect_once(connection: Any) -> None:
    """Connect a kombu connection, trying each broker of a failover list once.

    Raises what the driver raises.
    """
    connection.ensure_connection(
        max_retries=max(len(connection.alt) - 1, 0),
        interval_start=0,
        interval_step=0,
        interval_max=0,
        reraise_as_library_errors=False,
    )
