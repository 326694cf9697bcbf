"""Calls over a real Redis and real workers."""

from __future__ import annotations

import gc
import itertools
import threading
import time

import celery.exceptions
import kombu
import pytest
import pytest_twisted
import redis
from twisted.internet import reactor, task
from twisted.internet.defer import gatherResults

import twistedcelery
from tests.real.transports.parts import descriptors


@pytest_twisted.ensureDeferred
async def test_a_task_returns_its_value(running):
    """A call fires with what the task returns, without the threads of the other transport."""
    call = running().send_task("taskapp.add", args=(2, 3))
    assert await call.published is None
    assert await call == 5
    assert call.meta["status"] == "SUCCESS"
    assert not [thread.name for thread in threading.enumerate() if "twistedcelery" in thread.name]


@pytest_twisted.ensureDeferred
async def test_a_failing_task_fails_as_in_celery(running):
    """The Deferred fails with the task's exception, rebuilt by Celery, and carries the traceback."""
    tx_app = running()
    call = tx_app.send_task("taskapp.fail", args=("boo",))
    with pytest.raises(ValueError, match=r"^boo$"):
        await call
    assert "raise ValueError(message)" in call.traceback
    with pytest.raises(celery.exceptions.NotRegistered, match=r"nobody\.knows"):
        await tx_app.send_task("nobody.knows")


@pytest_twisted.ensureDeferred
async def test_progress_is_pushed_in_order(running):
    """``on_update`` sees each state that is not final, in order, as soon as it is stored."""
    seen, seen_at = [], []

    def update(state, meta):
        seen.append((state, meta))
        seen_at.append(reactor.seconds())

    call = running().send_task("taskapp.countdown", args=(5, 0.1))
    assert await call.on_update(update) == 5
    assert seen == [("PROGRESS", {"current": current, "total": 5}) for current in range(1, 6)]
    # Polled, several would come together.
    assert min(later - earlier for earlier, later in itertools.pairwise(seen_at)) > 0.03


@pytest_twisted.ensureDeferred
async def test_a_retry_is_an_update_and_not_the_end(running):
    """RETRY is reported with its exception, and the call ends with the later attempt."""
    seen = []
    call = running().send_task("taskapp.retry_once")
    call.on_update(lambda state, meta: seen.append((state, meta)))
    assert await call == 1
    ((state, error),) = seen
    assert state == "RETRY"
    assert "first attempt" in str(error)


@pytest_twisted.ensureDeferred
async def test_1000_calls_in_flight(running, redis_server):
    """Each gets its own result, over the same connections, and no subscription is left."""
    tx_app = running()
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    server = redis.Redis(port=redis_server.port)
    before = len(server.client_list())
    calls = [tx_app.send_task("taskapp.add", args=(n, n)) for n in range(1000)]
    assert tx_app.in_flight == 1000
    assert await gatherResults(calls) == [2 * n for n in range(1000)]
    assert len(server.client_list()) == before
    # The last UNSUBSCRIBE may still be on its way.
    deadline = reactor.seconds() + 10
    while server.pubsub_channels("celery-task-meta-*"):
        assert reactor.seconds() < deadline, "subscriptions are left"
        await task.deferLater(reactor, 0.01)
    server.close()


@pytest_twisted.ensureDeferred
async def test_cancel_revokes_the_task(running, tmp_path):
    """A cancelled call ends at once, and its task, which had not started, never runs."""
    tx_app = running()
    marker = tmp_path / "ran"
    call = tx_app.send_task("taskapp.touch", args=(str(marker),), countdown=1)
    await call.published
    call.cancel()
    with pytest.raises(twistedcelery.CallCancelled):
        await call
    assert await tx_app.send_task("taskapp.add", args=(1, 1), countdown=2) == 2
    assert not marker.exists()


