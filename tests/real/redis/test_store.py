"""Questions about results that Redis keeps, natively and in a thread, beside Celery's own backend."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import pytest_twisted
import redis
from celery.result import GroupResult, result_from_tuple
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread

from tests.real.transports.parts import descriptors
from tests.support.redis import RedisServer
from tests.support.taskapp import create_app
from twistedcelery import (
    Disconnected,
    ReplyNotAccepted,
    ReplyUndecodable,
    ResultBackendUnavailable,
)
from twistedcelery.encoding.message import Preparation
from twistedcelery.transports.interface import Setup
from twistedcelery.transports.registry import find

# Celery's Redis backend calls what redis-py calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

TRANSPORTS = ("auto", "threads")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Redis for all these tests; each has keys of its own."""
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.stop()


def unsubscribe(backend):
    """End the subscriptions of all results, as Celery does when it collects one.

    Once Redis is gone, it would try to for 20 s for each of them, in whichever test the collector runs.
    """
    by_id = [results for kind in backend._pending_results for results in kind.values()]
    for result in [result for results in by_id for result in results.values()]:
        backend.remove_pending_result(result)


@pytest.fixture
def stores():
    """``stores(url, transport)``: a store with its application, both closed after the test."""
    made = []

    def make(url, transport="auto", *, timeout=10.0, **config):
        app = create_app("memory://", url, **config)
        store = find(app, transport).store(Setup(app, reactor, timeout))
        made.append((store, app))
        return store, app

    yield make
    for store, app in made:
        pytest_twisted.blockon(store.close())
        unsubscribe(app.backend)
        app.backend.client.close()
        app.close()


def meta_of(meta):
    """What two reads of a state have in common: exceptions are made anew by each."""
    return {**meta, "result": repr(meta["result"])}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest_twisted.ensureDeferred
async def test_states(server, stores, transport):
    """A state is what Celery's own backend reads, until it is forgotten."""
    store, app = stores(server.url(0), transport, result_extended=True)
    assert await store.task_meta("unknown") == {"status": "PENDING", "result": None}
    assert not await store.exists("unknown")
    await store.forget("unknown")
    cases = [
        ("success", {"a": [1, None]}, "SUCCESS"),
        ("failure", ValueError("böse"), "FAILURE"),
        ("progress", {"current": 1}, "PROGRESS"),
    ]
    for name, result, state in cases:
        task_id = f"{transport}-{name}"
        await deferToThread(app.backend.store_result, task_id, result, state, traceback="lines")
        theirs = await deferToThread(partial(app.backend.get_task_meta, task_id, cache=False))
        assert meta_of(await store.task_meta(task_id)) == meta_of(theirs)
        assert await store.exists(task_id)
        await store.forget(task_id)
        assert not await store.exists(task_id)
        assert (await store.task_meta(task_id))["status"] == "PENDING"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest_twisted.ensureDeferred
async def test_compressed_states(server, stores, transport):
    """They are opened."""
    store, app = stores(server.url(0), transport, result_compression="gzip")
    await deferToThread(app.backend.store_result, f"{transport}-gzip", "x" * 10000, "SUCCESS")
    assert (await store.task_meta(f"{transport}-gzip"))["result"] == "x" * 10000


def group_of(app, group_id):
    """A group with a group in it, and a parent."""
    inner = GroupResult(f"{group_id}-inner", [app.AsyncResult("b")], app=app)
    return GroupResult(group_id, [app.AsyncResult("a"), inner], parent=app.AsyncResult("p"), app=app)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest_twisted.ensureDeferred
async def test_groups(server, stores, transport):
    """What one saves the other restores, until it is deleted."""
    store, app = stores(server.url(0), transport)
    saved = group_of(app, f"{transport}-group").as_tuple()
    assert await store.restore_group(f"{transport}-group") is None
    await store.save_group(f"{transport}-group", saved)

    def restore():
        restored = app.backend.restore_group(f"{transport}-group", cache=False).as_tuple()
        # Each thread has its own backend.
        unsubscribe(app.backend)
        return restored

    theirs = await deferToThread(restore)
    assert theirs == result_from_tuple(await store.restore_group(f"{transport}-group")).as_tuple()
    assert theirs == saved
    await store.delete_group(f"{transport}-group")
    assert await store.restore_group(f"{transport}-group") is None


def contents(url):
    """Everything in a database, with the seconds that it is kept."""
    with redis.Redis.from_url(url) as client:
        return {key: (client.get(key), client.ttl(key)) for key in client.keys("*")}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("prefix", ["", "theirs:"])
