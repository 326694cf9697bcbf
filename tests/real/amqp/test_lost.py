"""Calls whose worker is gone, or is not there, and clients in forked processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import DeferredList
from twisted.internet.threads import deferToThread

from tests.support.impatience import make_impatient
from tests.support.taskapp import create_app
from tests.support.waiting import all_outcomes
from twistedcelery import ResultLost, TwistedCelery


@pytest.fixture
def client(broker_url, monkeypatch):
    """``client(**options)``: a client, disconnected afterwards."""
    make_impatient(monkeypatch)
    made = []

    def make(**options):
        made.append(TwistedCelery(create_app(broker_url, "rpc://"), **options))
        return made[-1]

    yield make
    for one in made:
        pytest_twisted.blockon(one.disconnect())


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_calls_of_a_killed_worker_end(client, worker):
    """A worker killed in early acknowledged tasks comes back: its tasks are lost, and no other."""
    killed = await deferToThread(worker, pool="prefork", concurrency=4)
    tx_app = client(lost_after=2)
    slow = [tx_app.send_task("taskapp.sleep", args=(600,)) for _ in range(4)]
    queued = [tx_app.send_task("taskapp.add", args=(n, 1)) for n in range(4)]
    for call in [*slow, *queued]:
        await call.published
    await task.deferLater(reactor, 0.5)
    await deferToThread(killed.kill)
    await deferToThread(killed.start)
    outcomes = await DeferredList([*slow, *queued], consumeErrors=True)
    assert [value for _, value in outcomes[4:]] == [1, 2, 3, 4]
    lost = [failure.value for _, failure in outcomes[:4]]
    assert {type(error) for error in lost} == {ResultLost}
    assert slow[0].task_id in str(lost[0])


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_no_worker(client, worker):
    """With no worker at all the caller is told, once, and the call is answered when one comes."""
    tx_app = client(lost_after=2)
    seen = []
    call = tx_app.send_task("taskapp.add", args=(2, 3)).on_update(lambda *update: seen.append(update))
    await task.deferLater(reactor, 6)
    assert seen == [("WAITING", {"reason": "no worker consumes queue 'celery'"})]
    assert not call.called
    await deferToThread(worker)
    assert await call == 5


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_busy_solo_worker(client, worker):
    """A worker that answers nothing while it runs a task has not lost it, nor what waits behind it."""
    await deferToThread(worker)
    tx_app = client(lost_after=2)
    seen = []
    calls = [tx_app.send_task("taskapp.sleep", args=(10,)), tx_app.send_task("taskapp.add", args=(1, 2))]
    for call in calls:
        call.on_update(lambda *update: seen.append(update))
    assert [await call for call in calls] == [10, 3]
    assert seen == []


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_long_task_and_an_eta(client, worker):
    """A task that a worker runs, and those that it holds until they are due, are not lost."""
    await deferToThread(worker, pool="threads", concurrency=2)
    tx_app = client(lost_after=2)
    running = tx_app.send_task("taskapp.sleep", args=(10,))
    due_later = tx_app.send_task("taskapp.add", args=(1, 2), countdown=8)
    retried = tx_app.send_task("taskapp.retry_once", args=(8,))
    assert [await running, await due_later, await retried] == [10, 3, 1]


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_broker_that_comes_back_without_its_data(rabbitmq_node, worker, new_client, monkeypatch):
    """Calls that waited in its queues are lost, well before ``lost_after``; later ones are answered."""
    make_impatient(monkeypatch)
    url = rabbitmq_node.broker.vhost_url("/")
    tx_app = new_client(create_app(url, "rpc://"))
    calls = [tx_app.send_task("taskapp.add", args=(n, 1)) for n in range(20)]
    for call in calls:
        await call.published
    await deferToThread(rabbitmq_node.kill)
    await deferToThread(rabbitmq_node.wipe)
    await deferToThread(rabbitmq_node.start)
    await deferToThread(worker, broker=url)
    outcomes = await all_outcomes(calls)
    assert {type(error) for error in outcomes} == {ResultLost}
    assert "come back without its queues" in str(outcomes[0])
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


FORKED = """
import os, sys
from twisted.internet import selectreactor
selectreactor.install()
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from tests.support.taskapp import create_app
from twistedcelery import Disconnected, TwistedCelery

tx_app = TwistedCelery(create_app(sys.argv[1], "rpc://"))
pid = os.fork()

async def main():
    calls = [tx_app.send_task("taskapp.add", args=(n, n)) for n in range(50)]
    values = [await call for call in calls]
    assert values == [2 * n for n in range(50)], values
    if pid:
        other = os.fork()
        if not other:
            # The client is connected here; its connections are the parent's.
            try:
                await tx_app.send_task("taskapp.add", args=(1, 1))
            except Disconnected as error:
                assert "forked" in str(error), error
            else:
                os._exit(1)
            assert not tx_app.connected
            await tx_app.disconnect()
            os._exit(0)
        assert os.waitpid(other, 0)[1] == 0
        assert await tx_app.send_task("taskapp.add", args=(1, 1)) == 2
    await tx_app.disconnect()

failures = []
ended = ensureDeferred(main())
ended.addErrback(failures.append)
ended.addBoth(lambda _: reactor.callLater(0, reactor.stop))
reactor.run()
for failure in failures:
    failure.printTraceback()
if not pid:
    os._exit(bool(failures))
assert os.waitpid(pid, 0)[1] == 0
sys.exit(bool(failures))
"""


@pytest.mark.timeout(90)
def test_a_client_made_before_a_fork(broker_url, worker):
    """Parent and child each get all their results; a client in use says in the child that it is not its."""
    worker()
    program = [sys.executable, "-c", FORKED, broker_url]
    ran = subprocess.run(program, check=False, timeout=60, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
