"""What subscribers learn of the tasks that are called through a bridge."""

from __future__ import annotations

import time
import uuid

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import ensureDeferred

from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("worker_process")


async def event_kinds(queue, prefix, last):
    """The kinds of events that come, up to one that ends a task."""
    kinds = []
    while not kinds or kinds[-1] != last:
        topic, _ = await queue.get()
        kinds.append(topic.removeprefix(prefix + "."))
    return kinds


@pytest_twisted.ensureDeferred
async def test_the_life_of_a_task(router, bridge, client):
    """Each event comes on the topic of its task and kind, with the documented payload."""
    running, caller = await bridge(router.url, events=True), await client(router.url)
    queue = await caller.events(running.uri("taskapp"), match="prefix")
    before = time.time()
    await caller.call(running.uri("taskapp.countdown"), 2, delay=0.1)
    events = [await queue.get() for _ in range(4)]
    uris = [
        running.uri(f"taskapp.countdown.{kind}") for kind in ("sent", "progress", "progress", "succeeded")
    ]
    assert [topic for topic, _ in events] == uris
    payloads = [payload for _, payload in events]
    assert {payload["task"] for payload in payloads} == {"taskapp.countdown"}
    assert len({payload["task_id"] for payload in payloads}) == 1
    assert [payload["state"] for payload in payloads] == ["PENDING", "PROGRESS", "PROGRESS", "SUCCESS"]
    assert payloads[2]["meta"] == {"current": 2, "total": 2}
    assert 0.1 < payloads[3]["runtime"] < 10
    assert all(before <= payload["timestamp"] <= time.time() for payload in payloads)
    common = {"task_id", "task", "state", "timestamp"}
    assert [set(payload) - common for payload in payloads] == [set(), {"meta"}, {"meta"}, {"runtime"}]


@pytest_twisted.ensureDeferred
async def test_what_is_published_by_default(router, bridge, client):
    """Failures and retries say what was raised; arguments, results and tracebacks stay inside."""
    running, caller = await bridge(router.url), await client(router.url)
    queue = await caller.events(running.uri("taskapp"), match="prefix")
    with pytest.raises(ApplicationError):
        await caller.call(running.uri("taskapp.fail"), "no luck")
    topic, payload = await queue.get()
    assert topic == running.uri("taskapp.fail.failed")
    assert (payload["exc_type"], payload["exc_message"]) == ("ValueError", "no luck")
    assert set(payload) == {"task_id", "task", "state", "timestamp", "exc_type", "exc_message"}
    await caller.call(running.uri("taskapp.retry_once"))
    (retried, payload), (succeeded, _) = await queue.get(), await queue.get()
    assert retried == running.uri("taskapp.retry_once.retried")
    assert payload["exc_message"] == "first attempt"
    assert succeeded == running.uri("taskapp.retry_once.succeeded")


@pytest_twisted.ensureDeferred
async def test_what_may_be_published(router, bridge, client):
    """Arguments, results and tracebacks are in the events where the configuration says so."""
    extra = {"publish_arguments": True, "publish_results": True, "tracebacks": True}
    running, caller = await bridge(router.url, **extra), await client(router.url)
    queue = await caller.events(running.uri("taskapp"), match="prefix")
    await caller.call(running.uri("taskapp.add"), 2, y=3)
    _, payload = await queue.get()
    assert (payload["args"], payload["kwargs"], payload["result"]) == ([2], {"y": 3}, 5)
    with pytest.raises(ApplicationError):
        await caller.call(running.uri("taskapp.fail"), "no luck")
    _, payload = await queue.get()
    assert "taskapp.py" in payload["traceback"]


@pytest_twisted.ensureDeferred
async def test_events_can_be_chosen(router, bridge, client):
    """Only the configured events are published."""
    running, caller = await bridge(router.url, events=["succeeded"]), await client(router.url)
    queue = await caller.events(running.uri("taskapp"), match="prefix")
    await caller.call(running.uri("taskapp.countdown"), 2, delay=0.01)
    await caller.call(running.uri("taskapp.add"), 2, 3)
    assert [(await queue.get())[0] for _ in range(2)] == [
        running.uri("taskapp.countdown.succeeded"),
        running.uri("taskapp.add.succeeded"),
    ]


@pytest_twisted.ensureDeferred
async def test_one_task_has_a_topic_of_its_own(router, bridge, client):
    """Its URI holds the id without dashes. Who comes late asks, or gets the last event if it is retained."""
    running, caller = await bridge(router.url, retain_events=True), await client(router.url)
    task_id = await caller.call(running.api("submit"), "taskapp.countdown", [5], {"delay": 0.1})
    topic = f"{running.prefix}_task.{uuid.UUID(task_id).hex}"
    queue = await caller.events(topic)
    states = []
    while not states or states[-1] != "SUCCESS":
        _, payload = await queue.get()
        assert payload["task_id"] == task_id
        states.append(payload["state"])
    assert set(states) == {"PROGRESS", "SUCCESS"}
    late = await (await client(router.url)).events(topic, retained=True)
    assert (await late.get())[1]["state"] == "SUCCESS"
    assert await caller.call(running.api("state"), task_id) == "SUCCESS"


