"""Which transport serves an application's broker, and which its result backend.

Whatever is not used is not imported: a process without AMQP has no pika, one without threads
none of Celery's consumers.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from celery.backends.base import DisabledBackend

from twistedcelery.appview import backend_class
from twistedcelery.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.transports.interface import (
        Publisher,
        ReplyReceiver,
        ResultSource,
        ResultStore,
        Subscriber,
    )

__all__ = ["TRANSPORTS", "choose", "choose_store", "choose_subscriber"]

#: What ``transport`` may be: native where there is a native one, or Celery's own code in threads.
TRANSPORTS = ("auto", "threads")

_AMQP = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})
_REDIS = frozenset({"redis", "rediss", "sentinel"})


def choose(
    app: Celery, reactor: Any, receiver: ReplyReceiver, *, publish_timeout: float, transport: str = "auto"
) -> tuple[Publisher, ResultSource]:
    """Make the two halves of the transport. Neither connects before it is used.

    :param app: the configured Celery application
    :param receiver: is told of states and results
    :param publish_timeout: seconds for the broker to take a message, connecting included
    :param transport: one of `TRANSPORTS`
    :raises ConfigurationError: for any other ``transport``
    """
    if transport not in TRANSPORTS:
        raise ConfigurationError(
            f"transport is {transport!r}; accepted are {', '.join(map(repr, TRANSPORTS))}"
        )
    native = transport == "auto"
    return (
        _publisher(app, reactor, publish_timeout, native),
        _results(app, reactor, receiver, native),
    )


def choose_subscriber(app: Celery, reactor: Any, *, timeout: float, transport: str = "auto") -> Subscriber:
    """Make what consumes further queues. It does not connect before it is used.

    :param timeout: seconds to wait for a connection, where an answer is waited for
    :param transport: one of `TRANSPORTS`, which `choose` has checked
    """
    if transport == "auto" and _broker_scheme(app, app.conf.broker_read_url) in _AMQP:
        from twistedcelery.transports import amqp

        return amqp.make_subscriber(app, reactor, timeout)
    if transport == "auto" and _is_redis(app, app.conf.broker_read_url):
        from twistedcelery.transports import redis

        return redis.make_subscriber(app, reactor, timeout)
    from twistedcelery.transports.threads.subscriber import ThreadedSubscriber

    return ThreadedSubscriber(app, reactor)


def choose_store(app: Celery, reactor: Any, *, timeout: float, transport: str = "auto") -> ResultStore | None:
    """Make what answers questions about results; it does not connect before it is asked.

    :param timeout: seconds to wait for an answer, where Celery's code does not decide it
    :param transport: one of `TRANSPORTS`, which `choose` has checked
    :return: ``None`` where results are not kept: over ``rpc://``, and without a result backend
    """
    cls = backend_class(app)
    if issubclass(cls, DisabledBackend) or cls.__name__ == "RPCBackend":
        return None
    if transport == "auto" and _keeps_in_redis(app):
        from twistedcelery.transports import redis

        return redis.make_store(app, reactor, timeout)
    from twistedcelery.transports.threads.store import ThreadedStore

    return ThreadedStore(app, reactor)


def _publisher(app: Celery, reactor: Any, publish_timeout: float, native: bool) -> Publisher:
    if native and _is_amqp(app, app.conf.broker_write_url):
        from twistedcelery.transports import amqp

        return amqp.make_publisher(app, reactor, publish_timeout)
    if native and _is_redis(app, app.conf.broker_write_url):
        from twistedcelery.transports import redis

        return redis.make_publisher(app, reactor, publish_timeout)
    from twistedcelery.transports.threads.publisher import ThreadedPublisher

    return ThreadedPublisher(app, reactor, publish_timeout)


def _results(app: Celery, reactor: Any, receiver: ReplyReceiver, native: bool) -> ResultSource:
    scheme = _backend_scheme(app)
    if scheme is None or scheme == "disabled":
        from twistedcelery.transports.no_results import NoResults

        return NoResults()
    if native and scheme == "rpc" and _broker_scheme(app, app.conf.broker_read_url) in _AMQP:
        from twistedcelery.transports import amqp

        return amqp.make_results(app, reactor, receiver)
    if native and _keeps_in_redis(app):
        from twistedcelery.transports import redis

        return redis.make_results(app, reactor, receiver)
    from twistedcelery.transports.threads.results import ThreadedResults

    return ThreadedResults(app, reactor, receiver)


def _backend_scheme(app: Celery) -> Any:
    """``redis`` and the like; ``None`` where there is no result backend."""
    # An application may name a class instead of a URL.
    backend = app.backend_cls or app.conf.result_backend
    return _scheme(backend) if isinstance(backend, str) else backend


def _keeps_in_redis(app: Celery) -> bool:
    """Whether the result backend is a Redis that the native client can serve."""
    backend = app.backend_cls or app.conf.result_backend
    provider = app.conf.get("redis_backend_credential_provider")
    return _backend_scheme(app) in _REDIS and _can_redis(backend, provider)


def _is_amqp(app: Celery, url: Any) -> bool:
    """Whether a broker speaks AMQP 0-9-1, as kombu decides it."""
    return _broker_scheme(app, url) in _AMQP


def _is_redis(app: Celery, url: Any) -> bool:
    """Whether a broker is a Redis that the native client can serve."""
    return _broker_scheme(app, url) in _REDIS and _can_redis(url)


def _broker_scheme(app: Celery, url: Any) -> str:
    """Which of kombu's transports serves a broker, as kombu decides it."""
    if not isinstance(url, str):
        # A failover list; kombu takes the transport of its first broker for all.
        url = next(iter(url or ()), None)
    transport: str | None = app.conf.broker_transport
    if url is not None and "://" in url:
        transport = _scheme(url)
    return transport or "amqp"


def _can_redis(url: Any, credential_provider: Any = None) -> bool:
    """Whether the native client can serve a Redis: its extra is installed, and nothing asks for more.

    A credential provider of redis-py's may block for as long as it likes, so it is for the threads.
    """
    asks_for_more = credential_provider or "credential_provider=" in str(url)
    return not asks_for_more and find_spec("txredisapi") is not None and find_spec("redis") is not None


def _scheme(url: str) -> str | None:
    """``redis`` of ``redis://...``, of ``redis+socket://...`` and of ``redis`` alone."""
    return url.partition("://")[0].partition("+")[0] or None
