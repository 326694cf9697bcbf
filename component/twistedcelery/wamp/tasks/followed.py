"""One task that the bridge has sent, from the message to its end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery import states
from twisted.internet.defer import Deferred

from twistedcelery.errors import CallCancelled, TwistedCeleryError
from twistedcelery.wamp.descriptions import describe_exception, plain_text
from twistedcelery.wamp.events.topics import TaskEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

    from twistedcelery import TaskDeferred
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.events.celery_events import Observation
    from twistedcelery.wamp.invocation import Caller

__all__ = ["FollowedTask"]


class FollowedTask:
    """Publishes a task's events, and tells whoever waits for it how it ends.

    WAMP sessions come and go meanwhile; this stays.

    :ivar task_id: as Celery writes it
    :ivar caller: who had it sent
    :ivar state: Celery's name of the last known state
    """

    def __init__(
        self,
        call: TaskDeferred,
        caller: Caller,
        arguments: Mapping[str, Any],
        context: Context,
        ended: Callable[[FollowedTask, str], None],
    ) -> None:
        """Nothing happens before `start`.

        :param arguments: what events carry of the task's arguments
        :param ended: called once, with how it ended: ``"succeeded"``, ``"failed"``, ``"revoked"``, or
            ``"undelivered"`` where nobody knows
        """
        self.task_id = call.task_id
        self.state: str = states.PENDING
        self._call = call
        self.caller = caller
        self._arguments = arguments
        self._context = context
        self._ended = ended
        self._sent = False
        #: When the task was sent, and later when it was started; for its runtime.
        self._since = context.clock.seconds()
        self._listeners: list[Callable[[str, Any], None]] = []
        self._waiters: list[Deferred[Any]] = []
        #: Settles a waiter, once the task has ended.
        self._outcome: Callable[[Deferred[Any]], None] | None = None
        self._story = context.stories.begin(call.task_id, self._observed)

    def tell_nothing(self) -> None:
        """Publish no events of this task."""
        self._story.stop()

    def start(self) -> None:
        """Begin to follow. What has happened already is reported before this returns."""
        # A failure to publish fails the call as well, where it is dealt with.
        self._call.published.addCallbacks(self._is_sent, lambda _: None)
        self._call.on_update(self._updated)
        self._call.addCallbacks(self._succeeded, self._failed)

    def on_state(self, listener: Callable[[str, Any], None]) -> None:
        """Be told of each non-final state, as ``listener(state, meta)``."""
        self._listeners.append(listener)

    def published(self) -> Deferred[None]:
        """Fires once the broker has the task, or fails with an `ApplicationError`."""

        def failed(failure: Failure) -> None:
            raise self._context.errors.not_delivered(failure, self.task_id)

        return self._call.published.addErrback(failed)

    def result(self) -> Deferred[Any]:
        """Fires with the task's value, or fails with an `ApplicationError`.

        Cancelling it stops the waiting, not the task.
        """
        waiter: Deferred[Any] = Deferred(self._waiters.remove)
        if self._outcome is None:
            self._waiters.append(waiter)
        else:
            self._outcome(waiter)
        return waiter

    def cancel(self) -> None:
        """Revoke the task and follow it no more: it counts as revoked, whatever it still does."""
        self._call.cancel()

    def _is_sent(self, _: object = None) -> None:
        """The broker has the task: it says so, or a state, which can overtake its word, proves it."""
        if not self._sent:
            self._sent = True
            self._since = self._context.clock.seconds()
            self._publish("sent", states.PENDING, {})

    def _updated(self, state: str, meta: Any) -> None:
        self._is_sent()
        self.state = state
        if state == states.STARTED:
            self._since = self._context.clock.seconds()
            self._publish("started", state, {})
        elif state == states.RETRY:
            self._publish("retried", state, self._describe_failure(meta))
        elif self._context.events.wants("progress"):
            # There may be thousands in a second.
            self._story.tell(self._event("progress", state, {"meta": meta}))
        # RETRY comes with an exception, which WAMP carries as its description.
        for listener in tuple(self._listeners):
            listener(state, meta)

    def _succeeded(self, value: Any) -> None:
        details: dict[str, Any] = {"runtime": max(0.0, self._context.clock.seconds() - self._since)}
        if self._context.config.publish_results:
            details["result"] = value
        self._end("succeeded", states.SUCCESS, details)
        self._settle(lambda waiter: waiter.callback(value))

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        meta = self._call.meta
        if isinstance(error, CallCancelled) or (meta is not None and meta["status"] == states.REVOKED):
            self._end("revoked", states.REVOKED, {})
            answer = self._context.errors.make("revoked", "the task was revoked", task_id=self.task_id)
        elif meta is not None and (meta["result"] is error or not isinstance(error, TwistedCeleryError)):
            self._end("failed", states.FAILURE, self._describe_failure(error))
            answer = self._context.errors.task_failed(
                failure, self._call.task_name, self.task_id, self._call.traceback
            )
        else:
            # What has become of the task nobody knows, so there is no event to publish.
            self._story.stop()
            self._ended(self, "undelivered")
            answer = self._context.errors.not_delivered(failure, self.task_id)
        self._settle(lambda waiter: waiter.errback(answer))

    def _describe_failure(self, error: Any) -> dict[str, Any]:
        if isinstance(error, BaseException):
            described = describe_exception(error)
        else:
            described = {"exc_type": "Exception", "exc_message": plain_text(error)}
        details: dict[str, Any] = {key: described[key] for key in ("exc_type", "exc_message")}
        if self._context.config.tracebacks and self._call.traceback:
            details["traceback"] = plain_text(self._call.traceback)
        return details

    def _observed(self, observation: Observation) -> TaskEvent:
        """What Celery's event stream tells of the task."""
        self._is_sent()
        details = {key: value for key, value in observation.details.items() if key == "requeue"}
        return replace(
            observation.of(self._call.task_name, self.caller.session), details={**self._arguments, **details}
        )

    def _event(self, event: str, state: str, details: Mapping[str, Any]) -> TaskEvent:
        return TaskEvent(
            event,
            self._call.task_name,
            self.task_id,
            state,
            self._context.wall_clock(),
            self.caller.session,
            details,
        )

    def _publish(self, event: str, state: str, details: Mapping[str, Any]) -> None:
        self._story.tell(self._event(event, state, {**self._arguments, **details}))

    def _end(self, event: str, state: str, details: Mapping[str, Any]) -> None:
        self.state = state
        self._ended(self, event)
        self._publish(event, state, details)

    def _settle(self, outcome: Callable[[Deferred[Any]], None]) -> None:
        self._outcome = outcome
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            outcome(waiter)
