"""A bridge, and the leader among bridges, reads Celery's event stream."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from autobahn.wamp.exception import ApplicationError
from celery.utils import uuid
from celery.utils.time import utcoffset

from tests.unit.wamp.fakes import FakeSession, success
from twistedcelery import Disconnected
from twistedcelery.wamp.config import Configuration
from twistedcelery.wamp.events.celery_events import observe
from twistedcelery.wamp.events.worker_topics import MIN_SILENCE
from twistedcelery.wamp.task_ids import TaskIds

FOREIGN = "11111111-1111-4111-8111-111111111111"


def leader(setup: Any, **extra: Any) -> tuple[Any, Any]:
    """A bridge that leads, with its stream."""
    one = setup(**extra)
    stream = one.lead()
    answer_names(one)
    return one, stream


def answer_names(one: Any, **answers: Any) -> None:
    """The workers' replies about the tasks that they have."""
    for name, _, _, options, answer in one.client.control.sent:
        if options is not None and not answer.called:
            answer.callback(answers.get(name))


def test_a_task_of_somebody_else(setup):
    """The leader publishes it like a bridge's own, on both topics, with the worker's time."""
    one, stream = leader(setup, events=True)
    stream.send("task-received", FOREIGN, name="app.add", args="(1, 2)", kwargs="{}")
    stream.send("task-started", FOREIGN)
    stream.send("task-succeeded", FOREIGN, result="3", runtime=0.5)
    common = {"task_id": FOREIGN, "task": "app.add", "timestamp": 500.0}
    expected = [
        ("received", {"state": "RECEIVED"}),
        ("started", {"state": "STARTED"}),
        ("succeeded", {"state": "SUCCESS", "runtime": 0.5}),
    ]
    published = iter(one.session.published)
    for kind, payload in expected:
        assert next(published) == (
            f"celery.app.add.{kind}",
            {**common, **payload},
            {"acknowledge": False, "retain": False},
        )
        topic, same, options = next(published)
        assert (topic, same) == (f"celery_task.{UUID(FOREIGN).hex}", {**common, **payload})
        assert not options["retain"]
    assert next(published, None) is None


def test_what_the_configuration_hides(setup):
    """Tasks that are not exposed, and events that are not configured, are not published."""
    one, stream = leader(setup, exclude=["secret.*"])
    for name in ("secret.task", "app.add"):
        task_id = uuid()
        stream.send("task-received", task_id, name=name)
        stream.send("task-succeeded", task_id)
    assert one.session.topics() == ["app.add.succeeded"]


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ({"event_audience": "caller"}, "worker.#"),
        ({"foreign_events": False}, "worker.#"),
        ({"events": False}, "worker.#"),
        ({"worker_events": False}, "task.#"),
        ({}, "#"),
    ],
)
def test_what_the_leader_reads(extra, key, setup):
    """The leader subscribes to no more than it publishes."""
    one, stream = leader(setup, **extra)
    assert stream.options == {"routing_key": key}
    stream.send("task-received", FOREIGN, name="app.add")
    stream.send("task-succeeded", FOREIGN)
    assert bool(one.session.topics()) == (key != "worker.#")


def test_a_bridge_with_nothing_to_lead(setup):
    """It does not try to become the leader, and reads no events."""
    one = setup(events=False, worker_events=False)
    assert one.session.requests == []
    assert one.client.streams == []


def test_the_tasks_of_other_bridges(setup):
    """The bridges that sent them publish them. Bridges of another prefix or realm do not count."""
    one, stream = leader(setup)
    for task_id in (TaskIds("realm1", "celery").new(), TaskIds("realm1", "x").new()):
        stream.send("task-received", task_id, name="app.add")
        stream.send("task-succeeded", task_id)
    ((_, payload, _),) = [each for each in one.session.published if each[0].startswith("celery.")]
    assert payload["task_id"] == task_id


def test_a_leader_that_is_replaced(setup):
    """It stops publishing foreign tasks at once. The next leader opens a stream of its own."""
    one, stream = leader(setup)
    stream.send("task-received", FOREIGN, name="app.add")
    stream.send("task-progress", FOREIGN, step=1)
    stream.send("task-progress", FOREIGN, step=2)
    one.bridge.drain(one.session)
    stream.send("task-succeeded", FOREIGN)
    stream.send("worker-heartbeat", active=1)
    one.clock.advance(60)
    assert one.session.topics() == ["app.add.progress"]
    assert one.session.topics("celery_admin.") == []
    assert stream.closed
    one.bridge.detach(one.session)
    again = FakeSession()
    one.bridge.attach(again)
    again.requests.pop()[2].callback(None)
    later = one.client.streams[-1]
    assert later is not stream
    later.connect()
    answer_names(one)
    stream.send("task-succeeded", FOREIGN)
    later.send("task-received", FOREIGN, name="app.add")
    later.send("task-succeeded", FOREIGN)
    assert again.topics() == ["app.add.succeeded"]


