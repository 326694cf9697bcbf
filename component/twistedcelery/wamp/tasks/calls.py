"""``celery.<task name>``: a WAMP call becomes a task, the task's end the call's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred

from twistedcelery.wamp.values import Unencodable, normalise

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

    :param tasks: the exposed ones by name
    :param is_gone: asks the router whether a session has left; fires with the answer
    """

    def __init__(
        self,
        context: Context,
        tasks: Mapping[str, ExposedTask],
        in_flight: InFlight,
        is_gone: Callable[[int | None], Deferred[bool]],
    ) -> None:
        self._context = context
        self._tasks = tasks
        self._in_flight = in_flight
        self._is_gone = is_gone

    def handler(self, name: str) -> Handler:
        """What answers the calls of one task."""
        return lambda invocation: self._call(name, invocation)

    def _call(self, name: str, invocation: Invocation) -> Deferred[Any]:
        task = self._tasks.get(name)
        if task is None:
            # The last worker that had it left while the call was on its way.
            raise self._context.errors.make("unknown_task", f"no worker has the task {name!r:.255} any more")
        kwargs = dict(invocation.kwargs)
        options = kwargs.pop(OPTIONS_KEYWORD, None)
        followed = self._in_flight.send(task, invocation.args, kwargs, options, invocation.caller)
        if invocation.wants_progress:
            followed.on_state(invocation.progress)
        invocation.on_interrupt = lambda cancelled: self._interrupted(followed, invocation, cancelled)
        result = followed.result()
        timeout = self._context.config.call_timeout
        if timeout is not None:
            result.addTimeout(
                timeout, self._context.clock, lambda failure, _: self._timed_out(failure, followed)
            )
        return result.addCallback(self._encode, followed, invocation)

    def _encode(self, value: Any, followed: FollowedTask, invocation: Invocation) -> Any:
        try:
            return normalise(value, invocation.max_size)
        except Unencodable as unencodable:
            raise self._context.errors.unencodable(unencodable, followed.task_id) from None

    def _timed_out(self, failure: Failure, followed: FollowedTask) -> ApplicationError:
        failure.trap(CancelledError)
        if self._context.config.on_caller_gone == "revoke":
            followed.cancel()
        raise self._context.errors.make(
            "timeout", f"no result within {self._context.config.call_timeout:g} s", task_id=followed.task_id
        )

    def _interrupted(self, followed: FollowedTask, invocation: Invocation, cancelled: bool) -> None:
        """The router interrupts a call: it was cancelled, or its caller has left.

        To the callee both look the same, unless the caller waits for the cancel to be carried out.
        """
        if cancelled or self._context.config.on_caller_gone == "revoke":
            followed.cancel()
            return

        def decide(gone: bool) -> None:
            if not gone:
                followed.cancel()

        self._is_gone(invocation.caller.session).addCallback(decide)
