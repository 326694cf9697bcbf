"""Keeps the tasks that this bridge sent, for questions by id."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, fail, succeed

from twistedcelery.wamp.values import Normalised, Unencodable, normalise_and_measure

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.invocation import Caller
    from twistedcelery.wamp.tasks.followed import FollowedTask
    from twistedcelery.wamp.tasks.in_flight import InFlight

__all__ = ["EndedTask", "EndedTasks", "KnownTasks"]

#: Bytes that a remembered error takes, about.
_ERROR_SIZE = 1024


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task that has ended.

    :ivar caller: who sent it
    :ivar state: Celery's name of its final state
    :ivar outcome: its result, or the error that its callers get
    """

    caller: Caller
    state: str
    outcome: Normalised | ApplicationError

    @property
    def size(self) -> int:
        """Bytes that the outcome takes, about."""
        return self.outcome.size if isinstance(self.outcome, Normalised) else _ERROR_SIZE

    def result(self) -> Deferred[Any]:
        """Fires with the task's value, or fails with an `ApplicationError`."""
        return fail(self.outcome) if isinstance(self.outcome, ApplicationError) else succeed(self.outcome)


class EndedTasks:
    """Remembers the tasks that ended last, within bounds. The oldest are forgotten first.

    :param max_count: tasks that are remembered
    :param max_size: bytes that their outcomes take, about
    """

    def __init__(self, max_count: int = 1000, max_size: int = 64 * 1024 * 1024) -> None:
        self._max_count = max_count
        self._max_size = max_size
        self._size = 0
        self._ended: OrderedDict[str, EndedTask] = OrderedDict()

    def add(self, task_id: str, ended: EndedTask) -> None:
        """Remember a task. Several calls may have followed it: it is remembered as of the first."""
        if task_id in self._ended:
            return
        self._ended[task_id] = ended
        self._size += ended.size
        while len(self._ended) > self._max_count or self._size > self._max_size:
            _, oldest = self._ended.popitem(last=False)
            self._size -= oldest.size

    def find(self, task_id: str) -> EndedTask | None:
        """A task, if it is still remembered."""
        return self._ended.get(task_id)


class KnownTasks:
    """Finds tasks that are in flight, or that were submitted and have ended recently."""

    def __init__(self, context: Context, in_flight: InFlight) -> None:
        self._config = context.config
        self._errors = context.errors
        self._in_flight = in_flight
        self._ended = EndedTasks()

    def find(self, task_id: str, caller: Caller) -> FollowedTask | EndedTask | None:
        """A task, if it is known here and the caller has access to it."""
        known = self._in_flight.find(task_id) or self._ended.find(task_id)
        if known is None or self._config.task_access == "all" or known.caller.is_same(caller):
            return known
        return None

    def revoked(self, task_id: str) -> None:
        """The workers were asked to revoke a task, which may be known here."""
        self._in_flight.revoked(task_id)

    def remember_end(self, followed: FollowedTask) -> None:
        """Remember a task once it ends."""

        def succeeded(value: Any) -> None:
            try:
                remember(normalise_and_measure(value))
            except Unencodable as unencodable:
                remember(self._errors.unencodable(unencodable, followed.task_id))

        def failed(failure: Failure) -> None:
            error: Any = failure.value
            remember(error)

        def remember(outcome: Normalised | ApplicationError) -> None:
            self._ended.add(followed.task_id, EndedTask(followed.caller, followed.state, outcome))

        followed.result().addCallbacks(succeeded, failed)
