"""Finds the transports that serve an application's broker and result backend.

A transport is imported when it is needed: a process without AMQP has no pika, one without threads
none of Celery's consumers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from celery.app.backends import BACKEND_ALIASES
from celery.utils.imports import load_extension_class_names
from kombu.transport import TRANSPORT_ALIASES

from twistedcelery.errors import ConfigurationError, did_you_mean
from twistedcelery.transports.interface import (
    Publisher,
    ReplyReceiver,
    ResultSource,
    ResultStore,
    Setup,
    Subscriber,
    Transport,
)
from twistedcelery.transports.no_results import NoResults

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["CombinedTransport", "find", "register"]


@dataclass(frozen=True, slots=True)
class _Registration:
    load: Callable[[], Transport]
    brokers: frozenset[str]
    backends: frozenset[str]
    serves: Callable[[Celery, str], bool]


_registrations: list[_Registration] = []

_REDIS = ("redis", "rediss", "sentinel")


def register(
    load: Callable[[], Transport],
    *,
    brokers: Iterable[str] = (),
    backends: Iterable[str] = (),
    serves: Callable[[Celery, str], bool] = lambda app, setting: True,
) -> None:
    """Have a transport serve brokers and result backends, by the schemes of their URLs.

    Of several transports for a scheme, the one that was registered last is asked first.

    :param load: imports and makes the transport
    :param brokers: schemes of ``broker_url``, such as ``"amqp"``
    :param backends: schemes of ``result_backend``; ``"rpc"`` counts where the transport serves the
        broker too, since such results come over the broker
    :param serves: whether the transport can serve an application: called with it and the name of the
        setting, ``"broker_write_url"``, ``"broker_read_url"`` or ``"result_backend"``
    """
    _registrations.insert(0, _Registration(load, frozenset(brokers), frozenset(backends), serves))


def find(app: Celery, choice: str | Transport) -> Transport:
    """Find what serves an application.

    :param choice: as ``transport`` of `twistedcelery.TwistedCelery`
    :raises ConfigurationError: for a choice that there is not
    """
    if isinstance(choice, Transport):
        return choice
    if choice not in ("auto", "threads"):
        raise ConfigurationError(
            f"transport is {choice!r}; accepted are 'auto', 'threads', or a "
            "twistedcelery.transports.interface.Transport"
        )
    native = choice == "auto"
    return CombinedTransport(
        writer=_of_broker(app, "broker_write_url", native),
        reader=_of_broker(app, "broker_read_url", native),
        backend=_of_backend(app, native),
    )


class CombinedTransport(Transport):
    """Different transports for the parts of one client.

    :param writer: makes the publisher
    :param reader: makes the subscriber
    :param backend: makes the result source and the result store; ``None``: the application has no
        result backend
    """

    def __init__(self, *, writer: Transport, reader: Transport, backend: Transport | None) -> None:
        self._writer = writer
        self._reader = reader
        self._backend = backend

    def publisher(self, setup: Setup) -> Publisher:
        """As of the writer."""
        return self._writer.publisher(setup)

    def subscriber(self, setup: Setup) -> Subscriber:
        """As of the reader."""
        return self._reader.subscriber(setup)

    def results(self, setup: Setup, receiver: ReplyReceiver) -> ResultSource:
        """As of the backend."""
        return NoResults() if self._backend is None else self._backend.results(setup, receiver)

    def store(self, setup: Setup) -> ResultStore | None:
        """As of the backend."""
        return None if self._backend is None else self._backend.store(setup)


def _of_broker(app: Celery, setting: str, native: bool) -> Transport:
    scheme = _broker_scheme(app, setting)
    _check_broker(scheme)
    _check_extra(setting, scheme)
    for one in _registrations if native else ():
        if scheme in one.brokers and one.serves(app, setting):
            return one.load()
    return _load_threads()


def _of_backend(app: Celery, native: bool) -> Transport | None:
    backend = _backend(app)
    # An application may name a class instead of a URL.
    scheme = _scheme(backend) if isinstance(backend, str) else backend
    if scheme in (None, "disabled"):
        return None
    _check_backend(app, scheme)
    _check_extra("result_backend", scheme)
    for one in _registrations if native else ():
        if scheme in one.backends and _serves_backend(one, app, scheme):
            return one.load()
    return _load_threads()


def _serves_backend(one: _Registration, app: Celery, scheme: str) -> bool:
    if scheme == "rpc":
        setting = "broker_read_url"
        return _broker_scheme(app, setting) in one.brokers and one.serves(app, setting)
    return one.serves(app, "result_backend")


def _backend(app: Celery) -> Any:
    return app.backend_cls or app.conf.result_backend


def _broker_scheme(app: Celery, setting: str) -> str:
    """Which of kombu's transports serves a broker, as kombu decides it."""
    url = getattr(app.conf, setting)
    if not isinstance(url, str):
        # A failover list; kombu takes the transport of its first broker for all.
        url = next(iter(url or ()), None)
    transport: str | None = app.conf.broker_transport
    if url is not None and "://" in url:
        transport = _scheme(url)
    return transport or "amqp"


