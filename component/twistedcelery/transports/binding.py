"""A client's hold on its transport: made early, used late, closed once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorCore

from twistedcelery._deferreds import close_all
from twistedcelery.encoding.app_view import backend_class
from twistedcelery.encoding.canvas import CanvasEncoder
from twistedcelery.encoding.encoder import Encoder
from twistedcelery.errors import ConfigurationError, Disconnected, TwistedCeleryError
from twistedcelery.transports.interface import ReplyReceiver, ResultSource, Setup, Transport
from twistedcelery.transports.registry import find
from twistedcelery.transports.urls import check_urls

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.transports.interface import ResultStore, Subscriber

__all__ = ["Binding", "BoundTransport", "check_settings"]


class BoundTransport:
    """A transport's parts for one client, and what encodes for them.

    :ivar publisher: takes messages
    :ivar results: brings results
    :ivar encoder: makes messages
    """

    def __init__(self, transport: Transport, setup: Setup, receiver: ReplyReceiver) -> None:
        self._transport = transport
        self._setup = setup
        self.publisher = transport.publisher(setup)
        self.results = transport.results(setup, receiver)
        self.encoder = Encoder(setup.app, self.results.reply_to)
        self.store: ResultStore | None = transport.store(setup)
        self._subscriber: Subscriber | None = None

    @property
    def connected(self) -> bool:
        """Whether a task sent now would go out at once, and its result come back."""
        return self.publisher.connected and self.results.connected

    @property
    def subscriber(self) -> Subscriber:
        """Consumes further queues; made at its first use."""
        if self._subscriber is None:
            self._subscriber = self._transport.subscriber(self._setup)
        return self._subscriber

    @cached_property
    def canvas_encoder(self) -> CanvasEncoder:
        """Encodes canvases; it finalizes the application."""
        return CanvasEncoder(self._setup.app, self.encoder.recorder, self.results.reply_to)

    @cached_property
    def in_order(self) -> bool:
        """Whether Celery looks at the members of a group one after another."""
        return not backend_class(self._setup.app).supports_native_join

    def close(self) -> Deferred[None]:
        """Close every part. Fires, without failing, once nothing is left."""
        return close_all(self.publisher, self.results, self.store, self._subscriber)


class BindingReceiver(ReplyReceiver, Protocol):
    """A receiver of states that knows their source."""

    source: ResultSource | None


class Binding:
    """Binds a transport when the client is made, since imports alone take some 50 ms, which the first
    call should not cost; and again where the application was configured in between.

    :param choice: as ``transport`` of `twistedcelery.TwistedCelery`
    :param receiver: called with states; its ``source`` is set
    """

    def __init__(self, setup: Setup, choice: str | Transport, receiver: BindingReceiver) -> None:
        self._setup = setup
        self._choice = choice
        self._receiver = receiver
        self._closing = False
        self._bound: BoundTransport | None = None
        self._process = os.getpid()
        #: The settings that the transport was bound for, until it is used.
        self._bound_for: dict[str, Any] | None = None
        try:
            self._bind()
            self._bound_for = self._settings()
        except TwistedCeleryError:
            # Each call tries again and fails with the error; the constructor never raises it.
            pass

    @property
    def bound(self) -> BoundTransport | None:
        """The transport as it is, closing included; ``None`` in a process that was forked since."""
        return self._bound if self._process == os.getpid() else None

    def use(self) -> BoundTransport:
        """The transport, to be used now.

        :raises Disconnected: the client was disconnected, or in use when the process was forked
        :raises ConfigurationError: the application cannot be used as it is configured
        """
        if self._closing:
            raise Disconnected("this TwistedCelery was disconnected; make a new one")
        bound_for, self._bound_for = self._bound_for, None
        if self._bound is not None and self._process != os.getpid():
            # The other process goes on with its own reply queue.
            if bound_for is None:
                raise Disconnected(
                    "this TwistedCelery was in use when the process was forked; make a new one in the child"
                )
            self._bound = None
        elif bound_for is not None and bound_for != self._settings():
            # Nothing is connected yet.
            self._close_bound()
        return self._bound or self._bind()

    def stop_use(self) -> None:
        """From now on `use` raises `Disconnected`; what is ``bound`` goes on until `close`."""
        self._closing = True

    def close(self) -> Deferred[None]:
        """Close the transport. Fires, without failing, once nothing is left."""
        self._closing = True
        return self._close_bound()

    def _close_bound(self) -> Deferred[None]:
        # The connections of another process are not this one's to close.
        bound, self._bound = self.bound, None
        return succeed(None) if bound is None else bound.close()

    def _settings(self) -> dict[str, Any]:
        with _reading_settings():
            return dict(self._setup.app.conf.items())

    def _bind(self) -> BoundTransport:
        _check_reactor(self._setup.reactor)
        with _reading_settings():
            transport = _find(self._setup.app, self._choice)
            bound = self._bound = BoundTransport(transport, self._setup, self._receiver)
            self._process = os.getpid()
        self._receiver.source = bound.results
        return bound


def _check_reactor(reactor: Any) -> None:
    """Refuse a reactor that does not run while an asyncio loop does: nothing would ever happen.

    :raises ConfigurationError: it is such a reactor
    """
    # A program that has not imported it runs no such loop.
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not IReactorCore.providedBy(reactor) or getattr(reactor, "running", True):
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if getattr(reactor, "_asyncioEventloop", None) is not loop:
        raise ConfigurationError(
            "an asyncio event loop runs in this thread, and the client's reactor "
            f"({type(reactor).__name__}) does not: its calls would wait for ever. Install Twisted's "
            "asyncioreactor on that loop, or, where your version has it, use twistedcelery.aio"
        )


def check_settings(app: Celery) -> None:
    """Check that an application's URLs can be used, and that there are transports for them.

    :raises ConfigurationError: they cannot, or there are none
    """
    with _reading_settings():
        _find(app, "auto")


def _find(app: Celery, choice: str | Transport) -> Transport:
    # First, since other errors may show what a URL parser takes for the host.
    check_urls(app.conf)
    return find(app, choice)


@contextmanager
def _reading_settings() -> Iterator[None]:
    """Translate what Celery and kombu raise when they read settings and URLs."""
    try:
        yield
    except TwistedCeleryError:
        raise
    except Exception as error:
        raise ConfigurationError(f"the Celery application cannot be used: {error}") from error
