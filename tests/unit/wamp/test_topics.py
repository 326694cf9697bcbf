"""Which events are published, when, with which payload, and for which subscribers."""

from __future__ import annotations

from uuid import UUID

import pytest
from twisted.internet.task import Clock

from tests.unit.wamp.conftest import error_of
from tests.unit.wamp.fakes import failure, success
from twistedcelery.wamp.events.throttle import Throttle


def test_the_payload(setup):
    """Every event has its task, state and time, on the topic of its kind and on that of the run."""
    one = setup(events=True)
    one.call("app.add", 1, 2)
    one.last.mark_published()
    one.clock.advance(2)
    one.last.update("STARTED", {"pid": 1})
    one.clock.advance(3)
    one.last.finish(success(3))
    task_id = one.last.task_id
    common = {"task_id": task_id, "task": "app.add"}
    expected = [
        ("sent", {"state": "PENDING", "timestamp": 1000.0}),
        ("started", {"state": "STARTED", "timestamp": 1002.0}),
        ("succeeded", {"state": "SUCCESS", "timestamp": 1005.0, "runtime": 3.0}),
    ]
    published = iter(one.session.published)
    for kind, payload in expected:
        assert next(published) == (
            f"celery.app.add.{kind}",
            {**common, **payload},
            {"acknowledge": False, "retain": False},
        )
        assert next(published) == (
            f"celery_task.{UUID(task_id).hex}",
            {**common, **payload},
            {"acknowledge": False, "retain": False},
        )


def test_progress_is_throttled(setup):
    """At most 20 events a second are published, and the latest state wins."""
    one = setup(max_in_flight_age=None)
    one.call("app.add", 1, 2)
    for step in range(1000):
        one.last.update("PROGRESS", step)
        one.clock.advance(0.001)
    metas = [payload["meta"] for topic, payload, _ in one.session.published if topic.endswith(".progress")]
    assert 19 <= len(metas) <= 20
    assert metas == sorted(metas)
    one.clock.pump([1, 1])
    assert one.session.published[-1][1]["meta"] == 999
    assert one.clock.getDelayedCalls() == []


def test_waiting_for_a_worker_is_no_event(setup):
    """A caller gets the state ``WAITING``; subscribers do not."""
    one = setup(events=["progress"])
    seen = []
    one.call("app.add", 1, 2, progress=lambda *result: seen.append(result))
    one.last.update("WAITING", {"reason": "no worker consumes queue 'celery'"})
    assert seen == [("WAITING", {"reason": "no worker consumes queue 'celery'"})]
    assert one.session.published == []


def test_no_progress_follows_the_end(setup):
    """Progress that waits is dropped by the final event."""
    one = setup()
    one.call("app.add", 1, 2)
    one.last.update("PROGRESS", 1)
    one.last.update("PROGRESS", 2)
    one.last.finish(success(3))
    one.last.update("PROGRESS", 3)
    one.clock.advance(10)
    assert one.session.topics() == ["app.add.progress", "app.add.succeeded"]
    assert one.clock.getDelayedCalls() == []


def test_a_stopped_throttle():
    """It forwards nothing more."""
    clock, forwarded = Clock(), []
    throttle = Throttle(clock, 1, forwarded.append)
    for item in (1, 2):
        throttle.offer(item)
    throttle.stop()
    throttle.offer(3)
    clock.advance(5)
    assert forwarded == [1]


def test_states_of_the_tasks_own(setup):
    """A custom state is published as progress under its own name."""
    one = setup()
    one.call("app.add", 1, 2)
    one.last.update("UPLOADING", {"file": 1})
    topic, payload, _ = one.session.published[0]
    assert (topic, payload["state"], payload["meta"]) == ("celery.app.add.progress", "UPLOADING", {"file": 1})


