"""What the caller of a task or a canvas holds: a Deferred with the task's identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters, settle
from twistedcelery.errors import CallCancelled
from twistedcelery.transports.decoding import outcome_of

if TYPE_CHECKING:
    from twistedcelery.calls.dispatch import Dispatch
    from twistedcelery.errors import TwistedCeleryError
    from twistedcelery.results.result import AnyResult
    from twistedcelery.workers.revoker import Revoker

__all__ = ["GroupDeferred", "TaskDeferred"]

UpdateCallback = Callable[[str, Any], object]

_log = Logger()


class TaskDeferred(Deferred[Any]):
    """The result of a task that was sent: a Deferred with the task's identity.

    It fires with the task's return value, or fails with what ``AsyncResult.get()`` would have
    raised, or with a `twistedcelery.TwistedCeleryError`. It can be awaited.

    :ivar task_id: the task's id
    :ivar task_name: the task's name
    :ivar meta: the final result meta as Celery stores it (``status``, ``result``, ``traceback``,
        ``children``, ...); ``None`` until a final state has come
    :ivar cancelled: whether its caller has cancelled it
    :ivar sent_before: whether nothing was sent: the task's own ``apply_async`` gave the result of an earlier
        call, which this one follows. Cancelling it revokes nothing.
    :ivar async_result: the task as `twistedcelery.TwistedCelery.result` gives it, with its parents;
        ``None`` for a task that was sent by name
    """

    def __init__(self, task_id: str, task_name: str, revoker: Revoker) -> None:
        # Not self._cancel: that would be a cycle, and the unhandled error of a dropped call would be
        # logged only at some later garbage collection.
        super().__init__(canceller=TaskDeferred._cancel)  # type: ignore[arg-type]  # it is called with self
        self.task_id = task_id
        self.task_name = task_name
        self.meta: Mapping[str, Any] | None = None
        self.async_result: AnyResult | None = None
        self.cancelled = False
        self.sent_before = False
        #: Sends it, until it ends.
        self.dispatch: Dispatch | None = None
        self._revoker = revoker
        self._listeners: list[UpdateCallback] = []
        #: How its publication ended: ``True``, a `Failure`, or ``False`` where it has not.
        self._publication: Failure | bool = False
        self._published: Waiters[None] | None = None

    @property
    def id(self) -> str:
        """The id, under the name of Celery's results."""
        return self.task_id

    @property
    def parent(self) -> AnyResult | None:
        """The result before this one, of a chain or a chord."""
        return self.async_result.parent if self.async_result is not None else None

    @property
    def children(self) -> list[AnyResult] | None:
        """Of a task that has ended, the tasks that it sent; of a group, its members."""
        return self.async_result.known_children if self.async_result is not None else None

    @property
    def published(self) -> Deferred[None]:
        """A new Deferred at each access: it fires with ``None`` once the broker has taken the
        message, or fails with the error that the call itself fails with, such as a
        `twistedcelery.PublishError`.
        """
        if self._publication is True:
            return succeed(None)
        if isinstance(self._publication, Failure):
            return fail(self._publication)
        if self._published is None:
            self._published = Waiters()
        return self._published.wait()

    @property
    def traceback(self) -> str | None:
        """The traceback in the worker, as text, of a task that failed."""
        return self.meta.get("traceback") if self.meta is not None else None

    def on_update(self, callback: UpdateCallback) -> TaskDeferred:
        """Call a function with each state that is not final.

        :param callback: called as ``callback(state, meta)``, for example
            ``('PROGRESS', {'current': 3, 'total': 10})``. For ``RETRY``, ``meta`` is the
            exception. What it raises is logged, and the call goes on.
        :return: this Deferred
        """
        self._listeners.append(callback)
        return self

    def revoke(self, terminate: bool = False, signal: str = "SIGTERM") -> Deferred[None]:
        """Ask the workers to revoke the task, or all of a canvas, and go on waiting for what becomes of it.

        :param terminate: kill the process that runs it, if one does
        :param signal: the name of the signal to kill it with
        :return: fires once the broker has taken the request
        """
        if self.async_result is not None:
            return self.async_result.revoke_all(terminate, signal)
        return self._revoker.revoke(self.task_id, terminate, signal)

    # What follows is for its dispatch.

    def mark_published(self) -> None:
        self._settle_publication(True)

    def update(self, state: str, meta: Any) -> None:
        for listener in tuple(self._listeners):
            if self.called:
                # A listener has cancelled it.
                return
            try:
                listener(state, meta)
            except Exception:
                # A listener is the caller's code; its mistake must not cost the caller the result.
                _log.failure(
                    "on_update callback of task {task} [{id}] failed", task=self.task_name, id=self.task_id
                )

    def finish(self, meta: Mapping[str, Any]) -> None:
        """End with a final state, as ``AsyncResult.get()`` would."""
        self.meta = meta
        if self.async_result is not None:
            self.async_result.end(meta)
        self.finish_joined(outcome_of(meta))

    def finish_joined(self, outcome: Any) -> None:
        """End with a value, or with the `Failure` of a task."""
        # A result proves that the broker took the task, whatever became of its confirmation.
        self._settle_publication(True)
        # Who waited for the publication may have cancelled the call.
        settle(self, outcome)

    def fail_published(self, failure: Failure) -> None:
        """End because the message did not get out, or the result will not come."""
        self._settle_publication(failure)
        settle(self, failure)

    def fail(self, error: TwistedCeleryError) -> None:
        """As `fail_published`."""
        self.fail_published(Failure(error))

    def _cancel(self) -> None:
        self.cancelled = True
        if self.dispatch is not None:
            self.dispatch.cancel()
        self.fail(CallCancelled(f"task {self.task_name} [{self.task_id}] was cancelled by its caller"))

    def _settle_publication(self, outcome: Failure | bool) -> None:
        if self._publication is not False:
            return
        self._publication = outcome
        if self._published is not None:
            self._published.settle(outcome if isinstance(outcome, Failure) else None)


class GroupDeferred(TaskDeferred):
    """The results of a group that was sent: a list, in the order of its members.

    ``task_id`` is the group's id. `on_update` is called with the states of every member.
    """

    @property
    def results(self) -> list[AnyResult]:
        """The members."""
        return self.children or []
