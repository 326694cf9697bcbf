"""Task ids in, calls out: who waits for which task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger

from twistedcelery.call import FINAL_STATES, TaskDeferred
from twistedcelery.errors import ResultError, TwistedCeleryError

__all__ = ["PendingCalls"]

_log = Logger()


class PendingCalls:
    """The calls whose result has not come, by task id.

    A `twistedcelery.transports.interface.ReplyReceiver`. Replies may be doubled, late or for
    nobody: the first final state ends a call, and whatever else comes is dropped.

    :param forget: called with a task id once nobody waits for it
    """

    def __init__(self, forget: Callable[[str], None]) -> None:
        self._forget = forget
        # A caller may reuse a task id while its first call waits: both get the result.
        self._calls: dict[str, list[TaskDeferred]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._calls.values()))

    def add(self, call: TaskDeferred) -> None:
        """Wait for a call's task. Done before the task is published, so that no reply is missed."""
        self._calls.setdefault(call.task_id, []).append(call)

    def discard(self, call: TaskDeferred) -> bool:
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
        if state in FINAL_STATES:
            for call in self._take(task_id):
                call.finish(meta)
            return
        for call in tuple(self._calls.get(task_id, ())):
            call.update(state, meta["result"])

    def reply_failed(self, task_id: str, error: ResultError) -> None:
        """End the calls that wait for a task whose reply cannot be read."""
        for call in self._take(task_id):
            call.fail(error)

    def fail_all(self, make_error: Callable[[TaskDeferred], TwistedCeleryError]) -> None:
        """End every call."""
        for task_id in list(self._calls):
            for call in self._take(task_id):
                call.fail(make_error(call))

    def _take(self, task_id: str) -> list[TaskDeferred]:
        calls = self._calls.pop(task_id, None)
        if calls is None:
            _log.debug("a reply for task {id}, which nobody waits for, is dropped", id=task_id)
            return []
        self._forget(task_id)
        return calls
