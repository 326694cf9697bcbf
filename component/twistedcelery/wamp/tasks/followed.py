"""Follows one task that the bridge sent, from the message to the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import states
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import Waiters
from twistedcelery.errors import CallCancelled, TaskFailure, TwistedCeleryError
from twistedcelery.wamp.event_kinds import FAILED, PROGRESS, RETRIED, REVOKED, STARTED, SUCCEEDED
from twistedcelery.wamp.events.merge import OwnTask
from twistedcelery.wamp.items import TooManyItems, check_items
from twistedcelery.wamp.values import describe_exception, plain_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from autobahn.wamp.exception import ApplicationError

    from twistedcelery import TaskDeferred
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.event_kinds import EventKind
    from twistedcelery.wamp.events.merge import EventMerger, EventMergers
    from twistedcelery.wamp.invocation import Caller

__all__ = ["UNDELIVERED", "WAITING", "FollowedTask"]

#: How a task ended, where nobody knows.
UNDELIVERED = "undelivered"

#: The library's state of a call whose queue no worker consumes. It is for the caller, and no event.
WAITING = "WAITING"

_log = Logger()


class FollowedTask:
    """Publishes a task's events, and gives its result to those who wait for it.

    It outlives the WAMP session that sent it.

    :ivar task_id: as Celery writes it
    :ivar caller: who sent it
    :ivar state: Celery's name of the last known state
    """

    def __init__(
        self,
        call: TaskDeferred,
        caller: Caller,
        arguments: Mapping[str, Any],
        context: Context,
        mergers: EventMergers | None,
        ended: Callable[[FollowedTask, str], None],
    ) -> None:
        """Nothing happens before `start`.

        :param mergers: ``None``: it publishes no events, since somebody else does
        :param arguments: as of `twistedcelery.wamp.events.merge.OwnTask`
        :param ended: called once with how it ended: the name of the final event, or `UNDELIVERED`
        """
        self.task_id = call.task_id
        self.caller = caller
        self.state: str = states.PENDING
        self._call = call
        self._config = context.config
        self._clock = context.clock
        self._errors = context.errors
        self._ended = ended
        self._sent = False
        #: When the task was sent, and later when it was started; for its runtime.
        self._since = context.clock.seconds()
        self._listeners: list[Callable[[str, Any], None]] = []
        self._results: Waiters[Any] = Waiters()
        self._has_ended = False
        #: The value, or the `Failure`.
        self._outcome: Any = None
        task = OwnTask(call.task_name, call.task_id, caller.session, arguments)
        self._events: EventMerger | _NoEvents = _NoEvents() if mergers is None else mergers.begin(task)

    @property
    def shows_life(self) -> bool:
        """Whether a worker has reported a state of it."""
        return self.state not in {states.PENDING, WAITING}

    def start(self) -> None:
        """Begin to follow. What has happened already is reported before this returns."""
        # A failure to publish fails the call too, and is handled there.
        self._call.published.addCallbacks(lambda _: self._confirm_sent(), lambda _: None)
        self._call.on_update(self._updated)
        self._call.addCallbacks(self._succeeded, self._failed)

    def on_state(self, listener: Callable[[str, Any], None]) -> None:
        """Call ``listener(state, meta)`` with each state that is not final."""
        self._listeners.append(listener)

    def published(self) -> Deferred[None]:
        """Fires once the broker has the task, or fails with an `ApplicationError`."""

        def failed(failure: Failure) -> None:
            raise self._errors.not_delivered(failure, self.task_id)

        return self._call.published.addErrback(failed)

    def result(self) -> Deferred[Any]:
        """Fires with the task's value, or fails with an `ApplicationError`.

        Cancelling it ends the waiting, not the task.
        """
        if not self._has_ended:
            return self._results.wait()
        return succeed(None).addCallback(lambda _: self._outcome)

    def cancel(self) -> None:
        """Revoke the task and follow it no longer. It counts as revoked, whatever it still does."""
        self._call.cancel()

    def _confirm_sent(self) -> None:
        """The broker has the task. A state, which can overtake its confirmation, proves it too."""
        if not self._sent:
            self._sent = True
            self._since = self._clock.seconds()
            self._events.confirm_sent()

    def _updated(self, state: str, meta: Any) -> None:
        self._confirm_sent()
        self.state = state
        try:
            check_items(self._config.max_items, meta=meta)
        except TooManyItems as error:
            _log.warn(
                "a progress of {task} is not sent: it has {error}",
                task=self._call.task_name,
                error=str(error),
            )
            return
        if state == STARTED.state:
            self._since = self._clock.seconds()
            self._events.publish(STARTED, {})
        elif state == RETRIED.state:
            self._events.publish(RETRIED, self._describe_failure(meta))
        elif state != WAITING and PROGRESS.name in self._config.events:
            # There may be thousands in a second.
            self._events.publish(PROGRESS, {"meta": meta}, state)
        # RETRY comes with an exception. WAMP carries a description of it.
        for listener in tuple(self._listeners):
            listener(state, meta)

    def _succeeded(self, value: Any) -> None:
        details: dict[str, Any] = {"runtime": max(0.0, self._clock.seconds() - self._since)}
        outcome: Any = value
        try:
            check_items(self._config.max_items, result=value)
        except TooManyItems as error:
            outcome = Failure(self._errors.unencodable(f"it has {error}", self.task_id))
        else:
            if self._config.publish_results:
                details["result"] = value
        self._end(SUCCEEDED, details)
        self._settle(outcome)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        meta = self._call.meta
        # Also one of the library's errors may be what the task itself has raised.
        is_tasks = isinstance(error, TaskFailure) or (
            meta is not None and (meta["result"] is error or not isinstance(error, TwistedCeleryError))
        )
        if meta is not None and meta["status"] == states.REVOKED:
            self._end(REVOKED, {})
            answer = self._errors.revoked(self.task_id, error)
        elif isinstance(error, CallCancelled) and not is_tasks:
            self._end(REVOKED, {})
            answer = self._errors.revoked(self.task_id)
        elif is_tasks:
            self._end(FAILED, self._describe_failure(error))
            answer = self._task_failed(failure)
        else:
            # Nobody knows what has become of the task, so there is no event to publish.
            self._events.stop()
            self._ended(self, UNDELIVERED)
            answer = self._errors.not_delivered(failure, self.task_id)
        self._settle(Failure(answer))

    def _task_failed(self, failure: Failure) -> ApplicationError:
        return self._errors.task_failed(failure, self._call.task_name, self.task_id, self._call.traceback)

    def _describe_failure(self, error: Any) -> dict[str, Any]:
        if isinstance(error, BaseException):
            described = describe_exception(error)
        else:
            described = {"exc_type": "Exception", "exc_message": plain_text(error)}
        details: dict[str, Any] = {key: described[key] for key in ("exc_type", "exc_message")}
        if self._config.tracebacks and self._call.traceback:
            details["traceback"] = plain_text(self._call.traceback)
        return details

    def _end(self, kind: EventKind, details: Mapping[str, Any]) -> None:
        self.state = kind.state
        self._ended(self, kind.name)
        self._events.publish(kind, details)

    def _settle(self, outcome: Any) -> None:
        self._has_ended = True
        self._outcome = outcome
        self._results.settle(outcome)


class _NoEvents:
    """Takes the events of a task, which somebody else publishes."""

    def confirm_sent(self) -> None:
        pass

    def publish(self, kind: EventKind, details: Mapping[str, Any], state: str | None = None) -> None:
        pass

    def stop(self) -> None:
        pass
