"""Calls over Redis whose worker is gone, or is not there."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import DeferredList
from twisted.internet.threads import deferToThread

from tests.support.impatience import make_impatient
from twistedcelery import ResultLost


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Do not wait long for anything."""
    make_impatient(monkeypatch)


@pytest.fixture
def urls(redis_server):
    """A broker and a result backend."""
    return redis_server.url(0), redis_server.url(1)


@pytest.mark.timeout(90)
@pytest_twisted.ensureDeferred
async def test_calls_of_a_killed_worker_end(urls, worker, connect):
    """A worker killed in early acknowledged tasks comes back: its tasks are lost, and no other."""
    killed = await deferToThread(worker, *urls, pool="prefork", concurrency=4)
    tx_app = connect(*urls, options={"lost_after": 2})
    slow = [tx_app.send_task("taskapp.sleep", args=(600,)) for _ in range(4)]
    for call in slow:
        await call.published
    await task.deferLater(reactor, 1)
    await deferToThread(killed.kill)
    await deferToThread(killed.start)
    outcomes = await DeferredList(slow, consumeErrors=True)
    assert {type(failure.value) for _, failure in outcomes} == {ResultLost}
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest.mark.timeout(90)
@pytest_twisted.ensureDeferred
async def test_a_worker_that_is_not_seen_again(urls, worker, connect):
    """A worker that has neither stopped in good order nor answered may have the task: it is not lost."""
    killed = await deferToThread(worker, *urls, pool="prefork")
    tx_app = connect(*urls, options={"lost_after": 1})
    call = tx_app.send_task("taskapp.sleep", args=(600,))
    await call.published
    await task.deferLater(reactor, 1)
    await deferToThread(killed.kill)
    await deferToThread(worker, *urls)
    await task.deferLater(reactor, 10)
    assert not call.called
    call.cancel()
    call.addErrback(lambda _: None)


@pytest.mark.timeout(90)
@pytest_twisted.ensureDeferred
async def test_no_worker(urls, worker, connect):
    """With no worker at all the caller is told, once, and the call is answered when one comes."""
    tx_app = connect(*urls, options={"lost_after": 1}, task_default_queue="tasks")
    seen = []
    call = tx_app.send_task("taskapp.add", args=(2, 3)).on_update(lambda *update: seen.append(update))
    await task.deferLater(reactor, 6)
    assert seen == [("WAITING", {"reason": "no worker consumes queue 'tasks'"})]
    # This one consumes another queue.
    await deferToThread(worker, *urls)
    await task.deferLater(reactor, 3)
    assert len(seen) == 1
    assert not call.called
    await deferToThread(worker, *urls, queues="tasks")
    assert await call == 5


@pytest.mark.timeout(90)
@pytest_twisted.ensureDeferred
async def test_a_busy_solo_worker(urls, worker, connect):
    """A worker that answers nothing while it runs a task has not lost it, nor what waits behind it."""
    await deferToThread(worker, *urls)
    tx_app = connect(*urls, options={"lost_after": 1})
    seen = []
    calls = [tx_app.send_task("taskapp.sleep", args=(10,)), tx_app.send_task("taskapp.add", args=(1, 2))]
    for call in calls:
        call.on_update(lambda *update: seen.append(update))
    assert [await call for call in calls] == [10, 3]
    assert seen == []


@pytest.mark.timeout(90)
@pytest_twisted.ensureDeferred
async def test_tasks_that_a_worker_holds(urls, worker, connect):
    """A task that runs, or has an ETA, or is retried later, is not lost."""
    await deferToThread(worker, *urls, pool="threads", concurrency=2)
    tx_app = connect(*urls, options={"lost_after": 1})
    running = tx_app.send_task("taskapp.sleep", args=(10,))
    due_later = tx_app.send_task("taskapp.add", args=(1, 2), countdown=8)
    retried = tx_app.send_task("taskapp.retry_once", args=(8,))
    assert [await running, await due_later, await retried] == [10, 3, 1]
