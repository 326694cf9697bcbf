"""Workers, and the processes of their pools, are killed while they run tasks."""

from __future__ import annotations

import os
import signal

import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread

from tests.real.faults.tasks import APP, executions
from tests.real.faults.trial import Size, fault
from tests.support.taskapp import create_app
from tests.support.waiting import until

CHILDREN = 4


async def lose_children(trial, broker_url, worker, new_client, task_name):
    """Kill a process of a worker's pool, again and again."""
    running = await deferToThread(worker, app=APP, pool="prefork", concurrency=CHILDREN)
    tx_app = new_client(create_app(broker_url, "rpc://"), lost_after=5)
    async with trial.calls(tx_app, task_name=task_name, seconds=0.3) as load:
        await load.burst(trial.size.calls)
        await load.all_confirmed()
        for _ in range(3):
            await task.deferLater(reactor, 0.5)
            for child in running.process.descendants[1:2]:
                os.kill(child, signal.SIGKILL)


async def lose_worker(trial, broker_url, worker, new_client, task_name):
    """Kill a whole worker, and start it again."""
    running = await deferToThread(worker, app=APP, pool="prefork", concurrency=CHILDREN)
    tx_app = new_client(create_app(broker_url, "rpc://"), lost_after=5)
    async with trial.calls(tx_app, task_name=task_name, seconds=0.3) as load:
        await load.burst(trial.size.calls)
        await load.all_confirmed()
        await task.deferLater(reactor, 0.5)
        await deferToThread(running.kill)
        await deferToThread(running.start)


@fault("Worker: a process of its pool is killed, three times", short=Size(calls=30), long=Size(calls=50))
@pytest_twisted.ensureDeferred
async def test_child(trial, broker_url, worker, new_client):
    """The worker itself reports what its process had."""
    await lose_children(trial, broker_url, worker, new_client, "faults.run")
    trial.ended_with({"WorkerLostError"})
    assert 1 <= trial.counts.errors["WorkerLostError"] <= 3


@fault(
    "Worker: a process of its pool is killed, three times, with `acks_late`", short=None, long=Size(calls=50)
)
@pytest_twisted.ensureDeferred
async def test_child_late(trial, broker_url, worker, new_client):
    """RabbitMQ delivers again what the process had."""
    await lose_children(trial, broker_url, worker, new_client, "faults.run_late")
    assert trial.counts.results == trial.counts.calls
    assert trial.counts.twice >= 1


@fault("Worker is killed and restarted", short=Size(calls=30), long=Size(calls=50))
@pytest_twisted.ensureDeferred
async def test_worker(trial, broker_url, worker, new_client):
    """What it ran is told as lost; what it had only fetched is delivered again."""
    await lose_worker(trial, broker_url, worker, new_client, "faults.run")
    trial.ended_with({"ResultLost"})
    assert 1 <= trial.counts.errors["ResultLost"] <= 2 * CHILDREN


@fault("Worker is killed and restarted, with `acks_late`", short=None, long=Size(calls=50))
@pytest_twisted.ensureDeferred
async def test_worker_late(trial, broker_url, worker, new_client):
    """RabbitMQ delivers again all that it had not acknowledged."""
    await lose_worker(trial, broker_url, worker, new_client, "faults.run_late")
    assert trial.counts.results == trial.counts.calls
    assert trial.counts.twice >= 1


@fault("Replies: results of 1 MB, for calls that were given up", short=None, long=Size(calls=300))
@pytest_twisted.ensureDeferred
async def test_given_up(trial, broker_url, worker, new_client):
    """What their tasks return is not kept without a bound."""
    await deferToThread(worker, app=APP, pool="threads", concurrency=trial.size.calls)
    tx_app = new_client(create_app(broker_url, "rpc://"), lost_after=None)
    async with trial.calls(tx_app, seconds=3, size=10**6) as load:
        await load.burst(trial.size.calls)
        await until(lambda: len(executions(trial.path)) == trial.size.calls, what="all tasks run")
        load.cancel_all()
    assert trial.counts.errors == {"CallCancelled": trial.size.calls}
    assert trial.counts.memory < 100
