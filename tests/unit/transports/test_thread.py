"""The dedicated thread, beside a reactor that the test runs."""

from __future__ import annotations

import threading

import pytest

from tests.unit.transports.amqp.fakes import outcomes_of
from tests.unit.transports.reactor import ThreadClock
from twistedcelery.errors import Disconnected
from twistedcelery.transports.threads.thread import STOP_LIMIT, DedicatedThread


@pytest.fixture
def reactor():
    return ThreadClock()


def ended(thread):
    """Stop a thread, and return a function that tells whether it has ended."""
    told = []
    thread.stop().addCallback(told.append)
    return lambda: bool(told)


def test_jobs_run_in_order_in_one_other_thread(reactor):
    """All jobs run in the same thread, which is not the test's, one after another."""
    thread = DedicatedThread(reactor, "under-test")
    ran = []
    for number in range(250):
        thread.submit(lambda number=number: ran.append((number, threading.current_thread())))
    thread.submit(lambda: thread.post(lambda: None))
    reactor.run_until(lambda: len(ran) == 250)
    assert [number for number, _ in ran] == list(range(250))
    assert {one.name for _, one in ran} == {"under-test"}
    assert all(one.daemon for _, one in ran)
    reactor.run_until(ended(thread))


def test_there_is_no_thread_before_the_first_job(reactor):
    """A thread that was given nothing to do is never started, and stops at once."""
    before = threading.active_count()
    thread = DedicatedThread(reactor, "under-test")
    assert ended(thread)()
    assert threading.active_count() == before


def test_posts_share_a_wake_up(reactor):
    """What is posted before the reactor gets to it costs one call of ``callFromThread``, in order."""
    thread = DedicatedThread(reactor, "under-test")
    told = []
    posted = threading.Event()

    def job():
        for number in range(100):
            thread.post(told.append, number)
        posted.set()

    thread.submit(job)
    assert posted.wait(5)
    reactor.run_until(lambda: len(told) == 100)
    assert told == list(range(100))
    assert reactor.wake_ups == 1
    reactor.run_until(ended(thread))


def test_a_failing_job_is_logged_and_the_next_one_runs(reactor, logged_errors):
    """A defect in one job does not end the thread."""
    thread = DedicatedThread(reactor, "under-test")
    ran = []
    thread.submit(lambda: 1 / 0)
    thread.submit(lambda: thread.post(ran.append, 1))
    reactor.run_until(lambda: ran == [1])
    reactor.run_until(ended(thread))
    assert [failure.type for failure in logged_errors.flush()] == [ZeroDivisionError]


def test_a_failing_callback_does_not_swallow_the_next_one(reactor, logged_errors):
    """What one receiver raises on the reactor does not keep from others what was posted for them."""
    thread = DedicatedThread(reactor, "under-test")
    told = []

    def job():
        thread.post(lambda: 1 / 0)
        thread.post(told.append, 1)

    thread.submit(job)
    reactor.run_until(lambda: told == [1])
    reactor.run_until(ended(thread))
    assert [failure.type for failure in logged_errors.flush()] == [ZeroDivisionError]


def test_the_step_runs_between_jobs_and_as_often_as_it_asks(reactor):
    """The thread's own work goes on without jobs, after the pause that it asked for."""
    steps = []

    def step():
        steps.append(None)
        if len(steps) == 3:
            thread.post(lambda: None)
        return 0.001 if len(steps) < 3 else None

    thread = DedicatedThread(reactor, "under-test", step=step)
    thread.submit(lambda: None)
    reactor.run_until(lambda: len(steps) >= 3)
    reactor.run_until(ended(thread))


def test_stopping_drops_jobs_and_finishes(reactor):
    """``stop`` lets the running job end, drops the others, and has the thread clean up. Twice is fine."""
    ran, release, started = [], threading.Event(), threading.Event()

    def job():
        started.set()
        release.wait(5)
        ran.append("first")

    thread = DedicatedThread(reactor, "under-test", finish=lambda: ran.append("finish"))
    thread.submit(job)
    thread.submit(lambda: ran.append("second"))
    assert started.wait(5)
    first, second = ended(thread), ended(thread)
    thread.submit(lambda: ran.append("third"))
    release.set()
    reactor.run_until(lambda: first() and second())
    assert ran == ["first", "finish"]
    assert ended(thread)()
    assert not reactor.getDelayedCalls()
    assert "under-test" not in {one.name for one in threading.enumerate()}


def test_a_thread_that_hangs_is_left_behind(reactor):
    """``stop`` fires after its limit though the thread is inside a call that does not return."""
    release, started = threading.Event(), threading.Event()
    thread = DedicatedThread(reactor, "under-test")
    thread.submit(lambda: (started.set(), release.wait(20)))
    assert started.wait(5)
    has_ended = ended(thread)
    reactor.advance(STOP_LIMIT - 0.1)
    assert not has_ended()
    reactor.advance(0.2)
    assert has_ended()
    release.set()


def test_a_call_fires_with_its_jobs_outcome(reactor):
    """What the job returns or raises reaches the caller on the reactor's thread."""
    thread = DedicatedThread(reactor, "under-test")
    value, error = outcomes_of(thread.call(lambda: 7)), outcomes_of(thread.call(lambda: {}["missing"]))
    assert not value
    reactor.run_until(lambda: value and error)
    assert value == [7]
    assert isinstance(error[0], KeyError)
    reactor.run_until(ended(thread))
    assert isinstance(outcomes_of(thread.call(lambda: 7))[0], Disconnected)


@pytest.mark.parametrize("end", ["timeout", "cancel", "stop"])
def test_a_call_whose_job_hangs(reactor, end):
    """Its caller waits no longer than allowed, and a late outcome changes nothing."""
    release, started, late = threading.Event(), threading.Event(), []
    thread = DedicatedThread(reactor, "under-test")

    def job():
        started.set()
        release.wait(20)

    call = thread.call(job, 5.0, lambda: ValueError("given up"))
    outcome = outcomes_of(call)
    thread.submit(lambda: thread.post(late.append, "late"))
    assert started.wait(5)
    if end == "timeout":
        reactor.advance(4.9)
        assert not outcome
        reactor.advance(0.2)
    elif end == "cancel":
        call.cancel()
    has_ended = ended(thread) if end == "stop" else None
    assert type(outcome[0]) is (Disconnected if end == "stop" else ValueError)
    release.set()
    reactor.run_until(has_ended or (lambda: late))
    assert len(outcome) == 1
    if has_ended is None:
        reactor.run_until(ended(thread))
    assert not reactor.getDelayedCalls()


def test_many_calls_are_answered_in_order(reactor):
    """A burst of calls is carried out one after another."""
    thread = DedicatedThread(reactor, "under-test")
    told = []
    for number in range(500):
        thread.call(lambda number=number: number).addCallback(told.append)
    reactor.run_until(lambda: len(told) == 500)
    assert told == list(range(500))
    reactor.run_until(ended(thread))
