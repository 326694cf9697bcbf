"""Tasks that workers announce become procedures, and vanish with the workers."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.unit.wamp.conftest import error_of, result_of
from tests.unit.wamp.fakes import call_details, success
from tests.unit.wamp.test_triggers import event
from twistedcelery import BrokerUnavailable, ConfigurationError, InvalidCall
from twistedcelery.wamp.tasks.announced import AnnouncedTasks, parse_registered
from twistedcelery.wamp.tasks.discovery import ASK_INTERVAL, FAREWELL, GRACE

TASK = " [ignore_result=False]"


class Workers:
    """The workers of a fake client, as a bridge sees them."""

    def __init__(self, one: Any) -> None:
        self._client = one.client
        (self.stream,) = one.client.streams
        self.clock = one.clock

    @property
    def asked(self) -> list[Any]:
        """The workers that each query was sent to."""
        return [options["destination"] for _, _, _, options, _ in self._client.control.sent]

    def reply(self, worker: str, *tasks: str) -> None:
        """A worker replies to the latest query."""
        name, args, _, options, _ = self._client.control.sent[-1]
        assert (name, args) == ("registered", ("ignore_result",))
        options["callback"]({worker: [text if "[" in text else text + TASK for text in tasks]})

    def leave(self, worker: str) -> None:
        """A worker goes offline for good."""
        self.stream.tell("worker-offline", worker)
        self.clock.advance(FAREWELL)

    def pass_time(self, seconds: float, heartbeats: tuple[str, ...] = ()) -> None:
        """Time passes, in which some workers send heartbeats."""
        for _ in range(int(seconds)):
            for worker in heartbeats:
                self.stream.tell("worker-heartbeat", worker)
            self.clock.advance(1)


@pytest.fixture
def start(setup):
    """``start(**extra)``: a bridge that is connected and has asked its workers, and those workers."""

    def started(discover: str = "workers", **extra: Any) -> tuple[Any, Workers]:
        one = setup(discover=discover, **extra)
        workers = Workers(one)
        workers.stream.connect()
        assert workers.asked == [None]
        return one, workers

    return started


def tasks_of(one: Any) -> list[str]:
    """The tasks that have procedures."""
    return sorted(uri.removeprefix("celery.") for uri in one.bridge.procedures if uri.startswith("celery."))


@pytest.mark.parametrize(
    ("reply", "tasks"),
    [
        (["a.b [ignore_result=True]", "c [ignore_result=False]"], {"a.b": True, "c": False}),
        (["bare"], {"bare": False}),
        (["x [y] z [ignore_result=True]", " ["], {"x [y] z": True, " [": False}),
        (["[ignore_result=True]"], {"[ignore_result=True]": False}),
        (["new\nline [ignore_result=True]"], {"new\nline": True}),
        (["a [ignore_result=maybe]"], {"a [ignore_result=maybe]": False}),
        ([1, None, "", {"a": 1}], {}),
        ({"error": "ValueError()"}, None),
        (None, None),
    ],
)
def test_replies_of_workers(reply, tasks):
    """Names may contain anything. Entries that are no names are skipped."""
    assert parse_registered(reply) == tasks


def test_tasks_of_several_workers():
    """A task exists while any worker has it. It ignores its result if all of them say so."""
    changes: list[Any] = []
    announced = AnnouncedTasks(lambda name, ignores: changes.append((name, ignores)))
    announced.put("one", {"a": True, "b": False})
    announced.put("two", {"a": False, "c": False})
    assert changes == [("a", True), ("b", False), ("a", False), ("c", False)]
    changes.clear()
    announced.put("one", {"a": True, "b": False})
    assert changes == []
    announced.put("one", {"b": True})
    announced.remove("two")
    announced.remove("nobody")
    assert sorted(changes) == [("a", None), ("b", True), ("c", None)]
    assert len(announced) == 1


def test_what_workers_announce_is_callable(start):
    """Tasks of workers are called by name. Their arguments are not checked."""
    one, workers = start()
    assert tasks_of(one) == []
    assert error_of(one.call("celery_api.submit", "app.add", [1, 2])).error == "celery.error.unknown_task"
    workers.reply("w1", "theirs.add", "theirs.fire [ignore_result=True]")
    assert tasks_of(one) == ["theirs.add", "theirs.fire"]
    answer = one.call("theirs.add", 1, 2, 3, anything=4)
    one.call("theirs.fire")
    assert [(name, args, kwargs) for name, args, kwargs, _ in one.client.sent] == [
        ("theirs.add", [1, 2, 3], {"anything": 4}),
        ("theirs.fire", [], {}),
    ]
    assert [options.get("ignore_result") for *_, options in one.client.sent] == [None, True]
    one.client.calls[0].finish(success(10))
    assert result_of(answer) == 10
    described = {"name": "theirs.add", "uri": "celery.theirs.add", "signature": None, "doc": None}
    assert described in result_of(one.call("celery_api.tasks"))


def test_the_application_knows_better(start):
    """With both sources, the application's tasks do not change with the workers."""
    one, workers = start("both")
    own = tasks_of(one)
    workers.reply("w1", "app.add", "theirs")
    assert tasks_of(one) == sorted([*own, "theirs"])
    assert error_of(one.call("app.add")).error == "celery.error.invalid_arguments"
    workers.leave("w1")
    assert tasks_of(one) == own


