"""``tx_app.control`` and ``inspect()``, beside Celery's own blocking client, on real brokers and workers."""

from __future__ import annotations

import threading
import time

import pytest
import pytest_twisted
from celery.exceptions import TaskRevokedError
from twisted.internet import reactor, task
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.threads import deferToThread

from tests.real.control.conftest import some
from tests.real.transports.parts import descriptors
from twistedcelery import Disconnected, InvalidCall


def without_what_changes(answer):
    """An answer without what differs from one moment to the next."""
    if isinstance(answer, dict):
        changing = {"clock", "uptime", "rusage", "timestamp", "local_received", "time_start"}
        return {key: without_what_changes(value) for key, value in answer.items() if key not in changing}
    if isinstance(answer, list):
        return [without_what_changes(value) for value in answer]
    return answer


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_commands_reach_one_and_two_workers(parts):
    """``ping`` with all its ways to choose workers, from one worker, then from two."""
    first = await parts.worker()
    tx_app = parts.client()
    control = tx_app.control
    assert await control.ping(timeout=2, limit=1) == [{first.name: {"ok": "pong"}}]
    assert await control.ping(destination=[first.name], timeout=5) == [{first.name: {"ok": "pong"}}]
    second = await parts.worker()
    replies = await control.ping(timeout=1.5)
    assert sorted(name for reply in replies for name in reply) == sorted([first.name, second.name])
    assert len(await control.ping(timeout=5, limit=1)) == 1
    assert await control.ping(destination=[second.name], timeout=5) == [{second.name: {"ok": "pong"}}]
    seen = []
    by_name = await control.broadcast(
        "ping",
        reply=True,
        timeout=5,
        limit=1,
        pattern=f"{second.name[:12]}*",
        matcher="glob",
        callback=seen.append,
    )
    assert by_name == seen == [{second.name: {"ok": "pong"}}]
    # Celery's inspect() has other shapes: by worker, or the one worker's own answer.
    answers = await control.inspect(timeout=1.5).ping()
    assert answers == {first.name: {"ok": "pong"}, second.name: {"ok": "pong"}}
    assert await control.inspect([first.name], timeout=5).ping() == {first.name: {"ok": "pong"}}
    matched = control.inspect(pattern=f"^{first.name[:12]}", matcher="pcre", limit=1, timeout=5)
    assert list(await matched.ping()) == [first.name]
    # All at once.
    several = await gatherResults([control.ping(destination=[first.name], timeout=5) for _ in range(20)])
    assert several == [[{first.name: {"ok": "pong"}}]] * 20


@pytest_twisted.ensureDeferred
async def test_without_workers_nobody_answers(parts):
    """After the timeout the answer is Celery's: an empty list, ``None`` from ``inspect``."""
    tx_app = parts.client()
    assert await tx_app.control.ping(timeout=0.2) == []
    before = reactor.seconds()
    assert await tx_app.control.inspect(timeout=0.5).active() is None
    assert 0.5 <= reactor.seconds() - before < 3
    assert await tx_app.control.enable_events() is None


@pytest.mark.timeout(120)
# Not on files: kombu writes them in place, and a busy worker now and then reads half a query, and drops it.
@some("amqp, native", "redis, threads")
@pytest_twisted.ensureDeferred
async def test_queries_answer_as_celery_s_own_client(parts):
    """Every query of the installed Celery's ``Inspect`` gives what its blocking client gives."""
    # A worker on files hears nothing while all its processes are busy and another task waits.
    busy = 1 if parts.has_event_loop else 4
    worker = await parts.worker(pool="prefork", concurrency=busy)
    tx_app, app = parts.client(), parts.app()
    asked = tx_app.control.inspect([worker.name], timeout=10)
    running = tx_app.send_task("taskapp.sleep", args=(8,))
    while not (await asked.active())[worker.name]:
        pass
    waiting = tx_app.send_task("taskapp.sleep", args=(8,))
    later = tx_app.send_task("taskapp.add", args=(1, 1), countdown=3600)
    revoked = tx_app.send_task("taskapp.add", args=(1, 1), countdown=3600)
    for call in (running, waiting, later, revoked):
        call.addErrback(lambda failure: failure.trap(Disconnected, TaskRevokedError))
        await call.published
    await tx_app.revoke(revoked.task_id)
    queries = [
        ("active", ()),
        ("reserved", ()),
        ("scheduled", ()),
        ("registered", ()),
        ("registered", ("rate_limit",)),
        ("registered_tasks", ()),
        ("stats", ()),
        ("conf", ()),
        ("conf", (True,)),
        ("report", ()),
        ("revoked", ()),
        ("active_queues", ()),
        ("query_task", (running.task_id, waiting.task_id)),
        ("query_task", ([later.task_id],)),
        ("ping", ()),
        ("hello", ("celery@somebody",)),
    ]
    while len((await asked.query_task(running.task_id, waiting.task_id, later.task_id))[worker.name]) < 3:
        pass

    def ask_blocking():
        return [
            getattr(app.control.inspect([worker.name], timeout=10), name)(*args) for name, args in queries
        ]

    ours = [await getattr(asked, name)(*args) for name, args in queries]
    theirs = await parts.blocking(ask_blocking)
    for (name, _), one, other in zip(queries, ours, theirs, strict=True):
        assert list(one) == list(other) == [worker.name]
        assert without_what_changes(one) == without_what_changes(other), name
    answers = dict(zip([name for name, _ in queries], ours, strict=True))
    assert running.task_id in [each["id"] for each in answers["active"][worker.name]]
    assert (await asked.clock())[worker.name]["clock"] > 0
    app.close()


