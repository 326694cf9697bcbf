"""Two sources, one story: results and Celery's event stream, in whatever order they come."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.task import Clock

from twistedcelery.wamp.events.celery_events import Observation
from twistedcelery.wamp.events.foreign import ForeignTasks
from twistedcelery.wamp.events.stories import PATIENCE, Stories
from twistedcelery.wamp.events.story import Story
from twistedcelery.wamp.events.topics import TaskEvent


def event(kind: str, **details: Any) -> TaskEvent:
    return TaskEvent(kind, "app.add", "id", kind.upper(), 0.0, None, details)


class Told:
    """One story of a bridge's own task, and what was told of it."""

    def __init__(self, connected: bool = True) -> None:
        self.clock = Clock()
        self.events: list[TaskEvent] = []
        self.stories = Stories(self.clock, self.events.append)
        self.stories.listen(lambda: connected)
        self.stories.heard(something=True)
        self.story = self.begin()

    def begin(self) -> Any:
        return self.stories.begin("id", lambda observation: observation.of("app.add"))

    def results(self, *kinds: str) -> None:
        for kind in kinds:
            self.story.tell(event(kind))

    def stream(self, *kinds: str, **details: Any) -> None:
        for kind in kinds:
            self.story.hear(Observation(kind, "id", None, kind.upper(), 0.0, details))

    @property
    def kinds(self) -> list[str]:
        return [each.event for each in self.events]


RESULTS = ("started", "progress", "succeeded")
STREAM = ("received", "started", "succeeded")


@pytest.mark.parametrize("places", list(itertools.combinations(range(6), 3)))
def test_whichever_source_is_faster(places):
    """Each event is told once and in order, however the two sources interleave."""
    told = Told()
    told.results("sent")
    results, stream = iter(RESULTS), iter(STREAM)
    for place in range(6):
        if place in places:
            told.results(next(results))
        else:
            told.stream(next(stream))
    # Progress that waits for its turn is out of date at the end.
    assert [kind for kind in told.kinds if kind != "progress"] == ["sent", "received", "started", "succeeded"]
    assert told.kinds[-1] == "succeeded"
    assert not told.clock.getDelayedCalls()
    assert told.stories.find("id") is None


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
    """Each attempt has its events, and between them is the retry."""
    told = Told()
    results, heard = iter(RETRY_RESULTS), iter(stream)
    for place in range(8):
        if place in places:
            told.results(next(results))
        else:
            told.stream(next(heard))
    if told.kinds[-1] != "succeeded":
        told.clock.advance(PATIENCE)
    assert told.kinds == [*ONCE, "retried", *ONCE, "succeeded"]


def test_workers_that_tell_nothing():
    """An end waits for them once, and not again until one of them tells something."""
    told = Told()
    told.stories = Stories(told.clock, told.events.append)
    told.stories.listen(lambda: True)
    told.story = told.begin()
    told.results("sent", "started", "progress", "succeeded")
    assert told.kinds == ["sent", "started", "progress"]
    told.clock.advance(PATIENCE)
    assert told.kinds == ["sent", "started", "progress", "succeeded"]
    told.story = told.begin()
    told.results("succeeded")
    assert told.kinds[4:] == ["succeeded"]
    told.stories.heard(something=True)
    told.story = told.begin()
    told.results("succeeded")
    assert told.kinds[5:] == []
    told.stream("received", "started")
    assert told.kinds[5:] == ["received", "started", "succeeded"]


def test_without_a_connection_nothing_waits():
    """What cannot be heard is not waited for."""
    told = Told(connected=False)
    told.results("sent", "started", "succeeded")
    assert told.kinds == ["sent", "started", "succeeded"]


def test_a_revoked_task_does_not_wait():
    """It may never begin, so its end is told at once, after what was waiting."""
    told = Told()
    told.results("progress", "revoked")
    assert told.kinds == ["progress", "revoked"]
    assert not told.clock.getDelayedCalls()


def test_a_rejected_task():
    """One that goes back to its queue is told of again; one that does not has failed, as its results say."""
    told = Told()
    told.stream(*ONCE)
    told.stream("rejected", requeue=True)
    told.stream(*ONCE, "failed")
    told.stream("rejected", requeue=False)
    told.results("failed")
    assert told.kinds == [*ONCE, "rejected", *ONCE, "failed"]


def test_a_rejected_task_of_an_older_worker():
    """It says nothing else of the end."""
    told = Told()
    told.stream(*ONCE)
    told.stream("rejected", requeue=False)
    told.results("succeeded")
    assert told.kinds == [*ONCE, "rejected"]


def test_stopping_leaves_nothing():
    """What waits is dropped, and no timer is left."""
    told = Told()
    told.results("progress", "succeeded")
    told.story.stop()
    told.clock.advance(2 * PATIENCE)
    assert told.kinds == []
    assert not told.clock.getDelayedCalls()


def single() -> tuple[Story, list[TaskEvent], Clock]:
    events: list[TaskEvent] = []
    clock = Clock()
    return Story(clock, events.append), events, clock


@pytest.mark.parametrize(
    ("heard", "told"),
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
def test_what_is_doubled_or_late(heard, told):
    """It is left out, but for the word that a task was sent, which comes late as a rule."""
    story, events, _ = single()
    for kind in heard:
        story.tell(event(kind))
    assert [each.event for each in events] == told
    assert [each.event for each in events if each.overtaken] == [kind for kind in told[1:] if kind == "sent"]


def test_progress_that_is_out_of_date():
    """What waits for its turn is dropped by whatever comes after it, and none follows the end."""
    story, events, clock = single()
    for kind in ("progress", "progress", "retried"):
        story.tell(event(kind))
    clock.advance(10)
    assert [each.event for each in events] == ["progress", "retried"]
    for kind in ("progress", "progress", "succeeded", "progress"):
        story.tell(event(kind))
    clock.advance(10)
    assert [each.event for each in events] == ["progress", "retried", "progress", "succeeded"]
    assert not clock.getDelayedCalls()


def test_only_so_many_are_remembered(setup, monkeypatch):
    """Of the tasks of others the one heard of least recently is forgotten, with what it has waiting."""
    monkeypatch.setattr("twistedcelery.wamp.events.foreign.MAX_REMEMBERED", 2)
    one = setup()
    tasks = ForeignTasks(one.bridge.config, one.clock, one.bridge._events)
    for number in range(4):
        for kind in ("received", "progress", "progress"):
            tasks.take(Observation(kind, f"id{number}", "app.add", "X", 0.0, {"meta": 1}))
    tasks.take(Observation("succeeded", "id0", None, "SUCCESS", 0.0, {}))
    tasks.take(Observation("succeeded", "id2", None, "SUCCESS", 0.0, {}))
    ended = [payload["task_id"] for topic, payload, _ in one.session.published if topic.endswith("succeeded")]
    assert ended == ["id2"] * 1
    assert len(one.clock.getDelayedCalls()) == 1
    tasks.forget()
    assert not one.clock.getDelayedCalls()
