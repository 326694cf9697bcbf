"""Results by id, on real backends: one that keeps them, and ``rpc://``, which does not."""

from __future__ import annotations

import celery.exceptions
import pytest
import pytest_twisted
from celery import chain, chord, group
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.canvasapp import create_app
from tests.support.redis import RedisServer
from tests.support.worker import Worker

BACKENDS = ("redis", "sqlite", "file", "rpc")
KEEPING = BACKENDS[:-1]
CONFIG = {"result_extended": True}


@pytest.fixture(scope="module")
def broker_url(rabbitmq):
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def served(broker_url, redis_server, tmp_path_factory):
    """``served(backend)``: the URLs of a broker and a result backend with a worker, which tests share."""
    urls, workers = {}, []

    def start(backend):
        if backend not in urls:
            directory = tmp_path_factory.mktemp(backend)
            urls[backend] = {
                "redis": redis_server.url(0),
                "file": f"file://{directory}",
                "sqlite": f"db+sqlite:///{directory}/results.db",
                "rpc": "rpc://",
            }[backend]
            # Each has a queue of its own, as they share a broker.
            config = {**CONFIG, "task_default_queue": backend}
            options = {"app": "tests.support.canvasapp", "pool": "threads", "concurrency": 2}
            worker = Worker(directory, broker=broker_url, backend=urls[backend], config=config, **options)
            workers.append(worker)
            worker.start()
        return broker_url, urls[backend]

    yield start
    for worker in workers:
        worker.kill()


@pytest.fixture
def client(served, new_client):
    """``await client(backend)``: a client with a worker, disconnected after the test."""

    async def make(backend):
        broker, url = await deferToThread(served, backend)
        return new_client(create_app(broker, url, **CONFIG, task_default_queue=backend))

    return make


