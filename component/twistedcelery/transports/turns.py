"""Spreads work over reactor turns, so that much of it does not hold up everything else."""

from __future__ import annotations

from collections.abc import Callable

from twistedcelery._types import Clock, Timer

__all__ = ["TURN_BUDGET", "Turns"]

#: Seconds of any one reactor turn that such work may take.
TURN_BUDGET = 0.004


class Turns:
    """Repeats a step while there is work, no longer than `TURN_BUDGET` in any one reactor turn.

    :param reactor: for ``callLater``
    :param clock: seconds of real time, such as `time.perf_counter`
    :param has_work: whether there is something to do, and it can be done now
    :param step: does a little of it. It must not raise.
    """

    def __init__(
        self,
        reactor: Clock,
        clock: Callable[[], float],
        has_work: Callable[[], bool],
        step: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._has_work = has_work
        self._step = step
        self._next: Timer | None = None

    def run(self) -> None:
        """Begin. Does nothing while the next turn goes on with it anyway."""
        if self._next is None:
            self._work()

    def stop(self) -> None:
        """Do nothing in later turns, until `run`."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _work(self) -> None:
        self._next = None
        turn_ends = self._clock() + TURN_BUDGET
        while self._has_work():
            if self._clock() >= turn_ends:
                self._next = self._reactor.callLater(0, self._work)
                return
            self._step()
