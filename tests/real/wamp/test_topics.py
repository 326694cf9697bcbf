"""What subscribers learn of the tasks that are called through a bridge."""

from __future__ import annotations

import time
import uuid

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError

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