@pytest.mark.timeout(120)
@some("redis, native", "amqp, threads")
@pytest_twisted.ensureDeferred
async def test_commands_change_what_workers_do(parts):
    """Rate limits, pool sizes, queues, time limits, events and the end of a worker."""
    worker = await parts.worker(pool="prefork")
    other = await parts.worker()
    tx_app = parts.client()
    control, at = tx_app.control, {"destination": [worker.name], "reply": True, "timeout": 10}

    async def changed(command, *args, **kwargs):
        (reply,) = await getattr(control, command)(*args, **at, **kwargs)
        assert "ok" in reply[worker.name], reply
        return reply[worker.name]["ok"]

    assert "rate limit set" in await changed("rate_limit", "taskapp.add", "10/m")
    asked = control.inspect([worker.name], timeout=10)
    assert "rate_limit=10/m" in str(await asked.registered("rate_limit"))
    await changed("time_limit", "taskapp.add", soft=10, hard=20)
    # Processes are started when the worker gets to it, but it fetches for them at once.
    fetched = (await asked.stats())[worker.name]["prefetch_count"]
    await changed("pool_grow", n=2)
    assert (await asked.stats())[worker.name]["prefetch_count"] == 3 * fetched

    async def queues():
        return [queue["name"] for queue in (await asked.active_queues())[worker.name]]

    await changed("add_consumer", "another")
    while "another" not in await queues():
        pass
    assert await tx_app.send_task("taskapp.add", args=(1, 2), queue="another") == 3
    await changed("cancel_consumer", "another")
    while "another" in await queues():
        pass
    assert await changed("enable_events") == "task events enabled"
    assert await changed("disable_events") == "task events disabled"
    # A wrong task name is the worker's to answer.
    (reply,) = await control.rate_limit("taskapp.unknown", "1/s", **at)
    assert "error" in reply[worker.name]
    assert await control.shutdown(destination=[worker.name]) is None
    await deferToThread(worker.process.wait, 30)
    assert list(await control.inspect(timeout=2).ping()) == [other.name]


@pytest.mark.timeout(120)
@some("amqp, native", "redis, threads")
@pytest_twisted.ensureDeferred
async def test_revoking_by_stamped_headers_works_on_the_replies(parts):
    """A command of Celery's that broadcasts twice, the second time what came back from the first."""
    worker = await parts.worker()
    tx_app, app = parts.client(), parts.app()
    stamped = tx_app.send_task(
        "taskapp.add", args=(1, 1), countdown=3600, headers={"tenant": "a", "stamped_headers": ["tenant"]}
    )
    stamped.addErrback(lambda failure: failure.trap(Disconnected, TaskRevokedError))
    await stamped.published
    asked = tx_app.control.inspect([worker.name], timeout=10)
    while not (await asked.query_task(stamped.task_id))[worker.name]:
        pass
    options = {"destination": [worker.name], "reply": True, "timeout": 10}
    ours = await tx_app.control.revoke_by_stamped_headers({"tenant": "a"}, **options)
    theirs = await parts.blocking(lambda: app.control.revoke_by_stamped_headers({"tenant": "a"}, **options))
    assert [list(reply) for reply in ours] == [list(reply) for reply in theirs] == [[worker.name]]
    app.close()