def test_what_cannot_be_published_is_left_out(setup):
    """An event with an unencodable ``meta`` is dropped. Results and arguments are only left out."""
    one = setup(publish_results=True, publish_arguments=True)
    answer = one.call("app.add", 1, object())
    one.last.update("PROGRESS", object())
    one.last.finish(success(float("inf")))
    (topic, payload, _), (_, of_run, _) = one.session.published
    assert topic == "celery.app.add.succeeded"
    assert payload == of_run
    assert payload.keys() == {"task_id", "task", "state", "timestamp", "runtime"}
    assert error_of(answer).error == "celery.error.result_unencodable"
    one.call("app.add", 1, 2)
    one.last.finish(success(1))
    assert one.session.published[2][1]["result"] == 1


def test_too_many_items(setup):
    """A progress of too many items is dropped, a result left out; also for tasks of others."""
    one = setup(publish_results=True, max_items=10)
    progress: list[object] = []
    answer = one.call("app.add", 1, 2, progress=lambda *state: progress.append(state))
    for items in (10, 11):
        one.last.update("PROGRESS", [0] * items)
        one.clock.advance(1)
    one.last.finish(success({"a": [0] * 10}))
    assert progress == [("PROGRESS", [0] * 10)]
    assert one.session.topics() == ["app.add.progress", "app.add.succeeded"]
    assert "result" not in one.session.published[-1][1]
    error = error_of(answer)
    assert (error.error, error.kwargs["task_id"]) == ("celery.error.result_unencodable", one.last.task_id)
    assert "more than 10 items" in error.args[0]
    assert "max_items" in error.args[0]
    assert one.bridge._in_flight.totals == {"sent": 1, "succeeded": 1}


def test_retained_events(setup, said):
    """The router keeps the last event of each run only where that is configured, with a warning."""
    for retain in (False, True):
        one = setup(retain_events=retain)
        one.call("app.add", 1, 2)
        one.last.finish(success(3))
        retained = [topic for topic, _, options in one.session.published if options["retain"]]
        assert retained == ([f"celery_task.{UUID(one.last.task_id).hex}"] if retain else [])
    assert [line for line in said if "retain_events" in line] == [
        "'retain_events' is on: the router keeps an event of each task, about 2 KB, until it stops"
    ]


@pytest.mark.parametrize("disclosed", [True, False])
def test_events_for_the_caller_alone(disclosed, setup):
    """Only the caller's session is eligible. Without a disclosed caller, nothing is published."""
    one = setup(event_audience="caller", retain_events=True)
    answer = one.call("app.add", 1, 2, caller=7 if disclosed else None)
    one.last.update("PROGRESS", 1)
    one.last.finish(failure(ValueError("bad")))
    assert {tuple(options["eligible"]) for _, _, options in one.session.published} == (
        {(7,)} if disclosed else set()
    )
    # The router would keep each restricted event for ever, so only the last is retained.
    retained = [payload["state"] for _, payload, options in one.session.published if options["retain"]]
    assert retained == (["FAILURE"] if disclosed else [])
    assert error_of(answer).error == "celery.error.task_failed"


def test_a_worker_can_be_faster_than_the_broker(setup):
    """A state that overtakes the broker's confirmation confirms that the task was sent."""
    one = setup(events=True)
    answer = one.call("app.add", 1, 2)
    one.last.finish(failure(ValueError("bad")))
    assert one.session.topics() == ["app.add.sent", "app.add.failed"]
    assert error_of(answer).error == "celery.error.task_failed"
    one.session.published.clear()
    one.call("app.add", 1, 2)
    one.last.update("PROGRESS", 1)
    one.last.mark_published()
    one.last.finish(success(1))
    assert one.session.topics() == ["app.add.sent", "app.add.progress", "app.add.succeeded"]


def test_only_so_many_ends_are_kept(setup):
    """Without a session, the latest 1000 final events wait for the next one."""
    one = setup(max_in_flight=2000)
    one.bridge.detach(one.session)
    for number in range(1001):
        one.call("app.add", 1, 2)
        one.last.finish(success(number))
    one.bridge.attach(one.session)
    assert len(one.session.topics()) == 1000
    assert one.session.published[0][1]["task_id"] == one.client.calls[1].task_id
