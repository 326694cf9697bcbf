"""Consumes queues in the subscribing thread, over one kombu connection that is made anew when it fails.

All of it blocks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

from kombu.messaging import Consumer
from twisted.logger import Logger

from twistedcelery._logging import RepeatedWarnings
from twistedcelery.errors import BrokerUnavailable, PublishError, PublishRejected
from twistedcelery.transports.interface import IncomingMessage
from twistedcelery.transports.threads.backoff import Backoff
from twistedcelery.transports.threads.broker import connect_once
from twistedcelery.transports.threads.failures import Redactor, connect_error, declare_error
from twistedcelery.transports.threads.filesystem import WholeMessageChannel
from twistedcelery.transports.threads.thread import DedicatedThread

__all__ = ["QueueListener", "Subscribed"]

_log = Logger()

#: Seconds that a new subscription may have to wait while the thread waits for messages.
_WAIT = 0.1

#: Messages taken in before other work gets its turn.
_MESSAGES_AT_ONCE = 100

#: Seconds between looking after the heartbeats of a connection.
_HEARTBEAT_EVERY = 1.0


class Subscribed(Protocol):
    """A subscription as the thread sees it. The methods are called on the reactor's thread.

    :ivar queue: a kombu ``Queue``, not bound to a channel
    """

    queue: Any

    def consuming(self) -> None: ...

    def received(self, message: IncomingMessage) -> None: ...

    def interrupted(self, reason: BrokerUnavailable) -> None: ...

    def ended(self, error: PublishError) -> None: ...


class QueueListener:
    """Consumes the queues of all subscriptions. Everything here runs in the subscribing thread.

    :param app: the Celery application, whose ``broker_read_url`` and options are used
    :param thread: where this runs
    """

    def __init__(self, app: Any, thread: DedicatedThread) -> None:
        self._app = app
        self._thread = thread
        self._redactor = Redactor(app)
        # Each subscription with its consumer, once it has one.
        self._consumers: dict[Subscribed, Any] = {}
        self._has_consumed: set[Subscribed] = set()
        self._kombu: Any = None
        self._is_amqp = False
        self._polling_interval: float | None = None
        self._backoff = Backoff(time.monotonic)
        self._warnings = RepeatedWarnings(_log, time.monotonic)
        self._next_heartbeat = 0.0
        self._taken_in = 0

    def add(self, subscription: Subscribed) -> None:
        """Begin with a subscription."""
        self._consumers[subscription] = None

    def remove(self, subscription: Subscribed) -> None:
        """Stop with a subscription, and delete its queue where it is ``auto_delete``."""
        consumer: Any = self._consumers.pop(subscription, None)
        self._has_consumed.discard(subscription)
        if consumer is not None:
            with contextlib.suppress(Exception):  # with its connection the queue goes, too, or it expires
                consumer.cancel()
                if subscription.queue.auto_delete:
                    for queue in consumer.queues:
                        queue.delete()
                consumer.channel.close()
        if not self._consumers:
            # Its heartbeats are not looked after any more.
            self._release()

    def purge(self, queues: Sequence[Any]) -> int:
        """Discard all messages of queues, on a connection of their own.

        :raises PublishError: where that is not possible
        """
        connection = self._app.connection_for_read()
        try:
            try:
                connect_once(connection)
            except Exception as error:
                translated = connect_error(error, self._redactor)
                raise translated from translated.__cause__
            channel = connection.channel()
            purged = 0
            for queue in queues:
                bound = queue(channel)
                bound.declare()
                purged += bound.purge() or 0
        except PublishError:
            raise
        except Exception as error:
            translated = declare_error(error, connection, self._redactor)
            raise translated from translated.__cause__
        finally:
            with contextlib.suppress(Exception):  # the outcome is known already
                connection.release()
        return purged

    def step(self) -> float | None:
        """Consume what is not consumed yet, and take in messages.

        :return: seconds until there is something to do again; ``None``: not before the next job
        """
        if not self._consumers:
            return None
        if self._kombu is None and self._backoff.remaining:
            return self._backoff.remaining
        try:
            self._connect()
            begun = self._consume()
            self._drain()
            self._look_after_heartbeats()
        except Exception as error:
            self._failed(error)
            return self._backoff.remaining
        self._backoff.succeeded()
        self._warnings.reset()
        for subscription in begun:
            # Redis subscribes with the first look for messages.
            self._has_consumed.add(subscription)
            self._thread.post(subscription.consuming)
        return self._polling_interval or 0.0

    def close(self) -> None:
        """Let go of everything."""
        for subscription in list(self._consumers):
            self.remove(subscription)

    # The connection

    def _connect(self) -> None:
        if self._kombu is not None:
            return
        connection = self._app.connection_for_read()
        transport = connection.transport
        self._is_amqp = transport.driver_name == "py-amqp"
        if transport.driver_type == "filesystem":
            transport.Channel = WholeMessageChannel
        self._kombu = connection
        # Those that ask again and again would sleep; this thread has jobs.
        self._polling_interval = getattr(transport, "polling_interval", None)
        connect_once(connection)

    def _consume(self) -> list[Subscribed]:
        begun = []
        for subscription in [one for one, consumer in self._consumers.items() if consumer is None]:
            # A channel each: brokers close the one on which they refuse something.
            channel = self._kombu.channel()
            try:
                consumer = Consumer(
                    channel,
                    [subscription.queue],
                    no_ack=True,
                    on_message=_Receiver(self, subscription),
                    on_decode_error=_Receiver(self, subscription),
                )
                consumer.consume()
            except Exception as error:
                refusal = declare_error(error, self._kombu, self._redactor)
                final = isinstance(refusal, PublishRejected) or isinstance(error, NotImplementedError)
                if not final or subscription in self._has_consumed:
                    raise
                del self._consumers[subscription]
                self._thread.post(subscription.ended, refusal)
                continue
            self._consumers[subscription] = consumer
            begun.append(subscription)
        return begun

    def _drain(self) -> None:
        polls = self._polling_interval is not None
        wait = 0.0 if polls or self._thread.has_jobs() else _WAIT
        for _ in range(_MESSAGES_AT_ONCE):
            if not self._consumers:
                return
            before = self._taken_in
            with contextlib.suppress(TimeoutError):  # there was nothing
                self._kombu.drain_events(timeout=wait)
            if self._taken_in == before:
                break
            wait = 0.0

    def _look_after_heartbeats(self) -> None:
        if self._is_amqp and time.monotonic() >= self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + _HEARTBEAT_EVERY
            self._kombu.heartbeat_check()

    def _failed(self, error: Exception) -> None:
        reason = connect_error(error, self._redactor)
        assert isinstance(reason, BrokerUnavailable)
        self._backoff.failed()
        text = str(reason).rstrip(".")
        self._warnings.warn(f"no connection for events and replies: {text}. The client keeps trying.")
        self._discard()
        for subscription in self._consumers:
            self._consumers[subscription] = None
            self._thread.post(subscription.interrupted, reason)

    def _discard(self) -> None:
        connection, self._kombu = self._kombu, None
        if connection is None:
            return
        with contextlib.suppress(Exception):  # it failed already, and that was reported
            if self._is_amqp:
                connection.collect()
            else:
                # collect() of other transports sets a time limit for all new sockets of the process.
                connection.close()

    def _release(self) -> None:
        connection, self._kombu = self._kombu, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it is not needed any more
                connection.release()

    def take_in(self, subscription: Subscribed, message: Any) -> None:
        """A message came; its user decides whether to decode it."""
        self._taken_in += 1
        self._thread.post(
            subscription.received,
            IncomingMessage(message.body, message.content_type, message.content_encoding, message.headers),
        )


class _Receiver:
    """Takes in the messages that kombu calls it with."""

    def __init__(self, listener: QueueListener, subscription: Subscribed) -> None:
        self._listener = listener
        self._subscription = subscription

    def __call__(self, message: Any, error: Exception | None = None) -> None:
        """:param error: where kombu could not even decompress it; then decoding fails as well"""
        self._listener.take_in(self._subscription, message)
