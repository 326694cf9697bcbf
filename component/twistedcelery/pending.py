"""Task ids in, calls out: who waits for which task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.logger import Logger

from twistedcelery.call import FINAL_STATES
from twistedcelery.errors import ResultError, TwistedCeleryError
from twistedcelery.recent import Holder, RecentStates

__all__ = ["PendingCalls", "Waiting"]

_log = Logger()


class Waiting(Protocol):
    """Who waits for a task: a call, or a part of one.

    :ivar task_name: for whoever reads an error
    :ivar is_call: whether it is a whole call
    """

    task_id: str
    task_name: str
    is_call: bool

    @property
    def holder(self) -> Holder:
        """Who has the final state afterwards."""

    def update(self, state: str, meta: Any) -> None:
        """The task has a state that is not final."""

    def finish(self, meta: Mapping[str, Any]) -> None:
        """The task has ended."""

    def fail(self, error: TwistedCeleryError) -> None:
        """What became of the task will not be known."""


class PendingCalls:
    """The calls whose result has not come, by task id.

    A `twistedcelery.transports.interface.ReplyReceiver`. Replies may be doubled, late or for
    nobody: the first final state ends a call, and whatever else comes is dropped.

    :param forget: called with a task id once nobody waits for it
    :ivar recent: the last states
    """

    def __init__(self, forget: Callable[[str], None]) -> None:
        self._forget = forget
        self.recent = RecentStates()
        # A caller may reuse a task id while its first call waits: both get the result.
        self._calls: dict[str, list[Waiting]] = {}

    def __len__(self) -> int:
        return sum(call.is_call for calls in self._calls.values() for call in calls)

    def add(self, call: Waiting) -> None:
        """Wait for a call's task. Done before the task is published, so that no reply is missed."""
        self._calls.setdefault(call.task_id, []).append(call)

    def discard(self, call: Waiting) -> bool:
        """Stop waiting.

        :return: whether the call did wait; one that has ended does not
        """
        calls = self._calls.get(call.task_id)
        if calls is None or call not in calls:
            return False
        calls.remove(call)
        if not calls:
            del self._calls[call.task_id]
            self._forget(call.task_id)
        return True

    def state_changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """Tell those who wait for the task; a final state ends their calls."""
        state = meta["status"]
        if state not in FINAL_STATES:
            self.recent.note(task_id, meta)
            for call in tuple(self._calls.get(task_id, ())):
                call.update(state, meta["result"])
            return
        calls = self._take(task_id)
        if calls:
            self.recent.delivered(task_id, calls[0].holder)
        else:
            self.recent.note(task_id, meta)
        for call in calls:
            call.finish(meta)

    def reply_failed(self, task_id: str, error: ResultError) -> None:
        """End the calls that wait for a task whose reply cannot be read."""
        for call in self._take(task_id):
            call.fail(error)

    def fail_all(self, make_error: Callable[[Waiting], TwistedCeleryError]) -> None:
        """End every call."""
        for task_id in list(self._calls):
            for call in self._take(task_id):
                call.fail(make_error(call))

    def _take(self, task_id: str) -> list[Waiting]:
        calls = self._calls.pop(task_id, None)
        if calls is None:
            _log.debug("a reply for task {id}, which nobody waits for, is dropped", id=task_id)
            return []
        self._forget(task_id)
        return calls