def tasks(tx_app):
    return {name.removeprefix("c."): task for name, task in tx_app.app.tasks.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_a_result_can_be_read_again(client, backend):
    """What a call returned can be had by its id: state, value, and everything about it."""
    tx_app = await client(backend)
    call = tx_app.send_task("c.add", (2, 3))
    assert await call == 5
    result = tx_app.result(call.task_id)
    assert await result.get() == 5
    assert await result == 5
    assert await result.result == 5
    assert await result.state == await result.status == "SUCCESS"
    assert [await result.ready(), await result.successful(), await result.failed()] == [True, True, False]
    assert await result.exists()
    assert await result.name == "c.add"
    assert list(await result.args) == [2, 3]
    assert (await result.date_done).year > 2000
    assert await result.traceback is None
    assert result.parent is None
    assert result == call.task_id == str(result)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_a_failure_can_be_read_again(client, backend):
    """``get()`` raises what the task raised; ``get(propagate=False)`` and ``result`` give it."""
    tx_app = await client(backend)
    call = tx_app.send_task("c.fail", ("boo",))
    with pytest.raises(ValueError, match="boo"):
        await call
    result = tx_app.result(call.task_id)
    with pytest.raises(ValueError, match="boo"):
        await result.get()
    with pytest.raises(ValueError, match="boo"):
        await result.maybe_throw()
    assert str(await result.get(propagate=False)) == "boo"
    assert str(await result.result) == "boo"
    assert await result.failed()
    assert "ValueError" in await result.traceback


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_waiting_for_a_task_that_runs(client, backend):
    """``get()`` of a task in progress fires when it ends, for each who waits; a timeout is Celery's."""
    tx_app = await client(backend)
    call = tx_app.send_task("c.sleep", (1.0,))
    await call.published
    result = tx_app.result(call.task_id)
    assert not await result.ready()
    with pytest.raises(celery.exceptions.TimeoutError):
        await result.get(timeout=0.1)
    first, second = result.get(timeout=20), tx_app.result(call.task_id).get()
    assert [await first, await second, await call] == [1.0, 1.0, 1.0]
    assert tx_app.in_flight == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_a_task_that_nobody_knows(client, backend):
    """It is pending, as in Celery, and waiting for it ends with the timeout."""
    tx_app = await client(backend)
    result = tx_app.result("nobody-knows")
    assert await result.state == "PENDING"
    assert await result.result is None
    assert not await result.exists()
    with pytest.raises(celery.exceptions.TimeoutError):
        await result.get(timeout=0.2)
    await result.forget()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_forget(client, backend):
    """What is forgotten is gone."""
    tx_app = await client(backend)
    call = tx_app.send_task("c.add", (2, 3))
    await call
    result = tx_app.result(call.task_id)
    assert await result.state == "SUCCESS"
    await result.forget()
    assert await result.state == "PENDING"
    assert await tx_app.result(call.task_id).state == "PENDING"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_revoke(client, backend):
    """A task revoked through its result ends with Celery's error."""
    tx_app = await client(backend)
    call = tx_app.send_task("c.add", (2, 3), countdown=1)
    await call.published
    await tx_app.result(call.task_id).revoke()
    with pytest.raises(celery.exceptions.TaskRevokedError):
        await call


@pytest_twisted.ensureDeferred
async def test_revoke_by_stamps(client):
    """Through any result, the tasks that have the stamps are revoked, and no others."""
    tx_app = await client("rpc")
    add = tasks(tx_app)["add"]
    stamped, other = add.s(2, 3), add.s(2, 3)
    stamped.stamp(customer="x")
    calls = [tx_app.apply_async(signature, countdown=1) for signature in (stamped, other)]
    for call in calls:
        await call.published
    await tx_app.result(calls[1].task_id).revoke_by_stamped_headers({"customer": ["x"]})
    with pytest.raises(celery.exceptions.TaskRevokedError):
        await calls[0]
    assert await calls[1] == 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_children(client, backend):
    """The tasks that a task sent are its children."""
    tx_app = await client(backend)
    call = tx_app.apply_async(tasks(tx_app)["spawn"].s(3))
    ids = await call
    assert [child.id for child in call.children] == ids
    children = await tx_app.result(call.task_id).children
    assert children == ids
    if backend != "rpc":
        # Over rpc, workers reply to whoever sent the task: here, to another worker.
        assert [await child.get() for child in children] == [1, 2, 3]
        collected = await tx_app.result(call.task_id).collect()
        assert [value for _result, value in collected] == [ids, 1, 2, 3]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_the_steps_of_a_chain(client, backend):
    """The results of a chain's earlier tasks are its parents."""
    tx_app = await client(backend)
    add = tasks(tx_app)["add"]
    call = tx_app.apply_async(add.s(1, 1) | add.s(10) | add.s(100))
    assert await call == 112
    assert await call.parent.get() == 12
    assert await call.parent.parent == 2
    assert call.parent.parent.parent is None
    assert [await parent.state for parent in call.async_result.parents()] == ["SUCCESS", "SUCCESS"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest_twisted.ensureDeferred
async def test_the_members_of_a_group(client, backend):
    """A group's members can be asked one by one, and together; a failing one spoils no other."""
    tx_app = await client(backend)
    task = tasks(tx_app)
    call = tx_app.apply_async(group(task["add"].s(1, 1), task["fail"].s("boo"), task["add"].s(2, 2)))
    assert isinstance(call, twistedcelery.GroupDeferred)
    with pytest.raises(ValueError, match="boo"):
        await call
    first, failing, last = call.results
    assert [await first.get(timeout=10), await last.get(timeout=10)] == [2, 4]
    with pytest.raises(ValueError, match="boo"):
        await failing.get()
    together = call.async_result
    assert [await together.ready(), await together.failed(), await together.successful()] == [
        True,
        True,
        False,
    ]
    assert await together.completed_count() == 2
    values = await together.get(propagate=False)
    assert [str(value) for value in values] == ["2", "boo", "4"]
    told = []
    await together.get(propagate=False, callback=lambda task_id, value: told.append((task_id, str(value))))
    assert told == [(first.id, "2"), (failing.id, "boo"), (last.id, "4")]


@pytest.mark.parametrize("backend", KEEPING)
@pytest_twisted.ensureDeferred
async def test_the_header_of_a_chord(client, backend):
    """The parent of a chord's result is its header, a group."""
    tx_app = await client(backend)
    task = tasks(tx_app)
    call = tx_app.apply_async(chord([task["add"].s(1, 1), task["add"].s(2, 2)], task["total"].s()))
    assert await call == 6
    assert isinstance(call.parent, twistedcelery.GroupResult)
    assert await call.parent.get() == [2, 4]


# Celery's Redis backend calls what redis-py calls deprecated.
@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
@pytest.mark.parametrize("backend", KEEPING)
@pytest_twisted.ensureDeferred
async def test_saved_groups(client, backend):
    """A group that was saved is restored by its id, also by Celery's own client, until it is deleted."""
    tx_app = await client(backend)
    add = tasks(tx_app)["add"]
    call = tx_app.apply_async(group(add.s(1, 1), add.s(2, 2)))
    await call.async_result.save()
    assert await call == [2, 4]
    restored = await tx_app.group_result(call.task_id).restore()
    assert restored == call.task_id
    assert await restored.get() == [2, 4]
    if backend == "file":
        # The results of the others would look for their backend once it is gone.
        theirs = await deferToThread(tx_app.app.GroupResult.restore, call.task_id)
        assert [member.id for member in theirs.results] == [member.id for member in call.results]
        del theirs
    await restored.delete()
    assert await tx_app.group_result(call.task_id).restore() is None


@pytest_twisted.ensureDeferred
async def test_rpc_refuses_what_it_cannot_do(client):
    """Chords and saved groups fail at once over ``rpc://``, with Celery's own words."""
    tx_app = await client("rpc")
    task = tasks(tx_app)
    for canvas in (
        chord([task["add"].s(1, 1)], task["total"].s()),
        group(task["add"].s(1, 1), task["add"].s(1, 1)) | task["total"].s(),
        chain(task["add"].s(1, 1), group(task["add"].s(1), task["add"].s(1)), task["total"].s()),
    ):
        with pytest.raises(NotImplementedError, match="does not support chords") as refused:
            await tx_app.apply_async(canvas)
        assert isinstance(refused.value, twistedcelery.UnsupportedByBackend)
    with pytest.raises(NotImplementedError, match="save_group is not supported"):
        await tx_app.group_result("id").save()
    with pytest.raises(NotImplementedError, match="restore_group is not supported"):
        await tx_app.group_result("id").restore()


@pytest_twisted.ensureDeferred
async def test_a_result_backend_that_is_gone(broker_url, tmp_path, new_client):
    """With Redis gone, questions and chords fail with `ResultBackendUnavailable`."""
    server = RedisServer(tmp_path)
    server.start()
    tx_app = new_client(create_app(broker_url, server.url(0)), publish_timeout=1)
    try:
        assert await tx_app.result("some-id").state == "PENDING"
    finally:
        await deferToThread(server.kill)
    task = tasks(tx_app)
    with pytest.raises(twistedcelery.ResultBackendUnavailable):
        await tx_app.result("some-id").state
    canvas = chord([task["add"].s(1, 1)], task["total"].s())
    with pytest.raises(twistedcelery.ResultBackendUnavailable):
        await tx_app.apply_async(canvas, confirm_timeout=2)
