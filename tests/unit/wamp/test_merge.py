"""Events of one task from two sources, results and Celery's event stream, in any order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.task import Clock

from twistedcelery.wamp.event_kinds import EVENT_KINDS, SENT
from twistedcelery.wamp.events.celery_events import Observation
from twistedcelery.wamp.events.foreign import ForeignTasks
from twistedcelery.wamp.events.merge import PATIENCE, EventMerger, EventMergers, OwnTask
from twistedcelery.wamp.events.order import EventOrder
from twistedcelery.wamp.events.topics import TaskEvent


def event(kind: str, **details: Any) -> TaskEvent:
    return TaskEvent(EVENT_KINDS[kind], "app.add", "id", kind.upper(), 0.0, None, details)


class Merged:
    """The merger of a bridge's own task, and the events that it publishes."""

    def __init__(self, connected: bool = True) -> None:
        self.clock = Clock()
        self.events: list[TaskEvent] = []
        self.mergers = EventMergers(self.clock, self.clock.seconds, self.events.append)
        self.mergers.wait_for_stream(lambda: connected)
        self.mergers.workers_report(True)
        self.merger = self.begin()

    def begin(self) -> EventMerger:
        merger = self.mergers.begin(OwnTask("app.add", "id", None, {}))
        merger.confirm_sent()
        return merger

    def results(self, *kinds: str) -> None:
        for kind in kinds:
            self.merger.publish(EVENT_KINDS[kind], {})

    def stream(self, *kinds: str, **details: Any) -> None:
        for kind in kinds:
            self.merger.observe(Observation(EVENT_KINDS[kind], "id", None, 0.0, details))

    @property
    def kinds(self) -> list[str]:
        """The published events, but for that with which each task begins."""
        assert self.events[0].kind is SENT
        return [each.kind.name for each in self.events if each.kind is not SENT]


RESULTS = ("started", "progress", "succeeded")
STREAM = ("received", "started", "succeeded")


@pytest.mark.parametrize("places", list(itertools.combinations(range(6), 3)))
def test_whichever_source_is_faster(places):
    """Each event is published once and in order, however the two sources interleave."""
    merged = Merged()
    results, stream = iter(RESULTS), iter(STREAM)
    for place in range(6):
        if place in places:
            merged.results(next(results))
        else:
            merged.stream(next(stream))
    # Progress that waits for its turn is out of date at the end.
    assert [kind for kind in merged.kinds if kind != "progress"] == ["received", "started", "succeeded"]
    assert merged.kinds[-1] == "succeeded"
    assert not merged.clock.getDelayedCalls()
    assert merged.mergers.find("id") is None


FIRST, SECOND = ("received", "started", "retried"), ("received", "started", "succeeded")
RETRY_RESULTS = ("retried", "succeeded")
ONCE = ["received", "started"]


@pytest.mark.parametrize("places", list(itertools.combinations(range(8), 2)))
@pytest.mark.parametrize(
    "stream",
    [
        (*FIRST, *SECOND),
        # The task goes back to its queue before the worker tells so.
        ("received", "started", "received", "retried", "started", "succeeded"),
        ("received", "started", "received", "started", "retried", "succeeded"),
    ],
)
def test_a_retry(places, stream):
    """Each attempt has its events, with the retry between them."""
    merged = Merged()
    results, heard = iter(RETRY_RESULTS), iter(stream)
    for place in range(8):
        if place in places:
            merged.results(next(results))
        else:
            merged.stream(next(heard))
    if merged.kinds[-1] != "succeeded":
        merged.clock.advance(PATIENCE)
    assert merged.kinds == [*ONCE, "retried", *ONCE, "succeeded"]


def test_workers_that_tell_nothing():
    """A final event waits for them once, and not again until one of them sends an event."""
    merged = Merged()
    merged.mergers = EventMergers(merged.clock, merged.clock.seconds, merged.events.append)
    merged.mergers.wait_for_stream(lambda: True)
    merged.merger = merged.begin()
    merged.results("started", "progress", "succeeded")
    assert merged.kinds == ["started", "progress"]
    merged.clock.advance(PATIENCE)
    assert merged.kinds == ["started", "progress", "succeeded"]
    merged.merger = merged.begin()
    merged.results("succeeded")
    assert merged.kinds[3:] == ["succeeded"]
    merged.mergers.workers_report(True)
    merged.merger = merged.begin()
    merged.results("succeeded")
    assert merged.kinds[4:] == []
    merged.stream("received", "started")
    assert merged.kinds[4:] == ["received", "started", "succeeded"]


