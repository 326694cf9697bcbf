"""Sharing the reactor's thread: a burst of work is spread over several reactor turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twistedcelery._types import Clock, Timer

__all__ = ["Pacer"]


class Pacer:
    """Runs jobs in order, and no longer than a budget in any one reactor turn.

    Encoding a task costs about 0.1 ms, so a loop over thousands of ``send_task`` would hold up
    everything else in the process. The first jobs of a turn run at once; when the budget is
    spent, the rest wait for the turns that follow.

    :param reactor: for ``callLater``
    :param clock: seconds of real time, such as `time.perf_counter`
    :param budget: seconds of each turn that jobs may take
    """

    def __init__(self, reactor: Clock, clock: Callable[[], float], budget: float = 0.004) -> None:
        self._reactor = reactor
        self._clock = clock
        self._budget = budget
        self._jobs: deque[Callable[[], None]] = deque()
        self._turn: Timer | None = None
        self._turn_ends = 0.0

    def has_room(self) -> bool:
        """Whether a job may run now: nothing is queued, and this turn has budget left."""
        if self._turn is None:
            self._begin_turn()
            return True
        return not self._jobs and self._clock() < self._turn_ends

    def enqueue(self, job: Callable[[], None]) -> None:
        """Run a job in a later turn. It must not raise."""
        self._jobs.append(job)
        if self._turn is None:
            self._begin_turn()

    def stop(self) -> None:
        """Forget the queued jobs."""
        self._jobs.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _begin_turn(self) -> None:
        self._turn_ends = self._clock() + self._budget
        self._turn = self._reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        if not self._jobs:
            return
        self._begin_turn()
        while self._jobs and self._clock() < self._turn_ends:
            self._jobs.popleft()()
