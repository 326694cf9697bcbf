"""Tracks messages whose confirmation was lost: a state of the task proves that the broker took one."""

from __future__ import annotations

from collections.abc import Callable

from twistedcelery._types import Clock
from twistedcelery.results.pending import PendingResults
from twistedcelery.transports.deadlines import Deadlines

__all__ = ["Doubt", "Doubts"]


class Doubt:
    """One message that the broker may or may not have. It is settled once.

    :param task_id: the task that the message asks for
    :param end: called with whether there was a sign of life of the task
    """

    __slots__ = ("_end", "settled", "task_id")

    def __init__(self, task_id: str, end: Callable[[bool], None]) -> None:
        self.task_id = task_id
        self.settled = False
        self._end = end

    def settle(self, is_alive: bool) -> None:
        """Call back, unless it is settled."""
        if not self.settled:
            self.settled = True
            self._end(is_alive)

    def seen(self) -> None:
        """The task has a state."""
        self.settle(True)


class Doubts:
    """The doubts of a client.

    :param reactor: for time
    :param pending: learns of each state
    """

    def __init__(self, reactor: Clock, pending: PendingResults) -> None:
        self._pending = pending
        self._deadlines: Deadlines[Doubt] = Deadlines(reactor, self.give_up)

    def add(self, task_id: str, seconds: float, end: Callable[[bool], None]) -> Doubt:
        """Wait for a sign of life of a task.

        :param seconds: how long
        :param end: called once with whether there was one, unless the doubt is discarded
        """
        doubt = Doubt(task_id, end)
        self._pending.on_next_state(task_id, doubt.seen)
        self._deadlines.add(seconds, doubt)
        return doubt

    def discard(self, doubt: Doubt) -> None:
        """Wait no more."""
        if not doubt.settled:
            doubt.settled = True
            self._pending.ignore_next_state(doubt.task_id, doubt.seen)

    def give_up(self, doubt: Doubt) -> None:
        """There was no sign of life in time, or there will be none."""
        self._pending.ignore_next_state(doubt.task_id, doubt.seen)
        doubt.settle(False)

    def stop(self) -> None:
        """Leave no timer."""
        self._deadlines.stop()
