"""Calls while Redis goes away, refuses, or says nothing."""

from __future__ import annotations

import socket
import time

import pytest
import pytest_twisted
import redis
from twisted.internet import task
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.ports import free_port
from tests.support.waiting import all_outcomes, until

# Celery's Redis backend, as workers use it.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


def published(tx_app, name="taskapp.add", args=(1, 2), **options):
    """Send a task whose result nobody waits for, as there is no worker."""
    call = tx_app.send_task(name, args=args, **options)
    call.addErrback(lambda failure: failure.trap(twistedcelery.TwistedCeleryError))
    return call.published


def key_of(call):
    """Where Celery stores the result of a call."""
    return f"celery-task-meta-{call.task_id}"


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_results_survive_a_killed_redis_that_keeps_its_data(redis_with, worker, connect):
    """Killed, and restarted with its append-only file: no result that is stored is missed."""
    server = await deferToThread(redis_with, appendonly="yes", appendfsync="always")
    urls = server.url(0), server.url(1)
    await deferToThread(worker, *urls)
    tx_app = connect(*urls)
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    calls = [tx_app.send_task("taskapp.sleep", args=(0.02,)) for _ in range(100)]
    values = []
    for call in calls:
        call.addCallbacks(values.append, lambda failure: failure.trap(twistedcelery.Disconnected))
    assert await all_outcomes([call.published for call in calls]) == [None] * 100
    await until(lambda: tx_app.in_flight < 95)
    await deferToThread(server.kill)
    assert tx_app.in_flight > 0
    await until(lambda: not tx_app.connected)
    await deferToThread(server.start)
    # The worker takes one task after another: when it has run this one, it has run all that it will run.
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    # A message that kombu was just taking is gone, or out of sight for an hour, and a worker may give up
    # storing a result. Those few are the worker's loss; what is stored must have come.
    store = redis.Redis(port=server.port, db=1)
    await until(lambda: not [call for call in calls if not call.called and store.exists(key_of(call))])
    store.close()
    assert set(values) == {0.02}
    assert len(values) >= 95


@pytest_twisted.ensureDeferred
async def test_a_redis_that_lost_its_data(redis_server, connect):
    """Calls go on waiting, and end with what is stored once it is back, and with what is stored before
    they are subscribed again.
    """
    tx_app = connect(redis_server.url(0), redis_server.url(1))
    # Nobody works on these; results are stored by the test.
    early, late = (tx_app.send_task("taskapp.add", args=(1, 2)) for _ in range(2))
    await all_outcomes([early.published, late.published])
    await deferToThread(redis_server.kill)
    await until(lambda: not tx_app.connected)
    await deferToThread(redis_server.start)
    backend = tx_app.app.backend
    await deferToThread(backend.store_result, early.task_id, "early", "SUCCESS")
    assert await early == "early"
    await until(lambda: tx_app.connected)
    await deferToThread(backend.store_result, late.task_id, "late", "SUCCESS")
    assert await late == "late"
    backend.client.close()


@pytest_twisted.ensureDeferred
async def test_retry_true_sends_again_under_the_same_id(redis_with, worker, connect):
    """A message whose reply was lost is sent again where the caller allowed it, and only there."""
    server = await deferToThread(redis_with)
    urls = server.url(0), server.url(1)
    tx_app = connect(*urls, options={"publish_timeout": 60})
    # The subscription must be there, as it is for calls with the same ids.
    await all_outcomes([published(tx_app, task_id=name) for name in ("allowed", "not")])
    await deferToThread(server.freeze)
    allowed = tx_app.send_task("taskapp.request_info", task_id="allowed", retry=True)
    refused = tx_app.send_task("taskapp.request_info", task_id="not", confirm_timeout=5)
    await until(lambda: len(tx_app._binding.bound.publisher._unconfirmed) == 2, what="both are sent")
    await deferToThread(server.kill)
    with pytest.raises(twistedcelery.PublishUnconfirmed, match="may or may not"):
        await refused
    await deferToThread(server.start)
    await deferToThread(worker, *urls)
    assert (await allowed)["id"] == "allowed"


@pytest_twisted.ensureDeferred
async def test_a_frozen_redis_is_bounded_in_time(redis_with, connect):
    """Calls to a Redis that stopped answering fail inside ``publish_timeout``, and later ones go through."""
    server = await deferToThread(redis_with)
    tx_app = connect(server.url(0), server.url(1), options={"publish_timeout": 0.5})
    assert await published(tx_app) is None
    await deferToThread(server.freeze)
    started = time.monotonic()
    waiting, ignored = (
        tx_app.send_task("taskapp.add", args=(0, 0), ignore_result=ignored) for ignored in (False, True)
    )
    ended = await all_outcomes([waiting, ignored])
    assert [type(error) for error in ended] == [
        twistedcelery.ResultBackendUnavailable,
        twistedcelery.PublishUnconfirmed,
    ]
    assert time.monotonic() - started < 2
    await deferToThread(server.thaw)
    assert await published(tx_app, confirm_timeout=10) is None


