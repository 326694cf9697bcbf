"""Answers ``celery.<task name>``: a WAMP call becomes a task, and the task's result the call's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from autobahn.wamp.exception import ApplicationError
    from twisted.python.failure import Failure

    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.invocation import Handler, Invocation
    from twistedcelery.wamp.tasks.exposed import ExposedTask
    from twistedcelery.wamp.tasks.followed import FollowedTask
    from twistedcelery.wamp.tasks.in_flight import InFlight

__all__ = ["OPTIONS_KEYWORD", "TaskCalls"]

#: The one keyword of a call that is the bridge's and not the task's.
OPTIONS_KEYWORD = "celery_options"


class TaskCalls:
    """Answers calls of tasks.

    :param tasks: the exposed tasks, by name
    :param is_gone: asks the router whether a session has left; fires with the answer
    """

    def __init__(
        self,
        context: Context,
        tasks: Mapping[str, ExposedTask],
        in_flight: InFlight,
        is_gone: Callable[[int | None], Deferred[bool]],
    ) -> None:
        self._config = context.config
        self._clock = context.clock
        self._errors = context.errors
        self._tasks = tasks
        self._in_flight = in_flight
        self._is_gone = is_gone

    def handler(self, name: str) -> Handler:
        """The handler of the calls of one task."""
        return lambda invocation: self._call(name, invocation)

    def _call(self, name: str, invocation: Invocation) -> Deferred[Any]:
        task = self._tasks.get(name)
        if task is None:
            # The last worker that had it left while the call was on its way.
            raise self._errors.make("unknown_task", f"no worker has the task {name!r:.255} any more")
        kwargs = dict(invocation.kwargs)
        options = kwargs.pop(OPTIONS_KEYWORD, None)
        followed = self._in_flight.send(task, invocation.args, kwargs, options, invocation.caller)
        invocation.task_id = followed.task_id
        if invocation.wants_progress:
            followed.on_state(invocation.progress)
        invocation.on_interrupt = lambda cancelled: self._interrupted(followed, invocation, cancelled)
        result = followed.result()
        timeout = self._config.call_timeout
        if timeout is not None:
            result.addTimeout(timeout, self._clock, lambda failure, _: self._timed_out(failure, followed))
        return result

    def _timed_out(self, failure: Failure, followed: FollowedTask) -> ApplicationError:
        failure.trap(CancelledError)
        if self._config.on_caller_gone == "revoke":
            followed.cancel()
        raise self._errors.make(
            "timeout", f"no result within {self._config.call_timeout:g} s", task_id=followed.task_id
        )

    def _interrupted(self, followed: FollowedTask, invocation: Invocation, cancelled: bool) -> None:
        """The router interrupts a call: its caller has cancelled it, or has left.

        The callee can tell them apart only if the caller waits until the cancellation is carried out.
        """
        if cancelled or self._config.on_caller_gone == "revoke":
            followed.cancel()
            return

        def decide(gone: bool) -> None:
            if not gone:
                followed.cancel()

        self._is_gone(invocation.caller.session).addCallback(decide)
