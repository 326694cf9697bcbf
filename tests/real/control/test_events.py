"""``tx_app.events(...)``: Celery's events on real brokers, with brokers that go away."""

from __future__ import annotations

import time

import pytest
import pytest_twisted
from celery import states
from celery.events.event import get_exchange
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.real.control.conftest import Parts, some
from twistedcelery import Disconnected, InvalidCall, PublishRejected


class Seen:
    """A handler that keeps events."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        self.events.append(event)

    @property
    def types(self):
        return {event["type"] for event in self.events}

    def of(self, task_id):
        return [event["type"] for event in self.events if event.get("uuid") == task_id]


@pytest.mark.timeout(120)
@some("amqp, native", "redis, threads", "filesystem")
@pytest_twisted.ensureDeferred
async def test_the_life_of_tasks_and_workers(parts, eventually):
    """Each event comes to its handler, or to ``*``, with local times, and into the state."""
    parts.config["task_send_sent_event"] = True
    tx_app = parts.client()
    seen, succeeded = Seen(), Seen()
    stream = tx_app.events({"*": seen, "task-succeeded": succeeded}, state=True)
    await stream.ready
    assert stream.connected
    worker = await parts.worker(events=True)
    started = time.time()
    adding = tx_app.send_task("taskapp.add", args=(1, 2))
    assert await adding == 3
    failing = tx_app.send_task("taskapp.fail", args=("no",))
    with pytest.raises(ValueError, match="no"):
        await failing
    await eventually(lambda: succeeded.of(adding.task_id) and "task-failed" in seen.of(failing.task_id))
    await eventually(lambda: "task-sent" in seen.of(failing.task_id))
    assert set(seen.of(adding.task_id)) == {"task-sent", "task-received", "task-started"}
    assert succeeded.types == {"task-succeeded"}
    assert set(seen.of(failing.task_id)) == {"task-sent", "task-received", "task-started", "task-failed"}
    await tx_app.control.heartbeat()
    await eventually(lambda: {"worker-online", "worker-heartbeat"} <= seen.types)
    (event,) = succeeded.events
    assert started - 1 < event["timestamp"] <= event["local_received"] + 1
    assert event["clock"] > 0
    assert event["hostname"] == worker.name
    state = stream.state
    assert state.tasks[adding.task_id].state == states.SUCCESS
    assert state.tasks[adding.task_id].worker.hostname == worker.name
    assert state.tasks[failing.task_id].state == states.FAILURE
    assert [one.hostname for one in state.alive_workers()] == [worker.name]
    await stream.close()
    await stream.close()
    count = len(seen.events)
    await tx_app.send_task("taskapp.add", args=(1, 2))
    assert len(seen.events) == count
    with pytest.raises(Disconnected):
        await stream.ready


@pytest.mark.timeout(120)
@some("redis, native", "amqp, threads")
@pytest_twisted.ensureDeferred
async def test_events_are_enabled_and_disabled(parts, eventually):
    """A worker without ``-E`` tells of itself at once when asked, of tasks once that is enabled."""
    await parts.worker()
    tx_app = parts.client()
    seen = Seen()
    await tx_app.events({"*": seen}).ready
    await eventually(lambda: "worker-heartbeat" in seen.types, seconds=1.9)
    await tx_app.send_task("taskapp.add", args=(1, 2))
    await tx_app.control.enable_events(reply=True, limit=1, timeout=10)
    enabled = tx_app.send_task("taskapp.add", args=(1, 2))
    await enabled
    await eventually(lambda: "task-succeeded" in seen.of(enabled.task_id))
    assert {event["uuid"] for event in seen.events if event["type"].startswith("task-")} == {enabled.task_id}
    await tx_app.control.disable_events(reply=True, limit=1, timeout=10)
    await tx_app.send_task("taskapp.add", args=(1, 2))
    await tx_app.control.enable_events(reply=True, limit=1, timeout=10)
    last = tx_app.send_task("taskapp.add", args=(1, 2))
    await last
    await eventually(lambda: "task-succeeded" in seen.of(last.task_id))
    assert {event["uuid"] for event in seen.events if event["type"].startswith("task-")} == {
        enabled.task_id,
        last.task_id,
    }


@pytest_twisted.ensureDeferred
async def test_a_routing_key_and_another_stream(native, eventually):
    """Streams are independent, and take the options of Celery's ``Receiver``."""
    await native.worker(events=True)
    tx_app = native.client()
    all_of_them, workers_only = Seen(), Seen()
    mine = tx_app.app.events.State()
    streams = [
        tx_app.events({"*": all_of_them}, state=mine),
        tx_app.events({"*": workers_only}, routing_key="worker.#", node_id="mine"),
    ]
    for stream in streams:
        await stream.ready
    assert streams[0].state is mine
    assert streams[1].state is None
    call = tx_app.send_task("taskapp.add", args=(1, 2))
    await call
    await eventually(lambda: "task-succeeded" in all_of_them.of(call.task_id))
    await eventually(lambda: mine.tasks.get(call.task_id) and workers_only.events)
    assert all(type_.startswith("worker-") for type_ in workers_only.types)
    with pytest.raises(InvalidCall):
        tx_app.events({}, nonsense=1)