def test_include_and_exclude(start):
    """They also apply to what workers announce. Celery's own tasks are excluded."""
    one, workers = start(include=["theirs.*", "celery.*"], exclude=["celery.*", "*.secret"])
    workers.reply("w1", "theirs.a", "theirs.secret", "other", "celery.backend_cleanup")
    assert tasks_of(one) == ["theirs.a"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("white space", "it contains white space"),
        ("a..b", "it has an empty component (a leading, trailing or double '.')"),
        ("#", "it contains '#'"),
        ("x" * 2000, "it is longer than 1024 bytes"),
    ],
)
def test_names_that_make_no_uri(name, reason, start):
    """Such tasks are listed with a reason, can be submitted, and vanish with their worker."""
    one, workers = start()
    workers.reply("w1", name, "fine", "error.task_failed")
    assert tasks_of(one) == ["error.task_failed", "fine"]
    listed = {each["name"]: each for each in result_of(one.call("celery_api.tasks"))}
    assert (listed[name]["uri"], listed[name]["reason"]) == (None, reason)
    one.call("celery_api.submit", name)
    assert one.client.sent[0][0] == name
    workers.leave("w1")
    assert tasks_of(one) == []
    assert error_of(one.call("celery_api.submit", name)).error == "celery.error.unknown_task"


@pytest.mark.parametrize("name", ["\ud800", "\0binary"])
def test_names_that_nobody_can_say(name, start):
    """Names that WAMP cannot carry are left out of the list."""
    one, workers = start()
    workers.reply("w1", name, "fine")
    assert [each["name"] for each in result_of(one.call("celery_api.tasks"))] == ["fine"]


def test_a_worker_comes_online(start):
    """It is asked a moment later, together with others, and again until it replies."""
    one, workers = start()
    workers.stream.tell("worker-online", "w1")
    workers.stream.tell("worker-online", "w2")
    workers.clock.advance(0.4)
    assert workers.asked == [None]
    workers.clock.advance(0.2)
    assert workers.asked == [None, ["w1", "w2"]]
    workers.reply("w1", "a")
    workers.pass_time(4, ("w1", "w2"))
    assert len(workers.asked) == 2
    workers.pass_time(3, ("w1", "w2"))
    assert workers.asked[2:] == [["w2"]]
    workers.reply("w2", "b")
    workers.pass_time(12, ("w1", "w2"))
    assert len(workers.asked) == 3
    assert tasks_of(one) == ["a", "b"]


def test_a_worker_starts_anew(start):
    """Its old tasks are replaced once it has replied."""
    one, workers = start()
    workers.reply("w1", "a", "b")
    workers.stream.tell("worker-online", "w1")
    assert tasks_of(one) == ["a", "b"]
    workers.clock.advance(1)
    assert workers.asked == [None, ["w1"]]
    workers.reply("w1", "b", "c")
    assert tasks_of(one) == ["b", "c"]


def test_a_worker_goes(start):
    """Tasks that no other worker has vanish. Those in flight go on."""
    one, workers = start()
    workers.reply("w1", "a", "b")
    workers.reply("w2", "b")
    running, handler = one.call("a"), one.bridge.procedures["celery.a"]
    workers.leave("w1")
    assert tasks_of(one) == ["b"]
    # A call that the router had passed on before it heard.
    late = one.open.endpoint(handler)(details=call_details())
    assert error_of(late).error == "celery.error.unknown_task"
    one.last.finish(success(1))
    assert result_of(running) == 1


def test_a_late_goodbye(start):
    """A worker that lost the broker reports itself offline just before it is online again: it stays."""
    one, workers = start()
    workers.reply("w1", "a")
    workers.reply("w2", "b")
    for worker in ("w1", "w2", "w2"):
        workers.stream.tell("worker-offline", worker)
    workers.clock.advance(FAREWELL - 1)
    workers.stream.tell("worker-online", "w1")
    workers.reply("w2", "b")
    workers.clock.advance(2)
    assert tasks_of(one) == ["a"]


def test_the_log_has_the_tasks(start, said):
    """What a worker brings and takes away is one line, however much it is."""
    _, workers = start()
    said.clear()
    workers.reply("w1", *"edcba")
    workers.reply("w2", "a", "f")
    workers.reply("w2", "a", "f")
    workers.leave("w1")
    assert said == [
        "the worker 'w1' has new tasks: 'a', 'b', 'c' and 2 more",
        "the worker 'w2' has new tasks: 'f'",
        "the worker 'w1' was the last one with these tasks: 'b', 'c', 'd' and 1 more",
    ]


