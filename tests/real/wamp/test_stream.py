"""What subscribers learn from Celery's event stream: of tasks sent by anyone, and of workers."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.types import SubscribeOptions
from celery.exceptions import Reject, TaskRevokedError
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.real.wamp import apps
from tests.real.wamp.client import wait_for_procedure
from tests.real.wamp.test_calls import refusal
from tests.support.rabbitmq import RabbitMQ
from tests.support.taskapp import create_app
from tests.support.waiting import until
from tests.support.worker import Worker
from twistedcelery import TwistedCelery
from twistedcelery.wamp.task_ids import TaskIds

pytestmark = pytest.mark.usefixtures("telling_worker")

#: All but ``sent``, which a sender may tell late.
EVENTS = ["received", "started", "progress", "retried", "succeeded", "failed", "revoked", "rejected"]
COMMON = {"task_id", "task", "state", "timestamp"}


@pytest.fixture(scope="module")
def broker(rabbitmq: RabbitMQ) -> Iterator[str]:
    """A virtual host whose worker sends events; the others' does not."""
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="module")
def telling_worker(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that sends events of its tasks, of which it runs eight at a time."""
    worker = Worker(
        tmp_path_factory.mktemp("worker"),
        broker=broker,
        backend="rpc://",
        pool="threads",
        concurrency=8,
        events=True,
    )
    worker.start()
    yield worker
    worker.stop()


@pytest_twisted.async_yield_fixture
async def somebody(broker: str) -> AsyncIterator[TwistedCelery]:
    """A client of Celery's that is no bridge; it tells of what it sends."""
    client = TwistedCelery(create_app(broker, "rpc://", task_send_sent_event=True))
    yield client
    await client.disconnect()


async def leads(running: Any) -> None:
    """Wait until a bridge of this process leads, and reads the events."""
    await until(lambda: (own := running.bridge._feed._subscription) and own.leads and own.stream.connected)


class Log:
    """What came on the topics below a prefix."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    @classmethod
    async def of(cls, subscriber: Any, prefix: str) -> Log:
        log = cls()
        queue = await subscriber.events(f"{prefix}.", match="prefix")

        def take(event: tuple[str, dict[str, Any]]) -> None:
            log.events.append((event[0].removeprefix(f"{prefix}."), event[1]))
            queue.get().addCallback(take)

        queue.get().addCallback(take)
        return log

    def kinds(self, task_id: str) -> list[str]:
        """The kinds of events of one task, in order."""
        return [topic.rpartition(".")[2] for topic, payload in self.events if payload["task_id"] == task_id]

    async def told(self, call: Any, *kinds: str) -> None:
        """Wait until these have come of a task, and nothing else."""
        try:
            await until(lambda: len(self.kinds(call.task_id)) >= len(kinds))
        finally:
            assert self.kinds(call.task_id) == list(kinds)

    def payload(self, task_id: str, kind: str) -> dict[str, Any]:
        (found,) = [
            payload
            for topic, payload in self.events
            if payload["task_id"] == task_id and topic.endswith(f".{kind}")
        ]
        return found


@pytest_twisted.ensureDeferred
async def test_the_life_of_somebodys_task(router, bridge, client, somebody):
    """Tasks that no bridge has sent are published the same way, and retained if that is configured."""
    running = await bridge(router.url, events=True, retain_events=True)
    subscriber = await client(router.url)
    log = await Log.of(subscriber, running.prefix)
    await leads(running)
    before = time.time()
    # Clients tell that they have sent a task after they have sent it.
    call = somebody.send_task("taskapp.add", args=(2, 3), countdown=0.5)
    await call
    kinds = ["sent", "received", "started", "succeeded"]
    await until(lambda: len(log.events) >= len(kinds))
    # A worker may be faster with its first event.
    assert {topic for topic, _ in log.events[:2]} == {f"taskapp.add.{kind}" for kind in kinds[:2]}
    assert [topic for topic, _ in log.events[2:]] == [f"taskapp.add.{kind}" for kind in kinds[2:]]
    payloads = [log.payload(call.task_id, kind) for kind in kinds]
    assert [payload["state"] for payload in payloads] == ["PENDING", "RECEIVED", "STARTED", "SUCCESS"]
    assert {payload["task"] for payload in payloads} == {"taskapp.add"}
    assert all(before - 1 < payload["timestamp"] < time.time() + 1 for payload in payloads)
    assert [set(payload) - COMMON for payload in payloads] == [set(), set(), set(), {"runtime"}]
    assert 0 <= payloads[-1]["runtime"] < 5
    topic = f"{running.prefix}_task.{uuid.UUID(call.task_id).hex}"
    late = await (await client(router.url)).events(topic, retained=True)
    assert await late.get() == (topic, payloads[-1])


@pytest_twisted.ensureDeferred
async def test_how_somebodys_tasks_end_badly(router, bridge, client, somebody, tmp_path):
    """Failures and retries say what was raised, as it is said of a bridge's own tasks."""
    running, subscriber = await bridge(router.url, events=EVENTS), await client(router.url)
    log = await Log.of(subscriber, running.prefix)
    await leads(running)
    failing = somebody.send_task("taskapp.fail", args=("no luck",))
    retrying = somebody.send_task("taskapp.retry_once")
    again = somebody.send_task("taskapp.reject", args=(True, str(tmp_path / "again")))
    dropped = somebody.send_task("taskapp.reject", args=(False, str(tmp_path / "dropped")))
    revoked = somebody.send_task("taskapp.add", args=(1, 2), countdown=2)
    await revoked.published
    await until(lambda: "received" in log.kinds(revoked.task_id))
    await somebody.revoke(revoked.task_id)
    for call in (failing, dropped, revoked):
        with pytest.raises((ValueError, Reject, TaskRevokedError)):
            await call
    await retrying
    await again
    began = ["received", "started"]
    await log.told(failing, *began, "failed")
    await log.told(retrying, *began, "retried", "received", "started", "succeeded")
    await log.told(again, *began, "rejected", "received", "started", "succeeded")
    await log.told(dropped, *began, "failed")
    await log.told(revoked, "received", "revoked")
    failed = log.payload(failing.task_id, "failed")
    assert (failed["exc_type"], failed["exc_message"]) == ("ValueError", "no luck")
    retried = log.payload(retrying.task_id, "retried")
    assert set(retried) == {*COMMON, "exc_type", "exc_message"}
    assert (retried["exc_type"], retried["exc_message"]) == ("ConnectionError", "first attempt")
    assert log.payload(again.task_id, "rejected")["requeue"] is True


@pytest_twisted.ensureDeferred
async def test_results_and_stream_are_merged(router, bridge, client):
    """Of a bridge's own task each event comes once, in order, whichever of the two sources tells it."""
    running, caller = await bridge(router.url, events=True), await client(router.url)
    log = await Log.of(caller, running.prefix)
    await leads(running)
    for _ in range(20):
        await caller.call(running.uri("taskapp.add"), 2, 3)
    await caller.call(running.uri("taskapp.retry_once"))
    await refusal(caller.call(running.uri("taskapp.fail"), "no luck"))
    await until(lambda: log.events[-1][0] == "taskapp.fail.failed")
    ids = list(dict.fromkeys(payload["task_id"] for _, payload in log.events))
    began = ["sent", "received", "started"]
    assert [log.kinds(task_id) for task_id in ids[:20]] == [[*began, "succeeded"]] * 20
    assert log.kinds(ids[20]) == [*began, "retried", "received", "started", "succeeded"]
    assert log.kinds(ids[21]) == [*began, "failed"]


class Sender:
    """Sends tasks that no bridge has sent.

    :ivar calls: the tasks
    """

    def __init__(self, client: TwistedCelery, log: Log) -> None:
        self.calls: list[Any] = []
        self._client, self._log = client, log

    def send(self, count: int = 1) -> None:
        self.calls += [self._client.send_task("taskapp.add", args=(1, number)) for number in range(count)]

    async def send_until(self, condition: Any) -> None:
        """Go on sending until a condition holds."""
        from twisted.internet import reactor

        while not condition():
            self.send()
            await deferLater(reactor, 0.05, lambda: None)

    async def told(self, first: int) -> None:
        """Wait until everything is told of all tasks from one on, and nothing twice."""
        for call in self.calls:
            await call
        for call in self.calls[first:]:
            await self._log.told(call, "received", "started", "succeeded")


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_several_bridges(router, bridge, bridge_process, client, somebody):
    """Two bridges publish each event once, also when the leader is killed; the other one takes its place."""
    from twisted.internet import reactor

    extra = {"prefix": "shared", "events": EVENTS}
    process, subscriber = bridge_process(router.url, **extra), await client(router.url)
    await wait_for_procedure(subscriber, "shared_admin.leader")
    running = await bridge(router.url, **extra)
    log = await Log.of(subscriber, "shared")
    sender = Sender(somebody, log)
    # The leader may not read the stream yet.
    await sender.send_until(lambda: any(topic.endswith(".succeeded") for topic, _ in log.events))
    before = len(sender.calls)
    sender.send(40)
    for call in [subscriber.call("shared.taskapp.add", 2, number) for number in range(40)]:
        await call
    await sender.told(before)

    def own() -> set[str]:
        return {payload["task_id"] for _, payload in log.events} - {call.task_id for call in sender.calls}

    await until(lambda: sum(log.kinds(task_id)[-1:] == ["succeeded"] for task_id in own()) == 40)
    assert {tuple(log.kinds(task_id)) for task_id in own()} == {("received", "started", "succeeded")}
    assert all(TaskIds("realm1", "shared").made(task_id) for task_id in own())

    running_on = somebody.send_task("taskapp.sleep", args=(6,))
    await until(lambda: "started" in log.kinds(running_on.task_id))
    killed = reactor.seconds()
    process.kill()
    await sender.send_until(lambda: (own := running.bridge._feed._subscription) and own.leads)
    await leads(running)
    assert reactor.seconds() - killed < 5
    after = len(sender.calls)
    sender.send(40)
    await sender.told(after)
    # Its name the new leader has asked for.
    await log.told(running_on, "received", "started", "succeeded")
    await running_on
    told = Counter((payload["task_id"], topic) for topic, payload in log.events)
    assert set(told.values()) == {1}


@pytest_twisted.ensureDeferred
async def test_workers_come_and_go(router, bridge, client, broker, tmp_path, monkeypatch):
    """Operators learn that a worker is online, of its heartbeats, and that it has left or fallen silent."""
    monkeypatch.setattr("twistedcelery.wamp.events.worker_topics.MIN_SILENCE", 1)
    running, operator = await bridge(router.url), await client(router.url)
    log: list[tuple[str, dict[str, Any]]] = []
    prefix = f"{running.prefix}_admin.worker."
    options = SubscribeOptions(match="prefix", details_arg="_details")
    await operator.subscribe(
        lambda **event: log.append((event.pop("_details").topic.removeprefix(prefix), event)), prefix, options
    )
    await leads(running)
    workers = [Worker(tmp_path, broker=broker, backend="rpc://", queues="none") for _ in range(2)]

    def of(worker: Worker) -> dict[str, dict[str, Any]]:
        return {kind: payload for kind, payload in log if payload["hostname"] == worker.name}

    try:
        await gatherResults([deferToThread(worker.start) for worker in workers])
        await until(lambda: all({"online", "heartbeat"} <= set(of(worker)) for worker in workers))
        await deferToThread(workers[0].stop)
        await deferToThread(workers[1].kill)
        await until(lambda: all("offline" in of(worker) for worker in workers))
    finally:
        for worker in workers:
            await deferToThread(worker.kill)
    assert [of(worker)["offline"]["reason"] for worker in workers] == ["left", "silent"]
    online = of(workers[0])["online"]
    assert (online["freq"], online["active"], online["sw_ident"]) == (2.0, 0, "py-celery")
    assert abs(online["timestamp"] - time.time()) < 60
    for worker in workers:
        kinds = [kind for kind, payload in log if payload["hostname"] == worker.name]
        assert (kinds[0], kinds[-1], kinds.count("online"), kinds.count("offline")) == (
            "online",
            "offline",
            1,
            1,
        )


@pytest_twisted.ensureDeferred
async def test_a_task_that_tells_of_its_progress(router, bridge, client, somebody):
    """An event of its own named ``task-progress`` is progress, throttled, and none follows the end."""
    running, subscriber = await bridge(router.url), await client(router.url)
    log = await Log.of(subscriber, running.prefix)
    await leads(running)
    call = somebody.send_task("taskapp.send_progress", args=(100, 0.005))
    await call
    await until(lambda: "succeeded" in log.kinds(call.task_id))
    kinds = log.kinds(call.task_id)
    assert (kinds[-1], set(kinds[:-1])) == ("succeeded", {"progress"})
    assert 2 < len(kinds) < 60
    assert log.events[0][1]["meta"]["total"] == 100


@pytest_twisted.ensureDeferred
async def test_workers_that_are_asked_for_events(router, bridge, client, rabbitmq, tmp_path, monkeypatch):
    """Workers without ``-E`` send events where the bridge is to ask for them, also those that come later."""
    with rabbitmq.vhost() as broker:
        app = create_app(broker, "rpc://")
        monkeypatch.setattr(apps, "current", app)
        running, subscriber = await bridge(router.url, enable_events=True), await client(router.url)
        log = await Log.of(subscriber, running.prefix)
        await leads(running)
        worker, sender = Worker(tmp_path, broker=broker, backend="rpc://"), TwistedCelery(app)
        try:
            await deferToThread(worker.start)

            async def is_published() -> bool:
                call = sender.send_task("taskapp.add", args=(1, 2))
                await call
                await deferLater(reactor, 0.2, lambda: None)
                return log.kinds(call.task_id) == ["succeeded"]

            from twisted.internet import reactor

            await until(is_published, what="events are published")
        finally:
            await deferToThread(worker.kill)
            await sender.disconnect()
            await running.stop()
