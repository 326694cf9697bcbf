"""Tasks that running workers announce, with no code of theirs on the bridge."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.types import CallOptions
from celery import Celery
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.real.wamp import apps
from tests.real.wamp.client import wait_for_procedure
from tests.real.wamp.test_calls import refusal
from tests.support.otherapp import COUNT
from twistedcelery.wamp.tasks import discovery


@pytest.fixture
def other(worker):
    """``await other(broker, backend)`` starts a worker of `tests.support.otherapp`."""

    async def start(broker, backend, **env):
        return await deferToThread(
            worker, broker=broker, backend=backend, app="tests.support.otherapp", env=env
        )

    return start


def use_no_code(monkeypatch, broker, backend):
    """Let bridges have an application with nothing but URLs."""
    app = Celery("urls", broker=broker, backend=backend, set_as_current=False)
    monkeypatch.setattr(apps, "current", app)


async def until(caller, running, expected, seconds=20):
    """Wait until the procedures of these tasks are there (``True``) or are not."""
    deadline = reactor.seconds() + seconds
    for name, there in expected.items():
        while bool(await caller.call("wamp.registration.match", running.uri(name))) != there:
            assert reactor.seconds() < deadline, f"{name} is {'not ' * there}there"
            await deferLater(reactor, 0.05, lambda: None)


@pytest.mark.parametrize("kind", ["amqp", "redis"])
@pytest_twisted.ensureDeferred
async def test_tasks_come_and_go_with_workers(kind, request, router, bridge, client, other, monkeypatch):
    """Tasks of a worker are called by name while it is there, and one in flight ends although it goes."""
    if kind == "amqp":
        broker, backend = request.getfixturevalue("broker"), "rpc://"
        request.getfixturevalue("worker_process")
    else:
        server = request.getfixturevalue("redis_server")
        broker, backend = server.url(0), server.url(1)
    use_no_code(monkeypatch, broker, backend)
    running, caller = await bridge(router.url, discover="workers"), await client(router.url)
    if kind == "amqp":
        await until(caller, running, {"taskapp.add": True, "other.greet": False})
        assert await caller.call(running.uri("taskapp.add"), 2, 3) == 5
    new = await other(broker, backend)
    await until(caller, running, {"other.greet": True, "other.ignored": True})
    listed = {task["name"]: task for task in await caller.call(running.api("tasks"))}
    assert listed["other.tell nobody"]["reason"] == "it contains white space"
    assert listed["other.greet"] == {
        "name": "other.greet",
        "uri": running.uri("other.greet"),
        "signature": None,
        "doc": None,
    }
    assert not [name for name in listed if name.startswith("celery.")]
    if kind == "redis":
        # With RabbitMQ both workers take from the same queue, and one does not know the other's tasks.
        assert await caller.call(running.uri("other.greet"), "you") == "hello you"
        # Its worker says that nobody would answer.
        assert await caller.call(running.uri("other.ignored")) is None
        odd = await caller.call(running.api("submit"), "other.tell nobody")
        assert await caller.call(running.api("result"), odd) == "nobody was told"
        runs = Deferred()
        options = CallOptions(on_progress=lambda *_: runs.callback(None))
        last = caller.call(running.uri("other.greet"), "and goodbye", seconds=1, options=options)
        await runs
        await deferToThread(new.stop)
        assert await last == "hello and goodbye"
    else:
        await deferToThread(new.stop)
    await until(caller, running, {"other.greet": False, "taskapp.add": kind == "amqp"}, seconds=5)
    refused = await refusal(caller.call(running.api("submit"), "other.greet"))
    assert refused.error == running.uri("error.unknown_task")


@pytest_twisted.ensureDeferred
async def test_a_worker_is_killed(redis_server, router, bridge, client, other, monkeypatch):
    """Its tasks stay for the time of grace, in case that it is only busy, and then go in every bridge."""
    monkeypatch.setattr(discovery, "GRACE", 4.0)
    monkeypatch.setattr(discovery, "TICK", 0.5)
    broker, backend = redis_server.url(0), redis_server.url(1)
    use_no_code(monkeypatch, broker, backend)
    new = await other(broker, backend)
    # The second one joins later, and registers what there is.
    extra = {"prefix": "killed", "discover": "workers"}
    bridges = [await bridge(router.url, **extra, publish_timeout=timeout) for timeout in (9, 10)]
    caller = await client(router.url)
    uri = "killed.other.greet"
    await until(caller, bridges[0], {"other.greet": True})
    registration = await caller.call("wamp.registration.match", uri)
    while await caller.call("wamp.registration.count_callees", registration) < 2:
        pass
    assert await caller.call(uri, "you") == "hello you"
    await deferToThread(new.kill)
    killed = reactor.seconds()
    await until(caller, bridges[0], {"other.greet": False})
    assert reactor.seconds() - killed > 1


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_the_broker_loses_everybody(rabbitmq_node, router, bridge, client, other, monkeypatch):
    """No task vanishes for that, and its registration stays the same."""
    broker = rabbitmq_node.broker.url
    use_no_code(monkeypatch, broker, "rpc://")
    await other(broker, "rpc://")
    running, caller = await bridge(router.url, discover="workers"), await client(router.url)
    await until(caller, running, {"other.greet": True})
    registration = await caller.call("wamp.registration.match", running.uri("other.greet"))
    await deferToThread(rabbitmq_node.broker.close_connections)
    assert await caller.call(running.uri("other.greet"), "again") == "hello again"
    # For longer than it takes a worker to be forgotten.
    for _ in range(10):
        await deferLater(reactor, discovery.FAREWELL / 8, lambda: None)
        assert await caller.call("wamp.registration.match", running.uri("other.greet")) == registration


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest_twisted.ensureDeferred
async def test_thousands_of_tasks(count, redis_server, router, bridge, client, other, monkeypatch):
    """They are registered while other calls go on, and are taken back with their worker."""
    broker, backend = redis_server.url(0), redis_server.url(1)
    use_no_code(monkeypatch, broker, backend)
    running, caller = await bridge(router.url, discover="workers"), await client(router.url)
    new = await other(broker, backend, **{COUNT: str(count)})
    seconds = reactor.seconds
    deadline = seconds() + 60
    while await caller.call("wamp.registration.match", running.uri(f"many.task{count - 1}")) is None:
        await caller.call(running.api("status")).addTimeout(10, reactor)
        assert seconds() < deadline
    assert await caller.call(running.uri("many.task7")) == "nobody was told"
    assert len(await caller.call(running.api("tasks"))) >= count
    await deferToThread(new.stop)
    await until(caller, running, {"many.task0": False, f"many.task{count - 1}": False}, seconds=60)


@pytest_twisted.ensureDeferred
async def test_a_bridge_without_any_code(broker, worker_process, router, bridge_process, client):
    """It needs no more than Celery's own variables in the environment."""
    env = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": "rpc://"}
    await deferToThread(bridge_process, router.url, env=env, app=None, discover="workers", prefix="codeless")
    caller = await client(router.url)
    await wait_for_procedure(caller, "codeless.taskapp.add")
    assert await caller.call("codeless.taskapp.add", 2, 3) == 5
