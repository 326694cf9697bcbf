"""The client: a Celery application's tasks, called from Twisted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from celery.utils import uuid
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorCore
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.access import ResultAccess
from twistedcelery.call import TaskDeferred
from twistedcelery.canvas_methods import CanvasMethods
from twistedcelery.encoder import Encoder
from twistedcelery.errors import ConfigurationError, Disconnected, TwistedCeleryError
from twistedcelery.outbox import Outbox
from twistedcelery.pacing import Pacer
from twistedcelery.pending import PendingCalls
from twistedcelery.revoker import Revoker
from twistedcelery.transports.choose import choose, choose_store
from twistedcelery.wires import Wires
from twistedcelery.workers import Workers

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.control import Control
    from twistedcelery.events import EventHandler, EventStream

__all__ = ["TwistedCelery"]

_log = Logger()

#: Seconds that `TwistedCelery.disconnect` waits for the broker to take the last revokes.
REVOKE_TIMEOUT = 1.0


class TwistedCelery(CanvasMethods):
    """Calls the tasks of a Celery application without blocking the reactor.

    It is made ready for the application's settings here, again at the first call if they have changed
    by then, and connects by itself at the first call. Every method is to be called on the reactor's
    thread.
    The application stays as it was: other threads may go on using it in Celery's own, blocking way.

    :param app: a configured `celery.Celery`
    :param reactor: the reactor to run on; the process's own where it is not given
    :param publish_timeout: seconds for the broker to take a message, connecting included.
        ``send_task(..., confirm_timeout=...)`` sets it for one call.
    :param terminate: whether cancelling a call kills the process that runs its task already
    :param transport: ``"auto"``: native where there is a native one, else Celery's own code in
        two threads; ``"threads"``: always the latter
    :param disconnect_at_shutdown: whether it disconnects by itself when the reactor stops; an owner
        who has something to finish first says ``False``, and disconnects it when that is done
    """

    def __init__(
        self,
        app: Celery,
        reactor: Any = None,
        *,
        publish_timeout: float = 10.0,
        terminate: bool = False,
        transport: str = "auto",
        disconnect_at_shutdown: bool = True,
    ) -> None:
        if reactor is None:
            # Importing it installs one, so it must not happen before somebody wants it.
            from twisted.internet import reactor
        self.app = app
        self._reactor = reactor
        self._publish_timeout = publish_timeout
        self._terminate = terminate
        self._transport = transport
        self._disconnects_at_shutdown = disconnect_at_shutdown
        self._pacer = Pacer(reactor, time.perf_counter)
        self._pending = PendingCalls(self._forget)
        self._revoker = Revoker(reactor, self._broadcast_revoke)
        self._workers = Workers(app, reactor, publish_timeout, transport, self._connect)
        access = ResultAccess(reactor, self._pending, self._wired, self.revoke, lambda: self._workers.control)
        super().__init__(access, self._pacer, self._wired, publish_timeout, terminate)
        self._outbox: Outbox | None = None
        self._wires: Wires | None = None
        self._disconnecting = False
        self._disconnected = False
        self._disconnect_waiters: list[Deferred[None]] = []
        self._shutdown_trigger: Any = None
        #: What the transport was made for, until it is used.
        self._prepared_for: dict[str, Any] | None = None
        try:
            # Imports alone take some 50 ms, which the first call should not cost.
            self._prepare()
            self._prepared_for = self._settings()
        except TwistedCeleryError:
            # Each call tries again and is told: making the client is not where somebody waits for an answer.
            pass

    @property
    def connected(self) -> bool:
        """Whether a task sent now would go out at once, and its result come back."""
        return self._outbox is not None and self._outbox.connected

    @property
    def broker_connected(self) -> bool:
        """Whether there is a connection over which tasks are sent."""
        return self._wires is not None and self._wires.publisher.connected

    @property
    def backend_connected(self) -> bool:
        """Whether there is a connection over which results come."""
        return self._wires is not None and self._wires.results.connected

    @property
    def keeps_results(self) -> bool:
        """Whether the result backend can be asked about any task by its id. Over ``rpc://`` it cannot.

        :raises TwistedCeleryError: once the client is disconnected, or where the application cannot be used
        """
        wires = self._wired()
        return wires.results.available and wires.store is not None

    @property
    def in_flight(self) -> int:
        """The number of calls that have not ended."""
        return len(self._pending) + len(self._canvases)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *positional: Any,
        **options: Any,
    ) -> TaskDeferred:
        """Call a task by name, as ``Celery.send_task`` of the installed Celery does.

        It never raises: what is wrong with the call fails the Deferred.

        :param name: the task's name, such as ``"my_app.tasks.add"``
        :param args: the task's positional arguments
        :param kwargs: the task's keyword arguments
        :param positional: Celery's further arguments, in Celery's order
        :param options: every option of ``Celery.send_task``. ``retry=True`` allows the message to
            be sent a second time, under the same task id, when the connection is lost before the
            broker has confirmed it. ``connection``, ``producer`` and ``publisher`` are refused.
        :return: fires with the task's value. It fails with the task's exception, with a
            `PublishError` when the task did not get out, or with another `TwistedCeleryError`.
        """
        try:
            outbox = self._connect()
            named = outbox.options(positional, options)
        except TwistedCeleryError as error:
            call = self._new_call(options.get("task_id"), name)
            call.fail_published(Failure(error))
            return call
        call = self._new_call(named.pop("task_id", None), name)
        self._pending.add(call)
        if self._pacer.has_room():
            outbox.send(call, args, kwargs, named)
            return call
        try:
            # The caller may change them before their turn comes.
            args, kwargs = deepcopy((args, kwargs))
            if "headers" in named:
                named["headers"] = deepcopy(named["headers"])
        except Exception:
            # What cannot be copied is encoded while the caller waits; if it cannot be
            # serialised either, that is reported as such.
            outbox.send(call, args, kwargs, named)
            return call
        context = copy_context()
        self._pacer.enqueue(lambda: context.run(outbox.send, call, args, kwargs, named))
        return call

    def revoke(self, task_id: str, terminate: bool = False, signal: str = "SIGTERM") -> Deferred[None]:
        """Ask all workers to revoke a task.

        :param terminate: kill the process that runs it, if one does
        :param signal: the name of the signal to kill it with
        :return: fires once the broker has taken the request, or fails with a `PublishError`
        """
        return self._revoker.revoke(task_id, terminate, signal)

    @property
    def control(self) -> Control:
        """Commands and queries to workers: Celery's ``app.control``, with Deferreds."""
        return self._workers.control

    def events(
        self,
        handlers: Mapping[str, EventHandler] | None = None,
        *,
        state: Any = False,
        wakeup: bool = True,
        **options: Any,
    ) -> EventStream:
        """Have functions called with Celery's events, from now on until the stream is closed.

        :param handlers: by event type; ``"*"`` has those events that have no handler of their own
        :param state: ``True``, or a ``celery.events.state.State`` of your own: one that is kept up
            to date, as the stream's ``state``
        :param wakeup: whether to have workers tell at once that they are there
        :param options: further ones of Celery's ``app.events.Receiver``, such as ``routing_key``
        :raises InvalidCall: for options that it does not take
        :raises Disconnected: after `disconnect`
        """
        return self._workers.events(handlers, state=state, wakeup=wakeup, options=options)

    def disconnect(self) -> Deferred[None]:
        """End every pending call with `Disconnected`, and leave nothing behind.

        :return: fires once no socket, thread or timer is left. Safe to call twice.
        """
        if self._disconnected:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._disconnect_waiters.append(waiter)
        if not self._disconnecting:
            # First of all, for the callbacks of the calls that are about to end.
            self._disconnecting = True
            self._close().addCallback(self._closed)
        return waiter

    def _close(self) -> Deferred[Any]:
        self._pacer.stop()
        self._canvases.disconnect()
        self._pending.fail_all(
            lambda call: Disconnected(
                f"task {call.task_name} [{call.task_id}]: the client was disconnected before its result came"
            )
        )
        # What was cancelled is to be revoked, if the broker can be told within a moment.
        revoked = self._revoker.flush()
        revoked.addTimeout(REVOKE_TIMEOUT, self._reactor, lambda _failure, _seconds: None)
        return revoked.addCallback(self._close_outbox)

    def _close_outbox(self, _: None) -> Deferred[Any]:
        outbox, self._outbox = self._outbox, None
        wires, self._wires = self._wires, None
        if outbox is None or wires is None:
            return succeed(None)
        closing = DeferredList([outbox.close(), self._workers.close()])
        return closing.addCallback(lambda _: wires.close())

    def _closed(self, _: object) -> None:
        self._disconnected = True
        if self._shutdown_trigger is not None:
            self._reactor.removeSystemEventTrigger(self._shutdown_trigger)
            self._shutdown_trigger = None
        waiters, self._disconnect_waiters = self._disconnect_waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)

    def _connect(self) -> Outbox:
        if self._disconnecting:
            raise Disconnected("this TwistedCelery was disconnected; make a new one")
        prepared_for, self._prepared_for = self._prepared_for, None
        if prepared_for is not None and prepared_for != self._settings():
            # The application was configured after the client was made; nothing is connected yet.
            self._close_outbox(None)
        return self._outbox or self._prepare()

    def _settings(self) -> dict[str, Any]:
        with _reading_settings():
            return dict(self.app.conf.items())

    def _prepare(self) -> Outbox:
        """Import and make what sends and receives; it connects when it is used."""
        with _reading_settings():
            publisher, results = choose(
                self.app,
                self._reactor,
                self._pending,
                publish_timeout=self._publish_timeout,
                transport=self._transport,
            )
            encoder = Encoder(self.app, results.reply_to)
            store = choose_store(
                self.app, self._reactor, timeout=self._publish_timeout, transport=self._transport
            )
            self._wires = Wires(self.app, encoder, publisher, results, store)
            self._outbox = Outbox(
                encoder,
                publisher,
                results,
                self._pending,
                self._pacer,
                self._reactor,
                publish_timeout=self._publish_timeout,
                revoke=self._revoke_cancelled,
            )
        if (
            self._disconnects_at_shutdown
            and self._shutdown_trigger is None
            and IReactorCore.providedBy(self._reactor)
        ):
            self._shutdown_trigger = self._reactor.addSystemEventTrigger(
                "before", "shutdown", self._disconnect_at_shutdown
            )
        return self._outbox

    def _wired(self) -> Wires:
        self._connect()
        assert self._wires is not None
        return self._wires

    def _disconnect_at_shutdown(self) -> Deferred[None]:
        # The trigger is running, so there is nothing left to remove.
        self._shutdown_trigger = None
        return self.disconnect()

    def _new_call(self, task_id: str | None, name: str) -> TaskDeferred:
        return TaskDeferred(task_id or uuid(), name, self._call_cancelled, self.revoke)

    def _call_cancelled(self, call: TaskDeferred) -> None:
        # One that waited for its turn has not come as far as the outbox.
        if self._pending.discard(call) and self._outbox is not None:
            self._outbox.withdraw(call)

    def _revoke_cancelled(self, call: TaskDeferred) -> None:
        def lost(failure: Failure) -> None:
            # The caller has gone; there is nobody else to tell.
            _log.warn(
                "task {id} was cancelled, but could not be revoked: {error}",
                id=call.task_id,
                error=failure.value,
            )

        self.revoke(call.task_id, self._terminate).addErrback(lost)

    def _broadcast_revoke(self, task_ids: Sequence[str], terminate: bool, signal: str) -> Deferred[None]:
        def broadcast() -> Deferred[None]:
            # While disconnecting, what there is may still be used.
            return (self._outbox or self._connect()).revoke(task_ids, terminate, signal)

        return maybeDeferred(broadcast)

    def _forget(self, task_id: str) -> None:
        if self._outbox is not None:
            self._outbox.forget(task_id)


@contextmanager
def _reading_settings() -> Iterator[None]:
    """Celery reads its settings, and kombu the URLs, when they are wanted; each raises what it likes."""
    try:
        yield
    except TwistedCeleryError:
        raise
    except Exception as error:
        raise ConfigurationError(f"the Celery application cannot be used: {error}") from error
