"""The client: a Celery application's tasks, called from Twisted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorCore

from twistedcelery._deferreds import Waiters
from twistedcelery.calls.dispatch import Route
from twistedcelery.calls.dispatcher import Dispatcher, Pacer
from twistedcelery.calls.doubts import Doubts
from twistedcelery.calls.lost import LostCalls
from twistedcelery.calls.task import TwistedTask
from twistedcelery.encoding.app_view import sends_its_own_way
from twistedcelery.errors import Disconnected, InvalidCall
from twistedcelery.results.backend import ResultBackend
from twistedcelery.results.pending import PendingResults
from twistedcelery.transports.binding import Binding, check_settings
from twistedcelery.transports.decoding import MAX_REPLY_BYTES
from twistedcelery.transports.interface import Setup
from twistedcelery.workers.control import Control
from twistedcelery.workers.events import EventStream
from twistedcelery.workers.revoker import Revoker

if TYPE_CHECKING:
    from celery import Celery, Task

    from twistedcelery.calls.call import TaskDeferred
    from twistedcelery.results.result import AnyResult, GroupResult, TaskResult
    from twistedcelery.transports.interface import Transport
    from twistedcelery.workers.events import EventHandler

__all__ = ["TwistedCelery"]

#: Seconds that `TwistedCelery.disconnect` waits for the broker to take the last revokes.
REVOKE_TIMEOUT = 1.0


class TwistedCelery:
    """Calls the tasks of a Celery application without blocking the reactor.

    The client prepares for the application's settings when it is made, and again at the first call if
    they have changed. It connects at the first call. Call every method on the reactor's thread.
    The application stays as it was: other threads may go on using it in Celery's own, blocking way.

    :param app: a configured `celery.Celery`
    :param reactor: the reactor to run on; the process's own where it is not given
    :param publish_timeout: seconds for the broker to take a message, connecting included.
        ``send_task(..., confirm_timeout=...)`` sets it for one call.
    :param terminate: whether cancelling a call kills the process that runs its task already
    :param lost_after: seconds that a call has waited at least before it may fail with `ResultLost`: no
        worker has its task any more, and no queue. ``None``: it waits for ever.
    :param max_reply_bytes: what a reply may have, also decompressed. A larger one is not decoded, which would
        keep the reactor busy: its call fails with `ReplyTooLarge`. Native transports only.
    :param transport: ``"auto"``: native where there is a native one, else Celery's own code in a few
        dedicated threads; ``"threads"``: always the latter; or a
        `twistedcelery.transports.interface.Transport`, such as `twistedcelery.testing.MemoryTransport`
    :param disconnect_at_shutdown: whether to disconnect when the reactor stops; pass ``False`` if you
        have something to finish first, and call `disconnect` yourself
    """

    def __init__(
        self,
        app: Celery,
        reactor: Any = None,
        *,
        publish_timeout: float = 10.0,
        terminate: bool = False,
        lost_after: float | None = 120.0,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        transport: str | Transport = "auto",
        disconnect_at_shutdown: bool = True,
    ) -> None:
        if reactor is None:
            # Importing it installs a reactor, which is the application's choice until now.
            from twisted.internet import reactor
        self.app = app
        self._reactor = reactor
        pending = PendingResults()
        self._binding = Binding(Setup(app, reactor, publish_timeout, max_reply_bytes), transport, pending)
        self._control = Control(app, reactor, publish_timeout, self._binding)
        self._revoker = Revoker(reactor, self._binding)
        self._pending = pending
        self._backend = ResultBackend(reactor, self._binding, pending, self._revoker, self._control)
        clock = time.perf_counter if isinstance(transport, str) else transport.pacing_clock
        pacer = Pacer(reactor, clock)
        self._lost = LostCalls(app, reactor, self._binding, pending, self._control, lost_after)
        self._doubts = Doubts(reactor, pending)
        route = Route(
            pending, self._backend, pacer, self._lost, self._doubts, reactor, publish_timeout, terminate
        )
        self._dispatcher = Dispatcher(self._binding, route, self._revoker)
        self._is_disconnecting = False
        self._is_disconnected = False
        self._disconnected: Waiters[None] = Waiters()
        self._shutdown_trigger: Any = None
        if disconnect_at_shutdown and IReactorCore.providedBy(reactor):
            self._shutdown_trigger = reactor.addSystemEventTrigger(
                "before", "shutdown", self._disconnect_at_shutdown
            )

    @staticmethod
    def check(app: Celery) -> None:
        """Check an application's broker and result backend, as far as that needs no connection.

        :raise ConfigurationError: names the setting, such as one with a misspelt scheme
        """
        check_settings(app)

    @staticmethod
    def sends_its_own_way(task: Task) -> bool:
        """Whether a task's class, or a patch of it, overrides ``apply_async`` or ``shadow_name``.

        `send_task` passes that by, as Celery's does; `task` uses it.
        """
        return sends_its_own_way(task)

    @property
    def connected(self) -> bool:
        """Whether a task sent now would go out at once, and its result come back."""
        bound = self._binding.bound
        return bound is not None and bound.connected

    @property
    def broker_connected(self) -> bool:
        """Whether there is a connection over which tasks are sent."""
        bound = self._binding.bound
        return bound is not None and bound.publisher.connected

    @property
    def backend_connected(self) -> bool:
        """Whether there is a connection over which results come."""
        bound = self._binding.bound
        return bound is not None and bound.results.connected

    @property
    def keeps_results(self) -> bool:
        """Whether the result backend can be asked about any task by its id. Over ``rpc://`` it cannot.

        :raises TwistedCeleryError: once the client is disconnected, or where the application cannot be used
        """
        transport = self._binding.use()
        return transport.results.available and transport.store is not None

    @property
    def in_flight(self) -> int:
        """The number of calls that have not ended."""
        return len(self._dispatcher)

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
        return self._dispatcher.send_task(name, args, kwargs, positional, options)

    def apply_async(
        self,
        signature: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TaskDeferred:
        """Call a signature, or any canvas: chain, group, chord, map, starmap, chunks, nested at will.

        It never raises: what is wrong with the call fails the Deferred.

        :param signature: a signature of any application, or the dictionary it is serialised to. It
            stays as it is; its tasks are sent by this client's application.
        :param args: positional arguments, as ``signature.apply_async`` takes them
        :param kwargs: keyword arguments
        :param options: every option of ``signature.apply_async`` but ``connection`` and ``producer``
        :return: fires with what ``get()`` of Celery's result returns, or fails with what it raises.
            For a group it is a `GroupDeferred`.
        """
        return self._dispatcher.apply_signature(signature, args, kwargs, options)

    def task(self, task: Task, headers: Mapping[str, Any] | None = None) -> TwistedTask:
        """A Celery task whose ``delay`` and ``apply_async`` return Deferreds.

        :param task: a task of this client's application, or of another
        :param headers: message headers that its calls have besides those that they are given
        :raises InvalidCall: it is no task
        """
        if isinstance(task, str) or not hasattr(task, "apply_async"):
            raise InvalidCall(
                f"task() takes a Celery task, not {task!r:.200}; to call one by name, use send_task()"
            )
        return TwistedTask(self._dispatcher, task, headers)

    def result(self, task_id: str) -> TaskResult:
        """The result of a task by its id: Celery's ``AsyncResult``, with Deferreds."""
        return self._backend.task(task_id)

    def group_result(self, group_id: str, results: Sequence[AnyResult] = ()) -> GroupResult:
        """The results of a group: Celery's ``GroupResult``, with Deferreds.

        :param results: its members; without them, ``restore()`` reads those that were saved
        """
        return self._backend.group(group_id, results)

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
        return self._control

    def events(
        self,
        handlers: Mapping[str, EventHandler] | None = None,
        *,
        state: Any = False,
        wakeup: bool = True,
        **options: Any,
    ) -> EventStream:
        """Call functions with Celery's events, from now on until the stream is closed.

        :param handlers: by event type; ``"*"`` has those events that have no handler of their own
        :param state: ``True``, or a ``celery.events.state.State`` of your own: one that is kept up
            to date, as the stream's ``state``
        :param wakeup: whether to ask workers for a heartbeat at once
        :param options: further ones of Celery's ``app.events.Receiver``, such as ``routing_key``
        :raises InvalidCall: for options that it does not take
        :raises Disconnected: after `disconnect`
        """
        return EventStream(
            self.app,
            handlers,
            state=state,
            binding=self._binding,
            seconds=self._reactor.seconds,
            wakeup=self._control.heartbeat if wakeup else None,
            options=options,
        )

    def disconnect(self) -> Deferred[None]:
        """End every pending call with `Disconnected`, and leave nothing behind.

        :return: fires once no socket, thread or timer is left. Safe to call twice.
        """
        if self._is_disconnected:
            return succeed(None)
        waiter = self._disconnected.wait()
        if not self._is_disconnecting:
            # First of all, for the callbacks of the calls that are about to end.
            self._is_disconnecting = True
            self._binding.stop_use()
            self._close().addCallback(self._closed)
        return waiter

    def _close(self) -> Deferred[Any]:
        self._lost.stop()
        self._dispatcher.end_all()
        self._doubts.stop()
        self._pending.fail_all(
            lambda waiting: Disconnected(
                f"task {waiting.task_name} [{waiting.task_id}]: the client was disconnected before its "
                "result came"
            )
        )
        # Revoke what was cancelled, if the broker takes the command within a moment.
        revoked = self._revoker.flush()
        revoked.addTimeout(REVOKE_TIMEOUT, self._reactor, lambda _failure, _seconds: None)
        return revoked.addCallback(lambda _: self._binding.close())

    def _closed(self, _: object) -> None:
        self._is_disconnected = True
        if self._shutdown_trigger is not None:
            self._reactor.removeSystemEventTrigger(self._shutdown_trigger)
            self._shutdown_trigger = None
        self._disconnected.fire(None)

    def _disconnect_at_shutdown(self) -> Deferred[None]:
        # The trigger is running, so there is nothing left to remove.
        self._shutdown_trigger = None
        return self.disconnect()
