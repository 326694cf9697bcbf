"""Which transport serves an application's broker, and which its result backend.

Whatever is not used is not imported: a process without AMQP has no pika, one without threads
none of Celery's consumers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.backends.base import DisabledBackend

from twistedcelery.appview import backend_class
from twistedcelery.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.transports.interface import Publisher, ReplyReceiver, ResultSource, ResultStore

__all__ = ["TRANSPORTS", "choose", "choose_store"]

#: What ``transport`` may be: native where there is a native one, or Celery's own code in threads.
TRANSPORTS = ("auto", "threads")

_AMQP = frozenset({"amqp", "amqps", "pyamqp", "librabbitmq"})


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


def choose_store(app: Celery, reactor: Any) -> ResultStore | None:
    """Make what answers questions about results; it does not connect before it is asked.

    :return: ``None`` where results are not kept: over ``rpc://``, and without a result backend
    """
    cls = backend_class(app)
    if issubclass(cls, DisabledBackend) or cls.__name__ == "RPCBackend":
        return None
    from twistedcelery.transports.threads.store import ThreadedStore

    return ThreadedStore(app, reactor)


def _publisher(app: Celery, reactor: Any, publish_timeout: float, native: bool) -> Publisher:
    if native and _is_amqp(app, app.conf.broker_write_url):
        from twistedcelery.transports import amqp

        return amqp.make_publisher(app, reactor, publish_timeout)
    from twistedcelery.transports.threads.publisher import ThreadedPublisher

    return ThreadedPublisher(app, reactor, publish_timeout)


def _results(app: Celery, reactor: Any, receiver: ReplyReceiver, native: bool) -> ResultSource:
    # An application may name a class instead of a URL.
    backend = app.backend_cls or app.conf.result_backend
    scheme = _scheme(backend) if isinstance(backend, str) else backend
    if scheme is None or scheme == "disabled":
        from twistedcelery.transports.no_results import NoResults

        return NoResults()
    if native and scheme == "rpc" and _is_amqp(app, app.conf.broker_read_url):
        from twistedcelery.transports import amqp

        return amqp.make_results(app, reactor, receiver)
    from twistedcelery.transports.threads.results import ThreadedResults

    return ThreadedResults(app, reactor, receiver)


def _is_amqp(app: Celery, url: Any) -> bool:
    """Whether a broker speaks AMQP 0-9-1, as kombu decides it."""
    if not isinstance(url, str):
        # A failover list; kombu takes the transport of its first broker for all.
        url = next(iter(url or ()), None)
    transport = app.conf.broker_transport
    if url is not None and "://" in url:
        transport = _scheme(url)
    return (transport or "amqp") in _AMQP


def _scheme(url: str) -> str | None:
    """``redis`` of ``redis://...``, of ``redis+socket://...`` and of ``redis`` alone."""
    return url.partition("://")[0].partition("+")[0] or None