def test_a_silent_worker(start, said):
    """A worker is removed after a minute without a heartbeat or a reply."""
    one, workers = start()
    workers.reply("w1", "a")
    workers.reply("w2", "b")
    workers.pass_time(GRACE - 5, ("w1",))
    assert tasks_of(one) == ["a", "b"]
    workers.pass_time(15, ("w1",))
    assert tasks_of(one) == ["a"]
    assert any("the worker w2 has been silent for 60 s" in line for line in said)
    for _ in range(5):
        workers.pass_time(30)
        workers.reply("w1", "a")
    assert tasks_of(one) == ["a"]
    assert workers.asked.count(None) >= 150 / ASK_INTERVAL


def test_a_lost_broker_connection(start):
    """It removes no task, however long it lasts. Afterwards all workers are asked at once."""
    one, workers = start()
    workers.reply("w1", "a")
    workers.stream.connected = False
    workers.pass_time(300)
    assert tasks_of(one) == ["a"]
    assert workers.asked == [None]
    workers.stream.connect()
    assert workers.asked == [None, None]
    workers.pass_time(GRACE - 5)
    assert tasks_of(one) == ["a"]
    workers.pass_time(15)
    assert tasks_of(one) == []


@pytest.mark.parametrize("hostname", [None, 7, ["w1"], {}])
def test_odd_events(hostname, start):
    """An event with an odd hostname is ignored."""
    one, workers = start()
    for said in ("worker-online", "worker-heartbeat", "worker-offline"):
        workers.stream.tell(said, hostname)
    workers.clock.advance(1)
    assert workers.asked == [None]
    workers.reply("w1", "a")
    assert tasks_of(one) == ["a"]


def test_workers_cannot_be_asked(start, said):
    """The failure is logged once, and the query repeated."""
    one, workers = start()
    for _ in range(3):
        one.client.control.sent[-1][4].errback(Failure(BrokerUnavailable("no broker")))
        workers.pass_time(35)
    assert len(workers.asked) == 4
    assert [line for line in said if "no broker" in line] == [
        "workers could not be asked for their tasks: no broker"
    ]


def test_there_can_be_no_events(setup, said):
    """If the library refuses, that is logged, and the bridge serves the application's tasks."""
    one = setup(discover="both")
    one.bridge._discovery._stream = None

    def refuse(*_: Any, **__: Any) -> Any:
        raise InvalidCall("no")

    one.client.events = refuse
    one.bridge.attach(one.session)
    assert "the workers' tasks cannot be discovered: no" in said
    assert not one.call("app.add", 1, 2).called


def test_stopping(start):
    """A bridge that stops leaves no timer, and ignores later events."""
    one, workers = start()
    workers.reply("w1", "a")
    workers.stream.tell("worker-online", "w2")
    workers.stream.tell("worker-offline", "w1")
    one.bridge.stop()
    workers.stream.tell("worker-online", "w3")
    workers.stream.tell("worker-offline", "w1")
    workers.reply("w4", "b")
    assert one.clock.getDelayedCalls() == []
    assert tasks_of(one) == ["a"]


def test_a_trigger_of_a_task_that_is_not_there_yet(start, said):
    """The trigger works while a worker has the task. Without one, an event only causes a warning."""
    trigger = {"topic": "com.example.wanted", "task": "theirs"}
    one, workers = start(triggers=[trigger])
    one.session.requests.pop()[2].callback(None)
    listener = one.session.listeners["com.example.wanted"]
    listener([1], {}, event("com.example.wanted"))
    assert one.client.sent == []
    assert any("submitted nothing: no worker has the task" in line for line in said)
    workers.reply("w1", "theirs")
    listener([2], {}, event("com.example.wanted"))
    assert [sent[:2] for sent in one.client.sent] == [("theirs", [2])]


def test_a_trigger_of_a_task_that_cannot_come(setup):
    """Without discovery, a trigger of an unknown task is a configuration error."""
    with pytest.raises(ConfigurationError, match="the name of a task that this bridge exposes"):
        setup(triggers=[{"topic": "com.example.wanted", "task": "theirs"}])


def test_the_stream_is_that_of_workers_alone(start):
    """It does not subscribe to task events: there may be thousands a second."""
    _, workers = start()
    assert workers.stream.options == {"routing_key": "worker.#"}


def test_changes_reach_the_session(start):
    """New tasks are registered in the current session, and tasks that vanish are unregistered."""
    from twistedcelery.wamp.router.registrations import Registrations

    one, workers = start()
    withdrawn: list[Any] = []

    def withdraw(registration: Any) -> Deferred[Any]:
        withdrawn.append(registration)
        answer: Deferred[Any] = Deferred()
        answer.callback(None)
        return answer

    one.session.withdraw = withdraw
    registrations = Registrations(one.session, one.bridge.procedures, "roundrobin")
    registrations.start()
    while one.session.requests:
        one.session.requests.pop()[2].callback(None)
    workers.reply("w1", "a")
    uri, invoke, answer = one.session.requests.pop()
    assert (uri, invoke) == ("celery.a", "roundrobin")
    workers.leave("w1")
    assert withdrawn == []
    answer.callback("the registration")
    assert withdrawn == ["the registration"]