@pytest_twisted.ensureDeferred
async def test_purge_discards_what_waits(parts):
    """``purge`` empties the application's queues and counts what was in them."""
    tx_app = parts.client()
    calls = [tx_app.send_task("taskapp.add", args=(1, 1), ignore_result=True) for _ in range(3)]
    await gatherResults(calls)
    assert await tx_app.control.purge() == 3
    assert await tx_app.control.discard_all() == 0


@pytest_twisted.ensureDeferred
async def test_what_is_wrong_fails_the_deferred(parts):
    """What Celery refuses, and what would take a command past this client, is `InvalidCall`."""
    control = parts.client().control
    for wrong in (
        lambda: control.ping(destination="not-a-list"),
        control.rate_limit,
        lambda: control.ping(connection=object()),
        lambda: control.ping(channel=object()),
        lambda: control.purge(connection=object()),
    ):
        with pytest.raises(InvalidCall):
            await wrong()
    for wrong in ({"connection": object()}, {"app": parts.app()}, {"nonsense": 1}):
        with pytest.raises(InvalidCall):
            control.inspect(**wrong)
    with pytest.raises(AttributeError, match="no method 'nonsense'"):
        _ = control.nonsense
    assert {"ping", "shutdown", "inspect", "purge"} <= set(dir(control))


@some("amqp, native", "filesystem")
@pytest_twisted.ensureDeferred
async def test_what_a_callback_raises_ends_the_call(parts):
    """As in Celery's client, which calls it from inside of the call."""
    await parts.worker()

    def callback(_reply):
        raise LookupError("of the callback")

    with pytest.raises(LookupError, match="of the callback"):
        await parts.client().control.ping(callback=callback, timeout=10)


@pytest_twisted.ensureDeferred
async def test_the_application_s_own_commands_are_there(native):
    """Methods that the application's ``control_cls`` adds work as Celery's do."""
    await native.worker()
    tx_app = native.client()

    class OwnControl(type(tx_app.app.control)):
        def names(self, **options):
            return sorted(name for reply in self.ping(**options) for name in reply)

    tx_app.app.control = OwnControl(app=tx_app.app)
    (name,) = await tx_app.control.names(timeout=10, limit=1)
    assert name.startswith("worker-")


@pytest_twisted.ensureDeferred
async def test_nothing_is_left_after_disconnect(parts, eventually):
    """Sockets, threads, timers and queues are gone; what waited failed with `Disconnected`."""
    worker = await parts.worker()
    before = descriptors(), len(reactor.getDelayedCalls())
    tx_app = parts.client()
    assert await tx_app.control.inspect([worker.name], timeout=10).ping()
    stream, closed = tx_app.events({}), tx_app.events({}, node_id="closed")
    await stream.ready
    await closed.ready
    mine = stream._receiver.node_id, tx_app.control._replies._queue.name

    async def queues(name):
        return await deferToThread(parts.queues, name)

    assert await queues("closed")
    await closed.close()
    assert not await queues("closed")
    for name in mine:
        assert await queues(name), name
    replies = []
    waiting = tx_app.control.ping(timeout=None, callback=replies.append)
    cancelled = tx_app.control.ping(timeout=None, callback=replies.append)
    await eventually(lambda: len(replies) == 2)
    cancelled.cancel()
    with pytest.raises(CancelledError):
        await cancelled
    await tx_app.disconnect()
    for ended in (waiting, stream.ready, tx_app.control.ping()):
        with pytest.raises(Disconnected):
            await ended
    with pytest.raises(Disconnected):
        tx_app.events({})
    for name in mine:
        assert not await queues(name), name
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("twistedcelery")]
    assert len(reactor.getDelayedCalls()) == before[1]
    await eventually(lambda: descriptors() <= before[0])


@pytest_twisted.ensureDeferred
async def test_the_reactor_goes_on_meanwhile(native):
    """While 50 queries wait for a broker that is not there, timers are on time, and all fail in time."""
    late = []
    expected = time.perf_counter() + 0.005

    def tick():
        nonlocal expected
        late.append(time.perf_counter() - expected)
        expected = time.perf_counter() + 0.005

    native.broker = native.broker.partition("://")[0] + "://127.0.0.1:1/0"
    tx_app = native.client(publish_timeout=0.5)
    loop = task.LoopingCall(tick)
    loop.start(0.005)
    calls = [tx_app.control.ping() for _ in range(50)]
    for call in calls:
        with pytest.raises(Exception, match="no connection to receive workers' replies"):
            await call
    loop.stop()
    assert max(late) < 1