@pytest_twisted.ensureDeferred
async def test_chords_are_prepared_as_by_celery(server, stores, transport, prefix):
    """The keys, their values and the time that they are kept are those of Celery's own backend."""
    databases = iter(range(2 + 4 * TRANSPORTS.index(transport) + 2 * bool(prefix), 15))
    options = {"result_backend_transport_options": {"global_keyprefix": prefix}} if prefix else {}
    ours, theirs = (server.url(next(databases)) for _ in range(2))
    store, app = stores(ours, transport, **options)
    _, other = stores(theirs, transport, **options)
    header = "chord", list(group_of(app, "chord").results)
    body = app.signature("taskapp.add")
    await store.prepare(
        [Preparation("set_chord_size", ("chord", 3)), Preparation("apply_chord", (header, body))]
    )

    def prepare():
        other.backend.set_chord_size("chord", 3)
        other.backend.apply_chord(header, body)

    await deferToThread(prepare)
    found = contents(ours)
    assert len(found) == 2
    assert found == contents(theirs)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_read(server, stores, transport):
    """Pickles where they are not accepted, and garbage, have errors of their own, and spoil nothing."""
    store, app = stores(server.url(0), transport)
    pickled = create_app("memory://", server.url(0), result_serializer="pickle", accept_content=["pickle"])

    def put():
        pickled.backend.store_result("pickled", 1, "SUCCESS")
        pickled.backend.save_group("pickled-group", group_of(pickled, "pickled-group"))
        for key in (app.backend.get_key_for_task("garbage"), app.backend.get_key_for_group("garbage")):
            app.backend.set(key, b"\xff{")
        app.backend.set(app.backend.get_key_for_task("list"), "[]")
        pickled.backend.client.close()

    await deferToThread(put)
    for question in (lambda: store.task_meta("pickled"), lambda: store.restore_group("pickled-group")):
        with pytest.raises((ReplyNotAccepted, ReplyUndecodable)):
            await question()
    for question in (
        lambda: store.task_meta("garbage"),
        lambda: store.task_meta("list"),
        lambda: store.restore_group("garbage"),
    ):
        with pytest.raises(ReplyUndecodable):
            await question()
    assert (await store.task_meta("unknown"))["status"] == "PENDING"


@pytest_twisted.ensureDeferred
async def test_what_redis_refuses(server, stores):
    """It is told in Redis' own words, and the next question is answered."""
    store, app = stores(server.url(0))
    await deferToThread(app.backend.client.lpush, app.backend.get_key_for_task("a-list"), "x")
    with pytest.raises(ResultBackendUnavailable, match="WRONGTYPE"):
        await store.task_meta("a-list")
    assert not await store.exists("unknown")


@pytest_twisted.ensureDeferred
async def test_a_store_without_threads(server, stores):
    """Natively no thread is started, and nothing is left of the connection."""
    await task.deferLater(reactor, 0)
    before = descriptors(), len(reactor.getDelayedCalls()), threading.active_count()
    app = create_app("memory://", server.url(0))
    store = find(app, "auto").store(Setup(app, reactor, 10))
    for _ in range(3):
        assert not await store.exists("unknown")
    assert threading.active_count() == before[2]
    await store.close()
    await store.close()
    with pytest.raises(Disconnected):
        await store.exists("unknown")
    assert len(reactor.getDelayedCalls()) <= before[1]
    assert descriptors() <= before[0]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_goes_away(redis_with, stores):
    """A question that is open is answered by the restarted Redis; one to none fails in its time."""
    server = await deferToThread(redis_with)
    store, app = stores(server.url(0), timeout=20)
    hasty, _ = stores(server.url(0), timeout=0.5)
    assert not await store.exists("a-task")
    assert not await hasty.exists("a-task")
    await deferToThread(server.freeze)
    patient = store.exists("a-task")
    with pytest.raises(ResultBackendUnavailable, match="no answer"):
        await hasty.exists("a-task")
    await deferToThread(server.kill)
    with pytest.raises(ResultBackendUnavailable, match=r"lost|refused"):
        await hasty.exists("a-task")
    open_until_closed = hasty.exists("a-task")
    await hasty.close()
    with pytest.raises(Disconnected):
        await open_until_closed
    await deferToThread(server.start)
    await deferToThread(app.backend.store_result, "a-task", 1, "SUCCESS")
    assert await patient in (True, False)
    assert await store.exists("a-task")


@pytest_twisted.ensureDeferred
async def test_a_password_that_is_wrong(redis_with, stores):
    """Nobody waits for what does not change by itself, and the password is not told."""
    server = await deferToThread(redis_with, requirepass="right-secret")
    store, _ = stores(f"redis://:wr0ng-secret@127.0.0.1:{server.port}/0", timeout=60)
    with pytest.raises(ResultBackendUnavailable, match=r"WRONGPASS|invalid") as refused:
        await store.task_meta("a-task")
    assert "wr0ng" not in str(refused.value)
