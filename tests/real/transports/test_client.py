"""The whole way through the threads: a client on an embedded broker, and a worker process."""

from __future__ import annotations

import threading
import time

import pytest
import pytest_twisted
from celery.exceptions import ImproperlyConfigured
from twisted.internet import reactor, task
from twisted.internet.defer import CancelledError, DeferredList, gatherResults
from twisted.internet.threads import deferToThread

from tests.real.transports.parts import descriptors
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery
from twistedcelery.errors import NoResultBackend


@pytest.fixture
def files(tmp_path):
    """Settings of an embedded broker, with a result backend beside it."""
    for name in ("messages", "control", "results"):
        (tmp_path / name).mkdir()
    options = {
        "data_folder_in": str(tmp_path / "messages"),
        "data_folder_out": str(tmp_path / "messages"),
        "control_folder": str(tmp_path / "control"),
        "polling_interval": 0.02,
    }
    return {
        "broker": "filesystem://",
        "backend": f"file://{tmp_path}/results",
        "config": {"broker_transport_options": options},
    }


@pytest.fixture
def client():
    """``client(files)``: a client, disconnected after the test."""
    made = []

    def make(files, **options):
        made.append(
            TwistedCelery(create_app(files["broker"], files["backend"], **files["config"]), **options)
        )
        return made[-1]

    yield make
    for one in made:
        pytest_twisted.blockon(one.disconnect())


@pytest_twisted.ensureDeferred
async def test_a_task_returns_fails_and_tells_its_progress(files, client, worker, tmp_path):
    """Results, exceptions and states come back over files; nothing is left after ``disconnect``."""
    await deferToThread(worker, **files)
    before = threading.active_count(), descriptors()
    tx_app = client(files)
    call = tx_app.send_task("taskapp.add", args=(2, 3))
    await call.published
    assert await call == 5
    with pytest.raises(ValueError, match="boo"):
        await tx_app.send_task("taskapp.fail", args=("boo",))
    states = []
    call = tx_app.send_task("taskapp.countdown", args=(3,), kwargs={"delay": 0.2})
    call.on_update(lambda state, meta: states.append((state, meta)))
    assert await call == 3
    assert states == [("PROGRESS", {"current": number, "total": 3}) for number in (1, 2, 3)]
    assert threading.active_count() == before[0] + 2
    await tx_app.disconnect()
    assert threading.active_count() == before[0]
    assert descriptors() <= before[1]
    assert not list((tmp_path / "messages").iterdir())


@pytest_twisted.ensureDeferred
async def test_many_calls_at_once_use_two_threads_and_do_not_hold_up_the_reactor(files, client, worker):
    """500 calls at once all get their own result, in two threads, and the reactor stays responsive."""
    await deferToThread(worker, **files)
    before = threading.active_count()
    tx_app = client(files)
    late, last = [], time.perf_counter()

    def tick():
        nonlocal last
        late.append(time.perf_counter() - last - 0.005)
        last = time.perf_counter()

    ticking = task.LoopingCall(tick)
    ticking.start(0.005)
    calls = [tx_app.send_task("taskapp.add", args=(number, 1)) for number in range(500)]
    await calls[0].published
    assert threading.active_count() == before + 2
    assert await gatherResults(calls) == list(range(1, 501))
    ticking.stop()
    assert tx_app.in_flight == 0
    # The worker shares the processor; a blocking call of the transport would show as one long gap.
    assert max(late) < 0.25


@pytest_twisted.ensureDeferred
async def test_a_cancelled_task_does_not_run(files, client, worker, tmp_path):
    """Cancelling broadcasts a revoke over the files; a worker that gets to the task later skips it."""
    await deferToThread(worker, **files)
    tx_app = client(files)
    # It is not due yet: a worker whose pool has a task already would not look at revokes any more.
    cancelled = tx_app.send_task("taskapp.touch", args=(str(tmp_path / "touched"),), countdown=4)
    await cancelled.published
    cancelled.cancel()
    with pytest.raises(CancelledError):
        await cancelled
    assert await tx_app.send_task("taskapp.add", args=(1, 1), countdown=5) == 2
    assert not (tmp_path / "touched").exists()


@pytest_twisted.ensureDeferred
async def test_the_application_stays_usable_beside_the_client(redis_server, client, worker):
    """Celery's own blocking calls in another thread get their results while the client gets its own."""
    # Not on files: where Celery's own client publishes, a worker may read a message half written.
    server = {"broker": redis_server.url(0), "backend": redis_server.url(1)}
    await deferToThread(worker, **server)
    tx_app = client({**server, "config": {}})

    def blocking(number):
        return tx_app.app.send_task("taskapp.add", args=(number, 1)).get(timeout=20, interval=0.05)

    outcomes = []
    for number in range(10):
        outcomes += [deferToThread(blocking, number), tx_app.send_task("taskapp.add", args=(number, 100))]
    results = await gatherResults(outcomes)
    assert results == [value for number in range(10) for value in (number + 1, number + 100)]


@pytest_twisted.ensureDeferred
async def test_without_a_result_backend_the_task_is_sent_and_the_call_says_so(files, client, tmp_path):
    """The call fails once the task is sent, and succeeds with ``ignore_result``."""
    files["backend"] = None
    tx_app = client(files)
    call = tx_app.send_task("taskapp.add", args=(1, 2))
    await call.published
    with pytest.raises(NoResultBackend):
        await call
    assert await tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True) is None
    assert len(list((tmp_path / "messages").iterdir())) == 3  # two messages, and the outbox


@pytest_twisted.ensureDeferred
async def test_an_unusable_result_backend_fails_calls_before_they_are_sent(files, client, tmp_path):
    """Every call is told that the result backend is set up wrong, and no task is sent in vain."""
    files["backend"] = "file:///no/such/folder"
    tx_app = client(files)
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured, match="result_backend"):
            await tx_app.send_task("taskapp.add", args=(1, 2))
    assert not list((tmp_path / "messages").iterdir())


@pytest_twisted.ensureDeferred
async def test_disconnecting_ends_all_calls(files, client):
    """Calls that wait for a worker fail when the client is disconnected, in a moment."""
    tx_app = client(files)
    calls = [tx_app.send_task("taskapp.add", args=(number, 1)) for number in range(50)]
    await calls[0].published
    started = reactor.seconds()
    ended = DeferredList(calls, consumeErrors=True)
    await tx_app.disconnect()
    assert {failure.type.__name__ for success, failure in await ended if not success} == {"Disconnected"}
    assert reactor.seconds() - started < 2