def _check_broker(scheme: str) -> None:
    """Kombu would say so at the first message only, in words that name no setting."""
    known = {*TRANSPORT_ALIASES, *(name for one in _registrations for name in one.brokers)}
    if scheme in known or ":" in scheme or "." in scheme:
        return
    hint = did_you_mean(scheme, known) or f"; kombu has {', '.join(sorted(TRANSPORT_ALIASES))}"
    raise ConfigurationError(f"broker_url has the unknown scheme {scheme!r}{hint}")


def _check_backend(app: Celery, scheme: Any) -> None:
    """Celery would say so when it makes the backend, which is in a thread."""
    if not isinstance(scheme, str) or ":" in scheme or "." in scheme:
        # A class, or the path of one.
        return
    known = {
        *BACKEND_ALIASES,
        *app.loader.override_backends,
        *(name for name, _ in load_extension_class_names("celery.result_backends")),
        *(name for one in _registrations for name in one.backends),
    }
    if scheme not in known:
        hint = did_you_mean(scheme, known) or f"; Celery has {', '.join(sorted(BACKEND_ALIASES))}"
        raise ConfigurationError(f"result_backend has the unknown scheme {scheme!r}{hint}")


def _check_extra(setting: str, scheme: Any) -> None:
    """Redis without redis-py fails in kombu and Celery with an error that does not say what is missing."""
    if isinstance(scheme, str) and scheme in _REDIS and find_spec("redis") is None:
        raise ConfigurationError(
            f"{setting} has the scheme {scheme!r}, which needs: pip install 'twistedcelery[redis]'"
        )


def _scheme(url: str) -> str | None:
    """``redis`` of ``redis://...``, of ``redis+socket://...`` and of ``redis`` alone."""
    return url.partition("://")[0].partition("+")[0] or None


def _load_threads() -> Transport:
    return _load("threads", "ThreadsTransport")


def _load(folder: str, name: str) -> Transport:
    transport: Transport = getattr(import_module(f"twistedcelery.transports.{folder}"), name)()
    return transport


def _redis_serves(app: Celery, setting: str) -> bool:
    """Whether the extra is installed, and nothing asks for more.

    A credential provider of redis-py's may block for as long as it likes, so it is for the threads.
    """
    if setting == "result_backend":
        url, provider = _backend(app), app.conf.get("redis_backend_credential_provider")
    else:
        url, provider = getattr(app.conf, setting), None
    asks_for_more = provider or "credential_provider=" in str(url)
    return not asks_for_more and find_spec("hiredis") is not None and find_spec("redis") is not None


register(
    lambda: _load("amqp", "AmqpTransport"),
    brokers=("amqp", "amqps", "pyamqp", "librabbitmq"),
    backends=("rpc",),
)
register(
    lambda: _load("redis", "RedisTransport"),
    brokers=_REDIS,
    backends=_REDIS,
    serves=_redis_serves,
)
