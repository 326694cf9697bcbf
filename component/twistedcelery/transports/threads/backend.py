"""Makes a result backend for one client, by Celery's own code.

It is never the application's, which other threads of the process may be using.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from celery.app.backends import by_url
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.rpc import RPCBackend
from celery.exceptions import ImproperlyConfigured
from kombu.utils.encoding import ensure_bytes

from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.decoding import FailureBackend, Undecodable
from twistedcelery.transports.threads.broker import connect_once
from twistedcelery.transports.threads.failures import Redactor

__all__ = ["OwnBackend"]


class OwnBackend:
    """Makes result backends like the one that an application has.

    :param app: the Celery application
    :param reply_to: the reply queue that an ``rpc://`` backend is to consume
    :raises ConfigurationError: no such backend, or its driver is missing
    """

    def __init__(self, app: Any, reply_to: str) -> None:
        self._app = app
        self._reply_to = reply_to
        with self._explained(Exception):
            self._class, self._url = by_url(app.backend_cls or app.conf.result_backend, app.loader)
        #: Whether it announces new states, so that it need not be polled.
        self.is_pushed = issubclass(self._class, AsyncBackendMixin)
        #: Whether it is Celery's ``rpc://``.
        self.is_rpc = issubclass(self._class, RPCBackend)
        if self.is_pushed:
            self._class = _tamed(self._class, is_rpc=self.is_rpc)
        elif hasattr(self._class, "_decode_stored_result"):
            self._class = type(self._class.__name__, (_SqlBackend, self._class), {})
        self._class = type(self._class.__name__, (FailureBackend, self._class), {})

    def make(self) -> Any:
        """Make a backend. This may block.

        :raises ConfigurationError: it cannot work as it is configured
        """
        with self._explained(ValueError, TypeError, AttributeError, LookupError, ImportError, AssertionError):
            backend = self._class(app=self._app, url=self._url)
        # The client retries and reports; Celery would retry silently, by default for ever.
        backend.always_retry = False
        backend.retry_policy = {**backend.retry_policy, "max_retries": 0}
        if self.is_rpc:
            backend.oid = self._reply_to
        return backend

    @contextlib.contextmanager
    def _explained(self, *expected: type[Exception]) -> Iterator[None]:
        redactor = Redactor(self._app)
        try:
            yield
        except Exception as error:
            if not isinstance(error, (*expected, *_configuration_errors())):
                raise
            raise ConfigurationError(
                f"the result backend {redactor.redact(str(self._app.conf.result_backend))!r} cannot be used; "
                f"check result_backend and that its driver is installed: {redactor.text(error)}"
            ) from redactor.cause(error)


def _configuration_errors() -> tuple[type[Exception], ...]:
    try:
        from sqlalchemy.exc import ArgumentError
    except ImportError:
        return (ImproperlyConfigured,)
    return ImproperlyConfigured, ArgumentError


def _tamed(cls: type[Any], *, is_rpc: bool) -> type[Any]:
    """A backend class whose consumer leaves reconnecting to us."""
    consumer_bases = (_ReplyQueueConsumer if is_rpc else _Consumer, cls.ResultConsumer)
    backend_bases = (_ReplyQueueBackend if is_rpc else _Backend, cls)
    consumer = type(cls.ResultConsumer.__name__, consumer_bases, {})
    return type(cls.__name__, backend_bases, {"ResultConsumer": consumer})


class _Backend:
    """A backend of one of the databases that publish each result."""

    def decode_result(self, payload: Any) -> Any:
        try:
            return super().decode_result(payload)  # type: ignore[misc]  # of the class mixed into
        except Exception as error:
            # The consumer would take it, a KeyError for one, for a lost connection.
            return Undecodable(error)


class _SqlBackend:
    """A database backend that decodes what the application accepts, and nothing else.

    Celery's own unpickles a value that it cannot decode and that looks like a pickle, though
    ``result_accept_content`` does not list pickle.
    """

    def _decode_stored_result(self, payload: Any) -> Any:
        return None if payload is None else self.decode(ensure_bytes(payload))  # type: ignore[attr-defined]


class _Consumer:
    """A result consumer that gives up its connection at the first error, instead of sleeping on it."""

    @contextlib.contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        """Nothing: the connection's error comes through."""
        yield

    def drop(self) -> None:
        """Let go of a connection that failed."""
        self.stop()

    def stop(self) -> None:
        """Close the connection."""
        super().stop()  # type: ignore[misc]  # of the class mixed into
        backend: Any = self.backend  # type: ignore[attr-defined]  # of the class mixed into
        backend.client.connection_pool.disconnect()


class _ReplyQueueBackend:
    """``rpc://`` with a queue that outlives a lost connection: Celery's own goes with its consumer."""

    @property
    def binding(self) -> Any:
        queue = super().binding  # type: ignore[misc]  # of the class mixed into
        queue.auto_delete = False
        # It is not before Celery 5.7, and RabbitMQ 4.3 refuses such queues.
        queue.durable = True
        return queue


class _ReplyQueueConsumer(_Consumer):
    """The consumer of ``rpc://``."""

    _connection: Any
    _consumer: Any

    def start(self, initial_task_id: str, no_ack: bool = True, **options: Any) -> None:
        """Connect, and consume the reply queue."""
        with self.app.connection_for_write() as probe:  # type: ignore[attr-defined]  # of the class mixed into
            # What follows would try for ever if there were no broker.
            connect_once(probe)
        super().start(initial_task_id, no_ack=no_ack, **options)  # type: ignore[misc]

    def cancel_for(self, task_id: str) -> None:
        """Nothing: the one queue serves all tasks."""

    def drop(self) -> None:
        """Let go of a connection that failed."""
        if self._connection is not None:
            self._connection.collect()

    def stop(self) -> None:
        """Delete the reply queue, and close the connection."""
        if self._consumer is None:
            return
        try:
            self._consumer.cancel()
            for queue in self._consumer.queues:
                queue.delete()
        finally:
            self._connection.release()
