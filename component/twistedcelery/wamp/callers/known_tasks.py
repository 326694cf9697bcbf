"""The tasks that this bridge sent, for those who ask by id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, fail, succeed

from twistedcelery.wamp.callers.submitted import EndedTask, EndedTasks
from twistedcelery.wamp.values import Unencodable, normalise_and_measure

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.invocation import Caller
    from twistedcelery.wamp.tasks.followed import FollowedTask
    from twistedcelery.wamp.tasks.in_flight import InFlight

__all__ = ["KnownTasks"]

#: Bytes that an error takes, about, while it is remembered.
_ERROR_SIZE = 1024


class KnownTasks:
    """Finds tasks that are in flight, or have ended lately after they were submitted."""

    def __init__(self, context: Context, in_flight: InFlight) -> None:
        self._context = context
        self._in_flight = in_flight
        self._ended = EndedTasks()

    def find(self, task_id: str, caller: Caller) -> FollowedTask | EndedTask | None:
        """A task, as far as it is known here and the caller may know of it."""
        known = self._in_flight.find(task_id) or self._ended.find(task_id)
        if known is None or self._context.config.task_access == "all" or known.caller.is_same(caller):
            return known
        return None

    @staticmethod
    def result(known: FollowedTask | EndedTask) -> Deferred[Any]:
        """Fires with the task's value, or fails with an `ApplicationError`. Cancelling it revokes nothing."""
        if not isinstance(known, EndedTask):
            return known.result()
        return fail(known.result) if isinstance(known.result, ApplicationError) else succeed(known.result)

    def remember_end(self, followed: FollowedTask) -> None:
        """Remember how a task ends, once it does."""

        def succeeded(value: Any) -> None:
            try:
                normal, size = normalise_and_measure(value)
            except Unencodable as unencodable:
                remember(self._context.errors.unencodable(unencodable, followed.task_id), _ERROR_SIZE)
            else:
                remember(normal, size)

        def failed(failure: Failure) -> None:
            remember(failure.value, _ERROR_SIZE)

        def remember(result: Any, size: int) -> None:
            self._ended.add(followed.task_id, EndedTask(followed.caller, followed.state, result, size))

        followed.result().addCallbacks(succeeded, failed)
