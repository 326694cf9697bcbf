"""`ThreadedResults` with backends that fail as the test says."""

from __future__ import annotations

import threading

import pytest
from celery import Celery
from celery.backends.base import KeyValueStoreBackend

from tests.unit.transports.reactor import ThreadClock
from twistedcelery.errors import ConfigurationError, Disconnected, ResultBackendUnavailable
from twistedcelery.transports.threads.results import ThreadedResults
from twistedcelery.transports.threads.thread import STOP_LIMIT


class Store(KeyValueStoreBackend):
    """A key-value store in memory that can be broken."""

    failure: Exception | None = None
    hang: threading.Event | None = None
    asked = threading.Event()

    def mget(self, keys):
        type(self).asked.set()
        if self.hang is not None:
            self.hang.wait(20)
        if self.failure is not None:
            raise self.failure
        return [None for _ in keys]


class Receiver:
    def __init__(self):
        self.failures = []

    def state_changed(self, task_id, meta):
        raise AssertionError("there are no states")

    def reply_failed(self, task_id, error):
        self.failures.append((task_id, error))


class Setup:
    def __init__(self, backend):
        self.reactor, self.receiver = ThreadClock(), Receiver()
        app = Celery(set_as_current=False, backend=backend)
        self.results = ThreadedResults(app, self.reactor, self.receiver, give_up_after=30)

    def watch(self, task_id):
        outcome = []
        placed = self.results.watch(task_id)
        if placed is None:
            return [None]
        placed.addBoth(lambda result: outcome.append(getattr(result, "value", result)))
        return outcome

    def outcome(self, outcome):
        self.reactor.run_until(lambda: bool(outcome))
        return outcome[0]

    def close(self):
        closed = []
        self.results.close().addCallback(closed.append)
        self.reactor.run_until(lambda: bool(closed))
        assert not self.reactor.getDelayedCalls()


@pytest.fixture
def setup():
    made = []

    def make(backend=f"{__name__}:Store"):
        made.append(Setup(backend))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def store():
    """The class of the backend, as it was afterwards."""
    Store.asked.clear()
    yield Store
    Store.failure = Store.hang = None


def test_a_polled_backend_needs_no_waiting_once_it_was_reached(setup, store):
    """The first task waits until the backend has answered, others need not."""
    one = setup()
    assert not one.results.connected
    assert one.outcome(one.watch("first")) is None
    assert one.results.connected
    assert one.results.watch("second") is None


def test_a_backend_that_stays_away_is_given_up(setup, store):
    """After the time allowed everybody who waits is told, with the reason."""
    store.failure = OSError("disk on fire")
    one = setup()
    waiting = one.watch("a")
    one.reactor.run_until(lambda: "disk on fire" in one.results._trouble)
    assert not waiting
    one.reactor.advance(29)
    assert not waiting
    one.reactor.advance(2)
    assert isinstance(waiting[0], ResultBackendUnavailable)
    assert "disk on fire" in str(waiting[0])
    assert not one.receiver.failures


def test_published_tasks_are_told_when_the_backend_goes_away(setup, store):
    """A task that was published already fails through the receiver."""
    one = setup()
    assert one.outcome(one.watch("a")) is None
    store.failure = OSError("disk on fire")
    one.reactor.advance(1)
    one.reactor.run_until(lambda: not one.results.connected)
    one.reactor.advance(31)
    ((task_id, error),) = one.receiver.failures
    assert task_id == "a"
    assert isinstance(error, ResultBackendUnavailable)


def test_a_backend_that_hangs_is_given_up(setup, store):
    """A driver's call that does not return is noticed as well, and does not hold up ``close``."""
    store.hang = threading.Event()
    one = setup()
    waiting = one.watch("a")
    assert store.asked.wait(5)
    one.reactor.advance(31)
    assert isinstance(waiting[0], ResultBackendUnavailable)
    closed = []
    one.results.close().addCallback(closed.append)
    assert not closed
    one.reactor.advance(STOP_LIMIT + 0.1)
    assert closed
    store.hang.set()


@pytest.mark.parametrize(
    ("backend", "named"),
    [
        ("nosuch://", "nosuch"),
        ("file:///no/such/folder", "path"),
        ("db+nosuch://me:t0p-secret@host/", "nosuch"),
        ("no.such.module:Backend", "no"),
    ],
)
def test_a_backend_that_cannot_work_fails_each_call(setup, backend, named):
    """A bad URL, a missing driver or folder: every call is told which setting is wrong."""
    one = setup(backend)
    for task_id in ("a", "b"):
        error = one.outcome(one.watch(task_id))
        assert isinstance(error, ConfigurationError)
        assert "result_backend" in str(error)
        assert named in str(error)
        assert "t0p-secret" not in str(error)


def test_closing_fails_whoever_waits(setup, store):
    """A task that waits for the backend fails, and so does one that comes later."""
    store.failure = OSError("down")
    one = setup()
    waiting = one.watch("a")
    one.results.close()
    assert isinstance(waiting[0], Disconnected)
    assert isinstance(one.watch("b")[0], Disconnected)


def test_a_cancelled_wait_is_left_alone(setup, store):
    """Whoever cancels waiting for a task is told what it waited for, and once it is forgotten no more."""
    store.failure = OSError("down")
    one = setup()
    placed = one.results.watch("a")
    outcome = []
    placed.addErrback(outcome.append)
    placed.cancel()
    one.results.forget("a")
    one.reactor.advance(31)
    (failure,) = outcome
    assert isinstance(failure.value, ResultBackendUnavailable)
    assert not one.receiver.failures
