"""How submitted tasks ended, for those who ask later."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autobahn.wamp.exception import ApplicationError

    from twistedcelery.wamp.invocation import Caller

__all__ = ["EndedTask", "EndedTasks"]


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task's end.

    :ivar caller: who had it sent
    :ivar state: Celery's name of its final state
    :ivar result: what it returned, normalised; or the error that those who wait for it get
    :ivar size: bytes that ``result`` takes, about
    """

    caller: Caller
    state: str
    result: Any | ApplicationError
    size: int


class EndedTasks:
    """Remembers the latest ends, within bounds; the oldest are forgotten first.

    :param max_count: ends remembered
    :param max_size: bytes of results remembered, about
    """

    def __init__(self, max_count: int = 1000, max_size: int = 64 * 1024 * 1024) -> None:
        self._max_count = max_count
        self._max_size = max_size
        self._size = 0
        self._ended: OrderedDict[str, EndedTask] = OrderedDict()

    def add(self, task_id: str, ended: EndedTask) -> None:
        """Remember how a task ended."""
        self._ended[task_id] = ended
        self._size += ended.size
        while len(self._ended) > self._max_count or self._size > self._max_size:
            _, oldest = self._ended.popitem(last=False)
            self._size -= oldest.size

    def find(self, task_id: str) -> EndedTask | None:
        """How a task ended, if that is still known."""
        return self._ended.get(task_id)
