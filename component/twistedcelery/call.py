"""One call of a task: the Deferred that its caller holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import Reject
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery.errors import CallCancelled, ReplyUndecodable

if TYPE_CHECKING:
    from twistedcelery.errors import TwistedCeleryError
    from twistedcelery.results import AnyResult

__all__ = ["FINAL_STATES", "GroupDeferred", "TaskDeferred", "outcome_of"]

#: States after which nothing follows. Celery's ``READY_STATES`` lacks the two that no backend
#: stores but that a worker may report.
FINAL_STATES = frozenset({*states.READY_STATES, states.IGNORED, states.REJECTED})

UpdateCallback = Callable[[str, Any], object]

_log = Logger()


def outcome_of(meta: Mapping[str, Any]) -> Any:
    """What a final state means to its caller.

    :return: the value, or a `Failure` with what ``AsyncResult.get()`` would have raised
    """
    state, result = meta["status"], meta["result"]
    if state in states.PROPAGATE_STATES:
        if not isinstance(result, BaseException):
            result = ReplyUndecodable(f"the task ended as {state} and its reply carries no exception")
        return Failure(result)
    return Failure(Reject(result)) if state == states.REJECTED else result


class TaskDeferred(Deferred[Any]):
    """The result of a task that was sent: a Deferred with the task's identity.

    It fires with the task's return value, or fails with what ``AsyncResult.get()`` would have
    raised, or with a `twistedcelery.TwistedCeleryError`. It can be awaited.

    :ivar task_id: the task's id
    :ivar task_name: the task's name
    :ivar meta: the final result meta as Celery stores it (``status``, ``result``, ``traceback``,
        ``children``, ...); ``None`` until a final state has come
    :ivar cancelled: whether its caller has cancelled it
    :ivar async_result: the task as `twistedcelery.TwistedCelery.result` gives it, with its parents;
        ``None`` for a task that was sent by name
    """

    is_call = True

    def __init__(
        self,
        task_id: str,
        task_name: str,
        cancelled: Callable[[TaskDeferred], None],
        revoke: Callable[[str, bool, str], Deferred[None]],
    ) -> None:
        # Not self._cancel: that would be a cycle, and the error of a call that nobody holds any more
        # would be heard of at some later garbage collection only.
        super().__init__(canceller=TaskDeferred._cancel)  # type: ignore[arg-type]  # it is called with self
        self.task_id = task_id
        self.task_name = task_name
        self.meta: Mapping[str, Any] | None = None
        self.async_result: AnyResult | None = None
        self.cancelled = False
        #: The publisher's Deferred, set by the outbox; ``None``: not handed to the publisher yet.
        self.publication: Deferred[None] | None = None
        self._on_cancelled = cancelled
        self._revoke = revoke
        self._listeners: list[UpdateCallback] = []
        self._outcome: Failure | bool = False
        self._outcome_waiters: list[Deferred[None]] = []

    @property
    def holder(self) -> TaskDeferred:
        """The call itself has the final state."""
        return self

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
        if self._outcome is True:
            return succeed(None)
        if isinstance(self._outcome, Failure):
            return fail(self._outcome)
        waiter: Deferred[None] = Deferred()
        self._outcome_waiters.append(waiter)
        return waiter

    @property
    def traceback(self) -> str | None:
        """The traceback in the worker, as text, of a task that failed."""
        return self.meta.get("traceback") if self.meta is not None else None

    def on_update(self, callback: UpdateCallback) -> TaskDeferred:
        """Be told of each state that is not final.

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
        return self._revoke(self.task_id, terminate, signal)

    # What follows is for the client that made this object.

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
        # A result proves that the broker took the task, whatever became of its confirmation.
        self._end(True, outcome_of(meta))

    def finish_joined(self, outcome: Any) -> None:
        """End with the outcome of a canvas: a value, or a `Failure`."""
        self._end(True, outcome)

    def finish_unheard(self) -> None:
        """End once the broker has a task that keeps its result to itself."""
        self._end(True, None)

    def fail_published(self, failure: Failure) -> None:
        """End because the message did not get out."""
        self._end(failure, failure)

    def fail(self, error: TwistedCeleryError) -> None:
        """End because the result will not come."""
        self.fail_published(Failure(error))

    def _cancel(self) -> None:
        self.cancelled = True
        self._on_cancelled(self)
        self.fail(CallCancelled(f"task {self.task_name} [{self.task_id}] was cancelled by its caller"))

    def _end(self, publication: Failure | bool, result: Any) -> None:
        self._settle_publication(publication)
        if self.called:
            # Who waited for the publication has cancelled the call.
            return
        if isinstance(result, Failure):
            self.errback(result)
        else:
            self.callback(result)

    def _settle_publication(self, outcome: Failure | bool) -> None:
        if self._outcome is not False:
            return
        self._outcome = outcome
        waiters, self._outcome_waiters = self._outcome_waiters, []
        for waiter in waiters:
            if waiter.called:
                # Its holder has cancelled it.
                continue
            if isinstance(outcome, Failure):
                waiter.errback(outcome)
            else:
                waiter.callback(None)


class GroupDeferred(TaskDeferred):
    """The results of a group that was sent: a list, in the order of its members.

    ``task_id`` is the group's id. `on_update` hears of every member.
    """

    @property
    def results(self) -> list[AnyResult]:
        """The members."""
        return self.children or []