@pytest_twisted.ensureDeferred
async def test_revoked_by_somebody_else(running):
    """A task that others revoke fails with Celery's ``TaskRevokedError``."""
    tx_app = running()
    call = tx_app.send_task("taskapp.add", args=(1, 1), countdown=1)
    await call.published
    await tx_app.revoke(call.task_id)
    with pytest.raises(celery.exceptions.TaskRevokedError):
        await call


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_transport_options": {"global_keyprefix": "broker:"}},
        {"result_backend_transport_options": {"global_keyprefix": "results:"}},
        {"broker_transport_options": {"priority_steps": [0, 5], "sep": ":", "fanout_prefix": "/other."}},
        {"result_compression": "gzip"},
        {"result_serializer": "yaml", "accept_content": ["json", "yaml"]},
        {"task_protocol": 1},
    ],
    ids=",".join,
)
@pytest_twisted.ensureDeferred
async def test_options_of_kombu_and_celery(running, settings):
    """With each of them tasks are found, results come back, and revokes are heard."""
    tx_app = running(**settings)
    assert await tx_app.send_task("taskapp.add", args=(1, 2), priority=7) == 3
    call = tx_app.send_task("taskapp.add", args=(1, 1), countdown=1)
    await call.published
    await tx_app.revoke(call.task_id)
    with pytest.raises(celery.exceptions.TaskRevokedError):
        await call


@pytest_twisted.ensureDeferred
async def test_a_queue_bound_to_a_topic_exchange(redis_server, worker, connect):
    """A message goes to the queues that are bound for its key; where there is none it is unroutable."""
    urls = redis_server.url(0), redis_server.url(1)
    exchange = kombu.Exchange("animals", "topic")
    with kombu.Connection(urls[0]) as connection:
        kombu.Queue("pets", exchange, "*.pet")(connection.default_channel).declare()
    worker(*urls, queues="pets")
    tx_app = connect(*urls)
    others = kombu.Queue("others", exchange, "*.other")
    assert await tx_app.send_task("taskapp.add", args=(1, 2), queue=others, routing_key="cat.pet") == 3
    with pytest.raises(twistedcelery.Unroutable, match="animals"):
        await tx_app.send_task("taskapp.add", args=(1, 2), queue=others, routing_key="stone")


@pytest.mark.parametrize("native", ["broker", "backend"])
@pytest_twisted.ensureDeferred
async def test_redis_beside_rabbitmq(redis_server, broker_url, worker, connect, native):
    """An AMQP broker with results in Redis, and a Redis broker with ``rpc://``."""
    urls = (redis_server.url(0), "rpc://") if native == "broker" else (broker_url, redis_server.url(1))
    worker(*urls)
    tx_app = connect(*urls)
    assert await gatherResults([tx_app.send_task("taskapp.add", args=(n, 1)) for n in range(20)]) == [
        n + 1 for n in range(20)
    ]


@pytest_twisted.ensureDeferred
async def test_nothing_is_left(redis_server, worker, connect):
    """After ``disconnect()`` there is no descriptor, timer or connection more than before."""
    server = redis.Redis(port=redis_server.port)
    urls = redis_server.url(0), redis_server.url(1)
    worker(*urls)
    names = {"broker_transport_options": {"client_name": "ours"}, "redis_client_name": "ours"}
    tx_app = connect(*urls, **names)

    def ours():
        return [client for client in server.client_list() if client["name"] == "ours"]

    assert ours() == []
    await task.deferLater(reactor, 0)
    # What others have left to the garbage collector is not ours.
    gc.collect()
    before = descriptors(), len(reactor.getDelayedCalls())
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    assert len(ours()) == 3
    await tx_app.disconnect()
    # The poller of the kombu connection that Celery asks for its transport's name.
    gc.collect()
    assert descriptors() <= before[0]
    assert len(reactor.getDelayedCalls()) <= before[1]
    deadline = time.monotonic() + 5
    while ours():
        assert time.monotonic() < deadline, "a connection is left"
    server.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("forget", [("DEL", "_kombu.binding.reply.celery.pidbox"), ("FLUSHALL",)])
@pytest_twisted.ensureDeferred
async def test_replies_after_redis_has_forgotten_the_binding(running, redis_server, forget):
    """The next command has its replies; a call has its result."""
    tx_app = running()
    assert len(await tx_app.control.ping(timeout=5, limit=1)) == 1
    server = redis.Redis(port=redis_server.port)
    server.execute_command(*forget)
    server.close()
    assert len(await tx_app.control.ping(timeout=5, limit=1)) == 1
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest_twisted.ensureDeferred
async def test_a_task_after_redis_has_forgotten_its_queue(redis_server, connect):
    """A queue of an exchange of its own is bound again."""
    queue = kombu.Queue("mine", kombu.Exchange("mine"), "mine")
    tx_app = connect(redis_server.url(0), redis_server.url(1), task_queues=[queue])
    server = redis.Redis(port=redis_server.port)
    for _ in range(2):
        await tx_app.send_task("taskapp.add", queue="mine", ignore_result=True)
        assert server.llen("mine") == 1
        server.flushall()
    server.close()