@pytest_twisted.ensureDeferred
async def test_events_for_the_caller_alone(router, bridge, client):
    """Where only the caller may see its events, nobody else does, retained or not."""
    running = await bridge(router.url, event_audience="caller", retain_events=True)
    caller, other = await client(router.url), await client(router.url)
    everything = await other.events(running.uri("taskapp"), match="prefix")
    own = await caller.events(running.uri("taskapp"), match="prefix")
    await caller.call(running.uri("taskapp.add"), 1, 2)
    topic, payload = await own.get()
    assert topic == running.uri("taskapp.add.succeeded")
    run_topic = f"{running.prefix}_task.{uuid.UUID(payload['task_id']).hex}"
    assert (await (await caller.events(run_topic, retained=True)).get())[1]["state"] == "SUCCESS"
    nothing = await other.events(run_topic, retained=True)
    # The first event that the other sees is that of its own call.
    await other.call(running.uri("taskapp.add"), 3, 4)
    _, theirs = await everything.get()
    assert theirs["task_id"] != payload["task_id"]
    assert not nothing.pending


@pytest_twisted.ensureDeferred
async def test_a_cancelled_call_is_published_as_revoked(router, bridge, client):
    """Subscribers learn that a task was revoked."""
    running, caller = await bridge(router.url), await client(router.url)
    queue = await caller.events(running.uri("taskapp"), match="prefix")
    call = caller.call(running.uri("taskapp.sleep"), 0, celery_options={"countdown": 30})
    await caller.call(running.api("status"))
    caller.cancel_call(call, "kill")
    with pytest.raises(ApplicationError):
        await call
    topic, payload = await queue.get()
    assert (topic, payload["state"]) == (running.uri("taskapp.sleep.revoked"), "REVOKED")


@pytest_twisted.ensureDeferred
async def test_nothing_is_published_for_nobody(router, bridge, client, monkeypatch):
    """A call sends the router its result alone; with a subscriber of one kind of event, that one too."""
    # Without those that come from Celery's stream: for these, the others wait up to a second.
    running, caller = await bridge(router.url, events=["succeeded"]), await client(router.url)
    published = counted(running, monkeypatch)
    await caller.call(running.uri("taskapp.add"), 1, 2)
    queue = await caller.events(running.uri("taskapp.add.succeeded"))
    for number in range(3):
        await caller.call(running.uri("taskapp.add"), number, 2)
    assert [(await queue.get())[1]["state"] for _ in range(3)] == ["SUCCESS"] * 3
    assert published == [running.uri("taskapp.add.succeeded")] * 3
    await caller.close()
    again = await client(router.url)
    audience = running.bridge._events._audience
    await until(lambda: not audience.has(running.uri("taskapp.add.succeeded")), what="nobody listens")
    await again.call(running.uri("taskapp.add"), 1, 2)
    assert len(published) == 3


@pytest.mark.parametrize("match", ["exact", "prefix", "wildcard"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_subscribes_and_calls_at_once(router, bridge, client, match):
    """It does not wait for the router, and gets each event of its task once."""
    running = await bridge(router.url, events=["sent", "succeeded"])
    topics = {
        "exact": [running.uri("taskapp.add.sent"), running.uri("taskapp.add.succeeded")],
        "prefix": [running.uri("taskapp.add")],
        "wildcard": [running.uri("taskapp") + "..sent", running.uri("taskapp") + "..succeeded"],
    }
    for _ in range(5):
        caller = await client(router.url)
        subscribing = [caller.events(topic, match) for topic in topics[match]]
        subscribed = [ensureDeferred(one) for one in subscribing]
        calling = caller.call(running.uri("taskapp.add"), 1, 2)
        queues = [await one for one in subscribed]
        assert await calling == 3
        # One queue gets both, or each gets one.
        got = [(await queues[index % len(queues)].get())[0].rpartition(".")[2] for index in range(2)]
        assert sorted(got) == ["sent", "succeeded"]
        await caller.call(running.uri("taskapp.add"), 1, 2)
        later = [(await queues[index % len(queues)].get())[0].rpartition(".")[2] for index in range(2)]
        assert sorted(later) == ["sent", "succeeded"]
        await caller.close()


def counted(running, monkeypatch):
    """The topics of tasks that a bridge publishes on from now on."""
    session = running.bridge._events._session
    published, publish = [], session.publish

    def spy(topic, *args, **kwargs):
        published.append(topic)
        return publish(topic, *args, **kwargs)

    monkeypatch.setattr(session, "publish", spy)
    return published
