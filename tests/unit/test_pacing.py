"""A burst of work is spread over reactor turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from twistedcelery.calls.dispatcher import Pacer


class Turns(Clock):
    """A clock by which a reactor turn takes a second; `Clock.advance` would run them all in one."""

    def callLater(self, delay: float, function: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        return super().callLater(delay + 1, function, *args, **kwargs)


class Burst:
    """A pacer with 4 seconds a turn; each of its jobs takes one."""

    def __init__(self) -> None:
        self.reactor = Turns()
        self.now = 100.0
        self.pacer = Pacer(self.reactor, lambda: self.now, budget=4)
        self.done: list[int] = []

    def job(self, number: int) -> Callable[[], None]:
        def work() -> None:
            self.now += 1
            self.done.append(number)

        return work

    def turn(self) -> None:
        self.reactor.advance(1)


@pytest.fixture
def burst() -> Burst:
    return Burst()


def test_there_is_room_until_the_budget_is_spent(burst):
    """Jobs run at once while the turn's budget lasts."""
    assert burst.pacer.has_room()
    burst.now += 3.9
    assert burst.pacer.has_room()
    burst.now += 0.2
    assert not burst.pacer.has_room()


def test_the_next_turn_has_room_again(burst):
    """Each reactor turn has a budget of its own."""
    burst.pacer.has_room()
    burst.now += 5
    assert not burst.pacer.has_room()
    burst.turn()
    assert burst.pacer.has_room()


def test_queued_jobs_run_in_order_within_budget(burst):
    """Each turn runs as many jobs as its budget allows, in order, and at least one."""
    for number in range(10):
        burst.pacer.enqueue(burst.job(number))
    assert burst.done == []
    burst.turn()
    assert burst.done == [0, 1, 2, 3]
    burst.turn()
    assert burst.done == [0, 1, 2, 3, 4, 5, 6, 7]
    burst.turn()
    assert burst.done == list(range(10))


def test_nobody_jumps_the_queue(burst):
    """There is no room while jobs are queued, whatever the budget."""
    burst.pacer.enqueue(burst.job(1))
    assert not burst.pacer.has_room()
    burst.turn()
    assert burst.pacer.has_room()


def test_a_job_may_queue_another(burst):
    """What a job queues runs after what was queued before it."""
    burst.pacer.enqueue(lambda: burst.pacer.enqueue(burst.job(3)))
    burst.pacer.enqueue(burst.job(1))
    burst.pacer.enqueue(burst.job(2))
    burst.turn()
    assert burst.done == [1, 2, 3]


def test_an_idle_pacer_leaves_no_timer(burst):
    """When nothing is left to do, nothing is left with the reactor."""
    burst.pacer.enqueue(burst.job(1))
    burst.turn()
    burst.turn()
    assert burst.reactor.getDelayedCalls() == []


def test_stop_forgets_the_jobs(burst):
    """After `stop` no job runs and no timer is left; it may be called twice."""
    burst.pacer.enqueue(burst.job(1))
    burst.pacer.stop()
    burst.pacer.stop()
    assert burst.reactor.getDelayedCalls() == []
    burst.turn()
    assert burst.done == []


def test_a_job_may_stop_the_pacer(burst):
    """A job that stops the pacer is the last one to run."""
    burst.pacer.enqueue(burst.pacer.stop)
    burst.pacer.enqueue(burst.job(1))
    burst.turn()
    burst.turn()
    assert burst.done == []
    assert burst.reactor.getDelayedCalls() == []
