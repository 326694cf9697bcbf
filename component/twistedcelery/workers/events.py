"""Streams Celery's events: what workers and clients say of tasks as it happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters
from twistedcelery.errors import BrokerUnavailable, Disconnected, InvalidCall, TwistedCeleryError, renewed
from twistedcelery.transports.binding import Binding
from twistedcelery.transports.interface import IncomingMessage, Subscription
from twistedcelery.workers.inbox import Inbox
from twistedcelery.workers.offline_channel import OfflineChannel

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["EventHandler", "EventStream"]

_log = Logger()

#: Takes an event, a dictionary as Celery's own ``Receiver`` passes it on.
EventHandler = Callable[[dict[str, Any]], Awaitable[Any] | object]


class EventStream:
    """The events of a Celery application, from when it is made until `close`.

    Events are read by Celery's own ``Receiver``: times are local, ``local_received`` is when an
    event came, and the application's logical clock is adjusted. After a lost connection the
    stream goes on; what was sent in between is lost, as with Celery's own.

    :param handlers: by event type, such as ``"task-succeeded"``; ``"*"`` has those events that
        have no handler of their own. What a handler raises, or fails with later, is logged.
    :param state: Celery's ``State`` to be kept up to date; an event is in it before its handler
        is called. ``True`` makes one, ``False`` does without.
    :param binding: has the transport that consumes the stream's queue
    :param seconds: tells the time, as a reactor's ``seconds`` does
    :param wakeup: called whenever events begin to come, to ask workers for a heartbeat
    :param options: further ones of Celery's ``Receiver``: ``routing_key``, ``node_id``,
        ``queue_prefix``, ``accept``, ``queue_ttl``, ``queue_expires`` and so on
    :raises InvalidCall: for options that Celery's ``Receiver`` does not take
    """

    def __init__(
        self,
        app: Celery,
        handlers: Mapping[str, EventHandler] | None,
        *,
        state: Any,
        binding: Binding,
        seconds: Callable[[], float],
        wakeup: Callable[[], Deferred[Any]] | None,
        options: Mapping[str, Any],
    ) -> None:
        #: Celery's ``celery.events.state.State``, or ``None``.
        self.state: Any = app.events.State() if state is True else (state or None)
        self._wakeup = wakeup
        self._waiters: Waiters[None] = Waiters()
        self._consuming = False
        self._end: TwistedCeleryError | None = None
        guarded = {name: _guarded(handler) for name, handler in (handlers or {}).items()}
        # Never connected: Celery asks it what kind of broker it is for.
        connection = app.connection_for_read()
        try:
            self._receiver = app.events.Receiver(OfflineChannel(connection), handlers=guarded, **options)
        except Exception as error:
            raise InvalidCall(f"events(): {error}") from error
        finally:
            # Redis' transport has a descriptor even so.
            connection.release()
        self._process = self._receiver.process
        self._receiver.process = self._take_in
        self._inbox = Inbox(self._receiver.accept, "an event", seconds)
        self._subscription: Subscription = binding.use().subscriber.subscribe(self._receiver.queue, self)

    @property
    def connected(self) -> bool:
        """Whether an event that is sent now will be seen."""
        return self._consuming

    @property
    def ready(self) -> Deferred[None]:
        """A new Deferred at each access. It fires once every event that is sent will be seen. It
        fails when the broker refuses the stream's queue, and with `Disconnected` at the stream's end.
        """
        if self._end is not None:
            return fail(renewed(self._end))
        if self._consuming:
            return succeed(None)
        return self._waiters.wait()

    def close(self) -> Deferred[None]:
        """End the stream. No handler is called any more.

        :return: fires once its queue is deleted, as far as the broker can be reached. Safe to
            call twice.
        """
        self._finish(Disconnected("the event stream was closed"))
        return self._subscription.cancel()

    # The subscription's user

    def consuming(self) -> None:
        """The queue is consumed: fire `ready`."""
        self._consuming = True
        self._waiters.fire(None)
        if self._wakeup is not None:
            self._wakeup().addErrback(_log_wakeup_lost)

    def received(self, message: IncomingMessage) -> None:
        """Take one event or several in."""
        body = self._inbox.decode(message)
        if body is None:
            return
        try:
            # The callback that Celery's Receiver consumes with; it has no public name.
            self._receiver._receive(body, message)  # noqa: SLF001  # see above
        except Exception as error:
            _log.warn("an event is dropped, as it is not one of Celery's: {error!r}", error=error)

    def interrupted(self, reason: BrokerUnavailable) -> None:
        """Wait for the next connection."""
        self._consuming = False

    def ended(self, error: TwistedCeleryError) -> None:
        """Nothing more comes."""
        if not isinstance(error, Disconnected):
            _log.error("there will be no events: {error}", error=error)
        self._finish(error)

    def _finish(self, error: TwistedCeleryError) -> None:
        self._end = self._end or error
        self._consuming = False
        self._waiters.fail(error)

    def _take_in(self, type_: str, event: dict[str, Any]) -> None:
        if self._end is not None:
            # A handler has closed the stream, and more events came in the same message.
            return
        if self.state is not None:
            try:
                self.state.event(event)
            except Exception as error:
                # The other events of the same message are as good as any.
                _log.warn("event {type} does not fit the state: {error!r}", type=type_, error=error)
        self._process(type_, event)


def _guarded(handler: EventHandler) -> Callable[[dict[str, Any]], None]:
    """A handler whose failure is logged, so that the other events get their handlers."""

    def handle(event: dict[str, Any]) -> None:
        maybeDeferred(handler, event).addErrback(
            lambda failure: _log.failure(
                "the handler of event {type} failed", failure=failure, type=event.get("type")
            )
        )

    return handle


def _log_wakeup_lost(failure: Failure) -> None:
    # Workers send a heartbeat every few seconds anyway.
    _log.debug("workers could not be asked for a heartbeat: {error}", error=failure.value)