@pytest_twisted.ensureDeferred
async def test_a_redis_that_refuses_connections(connect):
    """Calls fail inside their time limit with a named error, and the reactor goes on."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    await fail_while_the_reactor_runs(connect(url, url, options={"publish_timeout": 1}))


@pytest_twisted.ensureDeferred
async def test_a_redis_that_accepts_and_never_answers(connect):
    """As one that refuses: the handshake is bounded in time."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        await fail_while_the_reactor_runs(connect(url, url, options={"publish_timeout": 1}))


async def fail_while_the_reactor_runs(tx_app):
    late, last = 0.0, time.perf_counter()

    def tick():
        nonlocal late, last
        now = time.perf_counter()
        late, last = max(late, now - last - 0.005), now

    loop = task.LoopingCall(tick)
    loop.start(0.005)
    started = time.perf_counter()
    calls = [tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=bool(n % 2)) for n in range(100)]
    ended = await all_outcomes(calls)
    loop.stop()
    assert [type(error) for error in ended] == [
        twistedcelery.ResultBackendUnavailable,
        twistedcelery.BrokerUnavailable,
    ] * 50
    assert time.perf_counter() - started < 5
    # Celery's own client stops its thread for seconds here.
    assert late < 0.5
    await tx_app.disconnect()


@pytest_twisted.ensureDeferred
async def test_wrong_passwords(redis_with, connect):
    """Calls fail at once, with errors that name who refused and not the password."""
    server = await deferToThread(redis_with, requirepass="right-secret")
    right, wrong = (
        f"redis://:{secret}@127.0.0.1:{server.port}/0" for secret in ("right-secret", "wr0ng-secret")
    )
    started = time.monotonic()
    for broker, backend, error in [
        (wrong, right, twistedcelery.BrokerAccessRefused),
        (right, wrong, twistedcelery.ResultBackendUnavailable),
        (server.url(0), right, twistedcelery.BrokerAccessRefused),
    ]:
        with pytest.raises(error, match=r"WRONGPASS|NOAUTH|invalid") as caught:
            await connect(broker, backend).send_task("taskapp.add", args=(1, 2))
        assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 5


@pytest_twisted.ensureDeferred
async def test_a_database_that_does_not_exist(redis_server, connect):
    """It is refused as a virtual host is, and a name that is no number is told."""
    with pytest.raises(twistedcelery.BrokerAccessRefused, match="out of range"):
        await connect(redis_server.url(99), redis_server.url(0)).send_task("taskapp.add")
    tx_app = connect(redis_server.url(0), f"redis://127.0.0.1:{redis_server.port}/name")
    with pytest.raises(twistedcelery.ConfigurationError, match="result_backend cannot be used"):
        await tx_app.send_task("taskapp.add")


@pytest_twisted.ensureDeferred
async def test_what_redis_refuses_fails_its_call_alone(redis_server, connect):
    """A key of another type, and a Redis without memory, refuse messages with Redis' own words."""
    tx_app = connect(redis_server.url(0), redis_server.url(1))
    server = redis.Redis(port=redis_server.port)
    server.set("odd", "text")
    with pytest.raises(twistedcelery.PublishRejected, match="WRONGTYPE"):
        await tx_app.send_task("taskapp.add", queue="odd")
    assert await published(tx_app) is None
    server.config_set("maxmemory", 1)
    with pytest.raises(twistedcelery.PublishRejected, match="maxmemory"):
        await tx_app.send_task("taskapp.add")
    server.config_set("maxmemory", 0)
    assert await published(tx_app) is None
    server.close()


@pytest_twisted.ensureDeferred
async def test_a_user_who_may_not_subscribe(redis_server, connect):
    """A call whose states cannot be followed fails before it is sent, with Redis' own words."""
    server = redis.Redis(port=redis_server.port)
    server.execute_command("ACL", "SETUSER", "mute", "on", ">pw", "~*", "+@all", "resetchannels")
    tx_app = connect(redis_server.url(0), f"redis://mute:pw@127.0.0.1:{redis_server.port}/1")
    with pytest.raises(twistedcelery.ResultBackendUnavailable, match="NOPERM"):
        await tx_app.send_task("taskapp.add")
    assert server.llen("celery") == 0
    server.close()