def test_without_a_connection_nothing_waits():
    """Without a stream, nothing is waited for."""
    merged = Merged(connected=False)
    merged.results("started", "succeeded")
    assert merged.kinds == ["started", "succeeded"]


def test_a_revoked_task_does_not_wait():
    """It may never start, so it is published at once, after the events that waited."""
    merged = Merged()
    merged.results("progress", "revoked")
    assert merged.kinds == ["progress", "revoked"]
    assert not merged.clock.getDelayedCalls()


def test_a_rejected_task():
    """A requeued task has events again; the results report one that is not requeued as failed."""
    merged = Merged()
    merged.stream(*ONCE)
    merged.stream("rejected", requeue=True)
    merged.stream(*ONCE, "failed")
    merged.stream("rejected", requeue=False)
    merged.results("failed")
    assert merged.kinds == [*ONCE, "rejected", *ONCE, "failed"]


def test_a_rejected_task_of_an_older_worker():
    """It sends no other final event."""
    merged = Merged()
    merged.stream(*ONCE)
    merged.stream("rejected", requeue=False)
    merged.results("succeeded")
    assert merged.kinds == [*ONCE, "rejected"]


def test_stopping_leaves_nothing():
    """Events that wait are dropped, and no timer is left."""
    merged = Merged()
    merged.results("progress", "succeeded")
    merged.merger.stop()
    merged.clock.advance(2 * PATIENCE)
    assert merged.kinds == []
    assert not merged.clock.getDelayedCalls()


def single() -> tuple[EventOrder, list[TaskEvent], Clock]:
    events: list[TaskEvent] = []
    clock = Clock()
    return EventOrder(clock, events.append), events, clock


@pytest.mark.parametrize(
    ("arrived", "published"),
    [
        (["received", "received", "started", "started"], ["received", "started"]),
        (["started", "received"], ["started"]),
        (
            ["received", "started", "failed", "succeeded", "retried", "sent"],
            ["received", "started", "failed"],
        ),
        (["received", "sent", "sent", "started"], ["received", "sent", "started"]),
        (["retried", "retried", "revoked"], ["retried", "retried", "revoked"]),
    ],
)
def test_duplicate_and_late_events(arrived, published):
    """They are dropped, except for ``sent``, which is often late."""
    order, events, _ = single()
    for kind in arrived:
        order.publish(event(kind))
    assert [each.kind.name for each in events] == published
    late = [each.kind.name for each in events if each.overtaken]
    assert late == [kind for kind in published[1:] if kind == "sent"]


def test_progress_that_is_out_of_date():
    """Progress that waits is dropped by any later event, and none follows the end."""
    order, events, clock = single()
    for kind in ("progress", "progress", "retried"):
        order.publish(event(kind))
    clock.advance(10)
    assert [each.kind.name for each in events] == ["progress", "retried"]
    for kind in ("progress", "progress", "succeeded", "progress"):
        order.publish(event(kind))
    clock.advance(10)
    assert [each.kind.name for each in events] == ["progress", "retried", "progress", "succeeded"]
    assert not clock.getDelayedCalls()


def test_only_so_many_are_remembered(setup, monkeypatch):
    """The foreign task whose last event is the oldest is forgotten, with its waiting events."""
    monkeypatch.setattr("twistedcelery.wamp.events.foreign.MAX_REMEMBERED", 2)
    one = setup()
    tasks = ForeignTasks(one.bridge.config, one.clock, one.bridge._events)
    for number in range(4):
        for kind in ("received", "progress", "progress"):
            tasks.observe(Observation(EVENT_KINDS[kind], f"id{number}", "app.add", 0.0, {"meta": 1}))
    tasks.observe(Observation(EVENT_KINDS["succeeded"], "id0", None, 0.0, {}))
    tasks.observe(Observation(EVENT_KINDS["succeeded"], "id2", None, 0.0, {}))
    ended = [payload["task_id"] for topic, payload, _ in one.session.published if topic.endswith("succeeded")]
    assert ended == ["id2"] * 1
    assert len(one.clock.getDelayedCalls()) == 1
    tasks.forget()
    assert not one.clock.getDelayedCalls()
