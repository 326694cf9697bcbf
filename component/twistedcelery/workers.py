"""A client's side towards workers: control commands and events, made when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.control import Broadcaster, Control
from twistedcelery.events import EventHandler, EventStream
from twistedcelery.transports.choose import choose_subscriber
from twistedcelery.transports.interface import Subscriber

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Workers"]

_log = Logger()


class Workers:
    """Wires `Control` and `EventStream` to the client's transport.

    :param timeout: seconds that the broker may take until replies can be received
    :param transport: as of `twistedcelery.TwistedCelery`
    :param connect: returns what sends commands; raises a `TwistedCeleryError` where that cannot
        be, and once the client is disconnected
    """

    def __init__(
        self,
        app: Celery,
        reactor: Any,
        timeout: float,
        transport: str,
        connect: Callable[[], Broadcaster],
    ) -> None:
        self._app = app
        self._reactor = reactor
        self._timeout = timeout
        self._transport = transport
        self._connect = connect
        self._control: Control | None = None
        self._subscriber: Subscriber | None = None

    @property
    def control(self) -> Control:
        """Always the same one."""
        if self._control is None:
            self._control = Control(
                self._app, self._reactor, self._timeout, self._connect, self._connect_subscriber
            )
        return self._control

    def events(
        self,
        handlers: Mapping[str, EventHandler] | None,
        *,
        state: Any,
        wakeup: bool,
        options: Mapping[str, Any],
    ) -> EventStream:
        """A new stream: `twistedcelery.TwistedCelery.events`."""
        return EventStream(
            self._app,
            handlers,
            state=state,
            subscriber=self._connect_subscriber,
            wakeup=self.control.heartbeat if wakeup else None,
            options=options,
        )

    def close(self) -> Deferred[None]:
        """End what waits, and every stream. Fires, without failing, once nothing is left."""
        if self._subscriber is None:
            return succeed(None)
        return maybeDeferred(self._subscriber.close).addErrback(_log_close_failure)

    def _connect_subscriber(self) -> Subscriber:
        # For what it raises.
        self._connect()
        if self._subscriber is None:
            self._subscriber = choose_subscriber(
                self._app, self._reactor, timeout=self._timeout, transport=self._transport
            )
        return self._subscriber


def _log_close_failure(failure: Failure) -> None:
    # Nobody can do anything about it any more, but it must be seen.
    _log.failure("disconnecting left something behind", failure=failure)