def test_a_session_that_is_lost(setup):
    """Final events of foreign tasks are not kept: the next leader may publish them."""
    one, stream = leader(setup)
    stream.send("task-received", FOREIGN, name="app.add")
    one.session.attached = False
    stream.send("task-succeeded", FOREIGN)
    one.bridge.detach(one.session)
    one.session.attached = True
    one.bridge.attach(one.session)
    assert one.session.topics() == []


def test_tasks_that_run_already(setup):
    """A new leader asks workers for the names of their tasks, and misses none of these tasks' events."""
    one = setup()
    stream = one.lead()
    ids = [uuid() for _ in range(4)]
    for task_id in ids:
        stream.send("task-succeeded", task_id)
    assert one.session.topics() == []
    answer_names(
        one,
        active={"w1": [{"id": ids[0], "name": "app.add"}]},
        reserved={"w1": [], "w2": [{"id": ids[1], "name": "app.bound"}]},
        scheduled={"w2": [{"eta": "later", "request": {"id": ids[2], "name": "app.untyped"}}]},
    )
    assert one.session.topics() == ["app.add.succeeded", "app.bound.succeeded", "app.untyped.succeeded"]
    stream.send("task-failed", ids[3], exception="ValueError('x')")
    assert len(one.session.topics()) == 3


def test_workers_that_answer_nonsense(setup, said):
    """Later events do not depend on these replies."""
    one = setup()
    stream = one.lead()
    answer_names(one, active={"w1": [{"no": "id"}]})
    assert "cannot be read" in said[-1]
    stream.send("task-received", FOREIGN, name="app.add")
    stream.send("task-succeeded", FOREIGN)
    assert one.session.topics() == ["app.add.succeeded"]


def test_a_task_that_replaces_itself(setup):
    """The id continues under another task's name, and so do its events."""
    one, stream = leader(setup, events=["received", "succeeded"])
    stream.send("task-received", FOREIGN, name="app.add")
    stream.send("task-received", FOREIGN, name="app.bound")
    stream.send("task-succeeded", FOREIGN)
    assert one.session.topics() == ["app.add.received", "app.bound.received", "app.bound.succeeded"]


def test_what_only_the_stream_tells_of_own_tasks(setup):
    """A bridge reads them from the stream whether it leads or not, with one stream only."""
    one = setup(events=["sent", "received", "succeeded"])
    (own,) = one.client.streams
    assert own.options == {"routing_key": "task.#"}
    own.connect()
    one.call("app.add", 1, 2)
    own.send("task-received", one.last.task_id, name="app.add")
    own.send("task-started", one.last.task_id)
    one.last.finish(success(3))
    own.send("task-received", FOREIGN, name="app.add")
    assert one.session.topics() == ["app.add.sent", "app.add.received", "app.add.succeeded"]
    stream = one.lead()
    assert own.closed
    one.bridge.drain(one.session)
    assert not stream.closed
    one.call("app.add", 1, 2)
    stream.send("task-received", one.last.task_id, name="app.add")
    stream.send("task-received", FOREIGN, name="app.add")
    assert one.session.topics()[3:] == ["app.add.sent", "app.add.received"]


def test_tasks_that_keep_their_results(setup):
    """Only Celery's event stream reports them, so the leader publishes them."""
    one, stream = leader(setup, events=True)
    one.call("app.untyped", 1)
    one.last.finish_joined(None)
    assert one.session.topics() == []
    stream.send("task-received", one.last.task_id, name="app.untyped")
    stream.send("task-succeeded", one.last.task_id)
    assert one.session.topics() == ["app.untyped.received", "app.untyped.succeeded"]


def test_workers_are_asked_to_send_events(setup):
    """Each is asked at its first heartbeat, when it certainly listens."""
    one, stream = leader(setup, enable_events=True, worker_events=False, events=["succeeded"])
    for kind in ("online", "heartbeat", "heartbeat", "online", "heartbeat"):
        stream.send(f"worker-{kind}", hostname="w2")
    asked = [args[2] for args in one.client.control.sent if args[0] == "enable_events"]
    assert asked == [{"destination": ["w2"]}] * 2
    assert one.session.topics("celery_admin.") == []