@pytest_twisted.ensureDeferred
async def test_failing_handlers_are_logged_and_the_stream_goes_on(native, eventually, logged_errors):
    """What a handler raises, or fails with later, keeps no other event from its handler."""
    await native.worker(events=True)
    tx_app = native.client()
    pending = Deferred()
    seen = Seen()

    async def later(event):
        await pending

    def fails(event):
        raise LookupError(event["type"])

    stream = tx_app.events({"task-received": fails, "task-started": later, "*": seen})
    await stream.ready
    call = tx_app.send_task("taskapp.add", args=(1, 2))
    await call
    await eventually(lambda: "task-succeeded" in seen.of(call.task_id))
    pending.errback(KeyError("late"))
    assert len(logged_errors.flush(LookupError)) == 2


@pytest_twisted.ensureDeferred
async def test_what_is_not_accepted_is_dropped(native, eventually):
    """A pickled event, garbage, and what is no event are dropped; the next one comes."""
    tx_app = native.client()
    seen = Seen()
    await tx_app.events({"*": seen}).ready

    def send():
        app = native.app()
        with app.connection_for_write() as connection, connection.channel() as channel:
            get_exchange(connection)(channel).declare()
            for content_type, body in (
                ("application/x-python-serialize", b"cos\nsystem\n(S'true'\ntR."),
                ("application/json", b"{"),
                ("application/json", b'"text"'),
                ("application/json", b"{}"),
                ("application/json", b'[{"no": "type"}]'),
                ("application/json", b'{"type": "custom-event", "utcoffset": "x", "timestamp": 1}'),
                ("application/json", b'{"type": "custom-good"}'),
            ):
                message = channel.prepare_message(body, content_type=content_type, content_encoding="utf-8")
                channel.basic_publish(message, exchange="celeryev", routing_key="custom.event")

    await deferToThread(send)
    await eventually(lambda: seen.types == {"custom-good"})


@pytest_twisted.ensureDeferred
async def test_a_queue_that_the_broker_refuses(rabbitmq_parts, logged_errors):
    """A queue that exists with other arguments ends its stream, and no other one."""
    tx_app = rabbitmq_parts.client()
    seen = Seen()

    def declare():
        app = rabbitmq_parts.app()
        with app.connection_for_write() as connection, connection.channel() as channel:
            channel.queue_declare("celeryev.taken", durable=True, auto_delete=False, exclusive=False)

    await deferToThread(declare)
    other = tx_app.events({"*": seen})
    await other.ready
    stream = tx_app.events({}, node_id="taken")
    with pytest.raises(PublishRejected):
        await stream.ready
    with pytest.raises(PublishRejected):
        await stream.ready
    assert other.connected
    assert await tx_app.control.ping(timeout=0.1) == []


def on(node, transport, worker):
    return Parts(node.broker.url, "rpc://", transport, worker)


@pytest.mark.timeout(170)
@pytest.mark.parametrize("transport", ["auto", pytest.param("threads", marks=pytest.mark.soak)])
@pytest_twisted.ensureDeferred
async def test_a_stream_survives_its_broker(rabbitmq_node, worker, eventually, transport):
    """After connections closed by the administrator, and after a killed and restarted broker, events come."""
    parts = on(rabbitmq_node, transport, worker)
    await survives(
        parts,
        eventually,
        (rabbitmq_node.broker.close_connections, lambda: None),
        (rabbitmq_node.kill, rabbitmq_node.start),
        settle=rabbitmq_node.broker.sync,
    )


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_stream_survives_its_redis(redis_server, worker, eventually):
    """After a killed Redis that comes back with nothing of what it had, events and replies come."""
    parts = Parts(redis_server.url(0), redis_server.url(1), "auto", worker)
    await survives(parts, eventually, (redis_server.kill, redis_server.start))


async def survives(parts, eventually, *faults, settle=lambda: None):
    """Have a stream interrupted in some ways, each with the way back."""
    started = await parts.worker(events=True)
    tx_app = parts.client(publish_timeout=60)
    seen = Seen()
    stream = tx_app.events({"*": seen}, state=True)
    await stream.ready

    async def events_come():
        call = tx_app.send_task("taskapp.add", args=(1, 2))
        assert await call == 3
        await eventually(lambda: "task-succeeded" in seen.of(call.task_id))
        assert stream.state.tasks[call.task_id].state == states.SUCCESS

    await events_come()
    for goes_away, comes_back in faults:
        await deferToThread(settle)
        await deferToThread(goes_away)
        await eventually(lambda: not stream.connected)
        await deferToThread(comes_back)
        await eventually(lambda: stream.connected, seconds=40)
        # The worker comes back in its own time.
        while not await tx_app.control.ping(destination=[started.name], timeout=1):
            pass
        await events_come()
    await parts.close()