def test_a_worker_that_could_not_be_asked(setup, said):
    """It is asked again, and the reason is logged."""
    one, stream = leader(setup, enable_events=True)
    stream.send("worker-heartbeat")
    one.client.control.sent[-1][-1].errback(Disconnected("no broker"))
    assert said[-1] == "the worker w1 could not be asked for events: no broker"
    stream.send("worker-heartbeat")
    assert [args[0] for args in one.client.control.sent[-2:]] == ["enable_events"] * 2


def test_a_broker_that_has_no_events(setup, said):
    """The bridge works without them, and logs that."""
    one = setup()

    def refuse(*_: Any, **__: Any) -> None:
        raise Disconnected("gone")

    one.client.events = refuse
    one.session.requests.pop(0)[2].callback(None)
    assert said[-1] == "Celery's events cannot be read: gone"
    one.bridge.drain(one.session)


WORKER = {"freq": 2.0, "active": 1, "processed": 7, "loadavg": [0.1, 0.2, 0.3], "pid": 9}
SOFTWARE = {"sw_ident": "py-celery", "sw_ver": "5.7.0", "sw_sys": "Linux"}


def workers(one: Any) -> list[tuple[str, dict[str, Any]]]:
    prefix = "celery_admin.worker."
    return [
        (topic.removeprefix(prefix), payload)
        for topic, payload, _ in one.session.published
        if topic.startswith(prefix)
    ]


def test_workers_come_and_go(setup):
    """Each of a worker's events is published, with its fields."""
    one, stream = leader(setup)
    for kind in ("online", "heartbeat", "offline"):
        stream.send(f"worker-{kind}", **WORKER, **SOFTWARE, clock=3)
    expected = {"hostname": "w1", "timestamp": 500.0, **WORKER, **SOFTWARE}
    assert workers(one) == [
        ("online", expected),
        ("heartbeat", expected),
        ("offline", {**expected, "reason": "left"}),
    ]
    one.clock.advance(600)
    assert len(workers(one)) == 3


def test_the_log_has_the_workers(setup, said):
    """A worker's first event and its end are logged, each once."""
    _, stream = leader(setup)
    said.clear()
    for hostname in ("w1", "w1", "w2"):
        stream.send("worker-heartbeat", hostname=hostname, **WORKER)
    stream.send("worker-offline", hostname="w1", **WORKER)
    stream.send("worker-offline", hostname="w1", **WORKER)
    assert said == [
        "the worker 'w1' is online; 1 online",
        "the worker 'w2' is online; 2 online",
        "the worker 'w1' is offline: it left; 1 online",
    ]


def test_a_worker_that_falls_silent(setup):
    """It is offline after three missed heartbeats, and at least ten seconds. It may come back."""
    one, stream = leader(setup)
    stream.send("worker-heartbeat", **WORKER)
    stream.send("worker-heartbeat", hostname="slow", **{**WORKER, "freq": 10.0})
    one.clock.pump([1] * 9)
    assert len(workers(one)) == 2
    one.clock.pump([1] * 20)
    assert workers(one)[2:] == [
        ("offline", {"hostname": "w1", "timestamp": 1000.0 + MIN_SILENCE, "reason": "silent"}),
    ]
    assert len(workers(one)) == 3
    stream.send("worker-heartbeat", **WORKER)
    assert [kind for kind, _ in workers(one)[3:]] == ["online", "heartbeat"]


def test_nobody_is_silent_whom_nobody_can_hear(setup):
    """While the stream is not connected, no worker counts as offline. Then each has its full time again."""
    one, stream = leader(setup)
    stream.send("worker-heartbeat", **WORKER)
    stream.connected = False
    one.clock.pump([1] * 60)
    stream.connected = True
    one.clock.pump([1] * 9)
    assert len(workers(one)) == 1
    one.clock.pump([1] * 3)
    assert [kind for kind, _ in workers(one)] == ["heartbeat", "offline"]


def test_a_worker_without_heartbeats(setup):
    """A worker that only answers queries never counts as silent."""
    one, stream = leader(setup)
    stream.send("worker-heartbeat", freq=5, **SOFTWARE)
    one.clock.pump([1] * 60)
    assert [kind for kind, _ in workers(one)] == ["heartbeat"]


def test_a_role_that_may_not_lead(setup, said):
    """That is logged, and the bridge serves its callers."""
    one = setup()
    one.session.refuse(ApplicationError.NOT_AUTHORIZED)
    assert said[-1] == "celery_admin.leader could not be registered: wamp.error.not_authorized"
    one.call("app.add", 1, 2)
    one.last.finish(success(3))
    assert one.session.topics() == ["app.add.succeeded"]


def observed(type_: str, config: Any = None, **fields: Any) -> Any:
    event = {"type": type_, "uuid": FOREIGN, "timestamp": 500.0, "local_received": 501.0, **fields}
    return observe(event, Configuration.parse({"app": "app", **(config or {})}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ValueError('no luck')", ("ValueError", "no luck")),
        ('KeyError("it\'s")', ("KeyError", "it's")),
        ("shop.errors.OutOfStock('apples', 3)", ("OutOfStock", "('apples', 3)")),
        ("ValueError()", ("ValueError", "")),
        ("ValueError(<object at 0x1>)", ("ValueError", "<object at 0x1>")),
        ("ValueError(Decimal('1'))", ("ValueError", "Decimal('1')")),
        ("Error(code=3)", ("Error", "code=3")),
        ("<my own words>", ("Exception", "<my own words>")),
        ("ValueError('" + "x" * 5000 + "')", ("ValueError", "'" + "x" * 5000 + "'")),
        ("Retry(Retry(...), ConnectionError('down'), 0.1)", ("ConnectionError", "down")),
        ("Retry(Retry(...), None, 180)", ("Retry", "")),
        (r"ValueError('\d')", ("ValueError", r"\d")),
        ("None", ("Retry", "")),
        (None, ("Retry", "")),
        ("\0", ("Exception", r"\x00")),
        ("f(" * 1000, ("Exception", "f(" * 1000)),
        ([1], ("Exception", "[1]")),
    ],
)
def test_exceptions_in_words(text, expected):
    """Type and message are parsed from any ``repr()``."""
    details = observed("task-failed", exception=text).details
    assert (details["exc_type"], details["exc_message"]) == expected


def test_times_of_other_time_zones():
    """A timestamp that Celery has moved to the local time zone is moved back."""
    here = utcoffset()
    moved = 500.0 - (5 - here) * 3600
    assert observed("task-started", timestamp=moved, utcoffset=5).timestamp == pytest.approx(500.0)
    assert observed("task-started", timestamp="x").timestamp == 501.0
    assert observed("task-started", timestamp=10**400).timestamp == 501.0


def test_what_may_be_published_of_somebodys_task():
    """Arguments and results are Celery's shortened text, under names of their own."""
    config = {"publish_arguments": True, "publish_results": True, "tracebacks": True}
    received = observed("task-received", config, name="app.add", args="(1, 2)", kwargs="{}")
    assert received.details == {"argsrepr": "(1, 2)", "kwargsrepr": "{}"}
    assert observed("task-succeeded", config, result="3").details == {"resultrepr": "3"}
    failed = observed("task-failed", config, exception="E()", traceback="File secret.py")
    assert failed.details["traceback"] == "File secret.py"
    assert observed("task-received", name="app.add", args="(1, 2)").details == {}


def test_progress_that_a_task_tells_of_itself():
    """A task's own event ``task-progress`` is progress, with its fields as ``meta``."""
    progress = observed("task-progress", current=3, total=10, hostname="w1", pid=1, clock=2, utcoffset=0)
    assert (progress.kind.name, progress.kind.state) == ("progress", "PROGRESS")
    assert progress.details == {"meta": {"current": 3, "total": 10}}


@pytest.mark.parametrize(
    "fields", [{"type": "task-custom"}, {"uuid": None}, {"uuid": ""}, {"uuid": 3}, {"type": "x"}]
)
def test_what_is_no_event_of_a_task(fields):
    """Such an event is ignored."""
    assert observed(**{"type_": fields.pop("type", "task-started"), **fields}) is None


@pytest.mark.parametrize("value", [float("nan"), 2**70, "\0x", "\ud800"])
def test_what_wamp_cannot_carry(value, setup, said):
    """Such an event of a foreign task is dropped, and the next one is published."""
    one, stream = leader(setup)
    stream.send("task-received", FOREIGN, name="app.add")
    stream.send("task-progress", FOREIGN, value=value)
    assert one.session.topics() == []
    stream.send("worker-heartbeat", pid=value)
    stream.send("task-succeeded", FOREIGN, runtime=float("nan"))
    assert one.session.topics() == ["app.add.succeeded"]
    assert len([line for line in said if "cannot be published" in line]) == 2
