"""Leadership, and the tasks that the leader submits at WAMP events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.request import Subscription
from autobahn.wamp.types import EventDetails
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.unit.wamp.fakes import FakeSession
from twistedcelery import ConfigurationError
from twistedcelery.wamp.router.leadership import RETRY_INTERVAL, Leadership
from twistedcelery.wamp.tasks.triggers import LOG_INTERVAL

URI = "celery_admin.leader"


class Competitor:
    """A bridge that tries to become the leader."""

    def __init__(self) -> None:
        self.clock, self.session = Clock(), FakeSession()
        self.elected: list[FakeSession] = []
        self.deposed = 0
        self.leadership = Leadership(
            URI, lambda _: None, self.clock, self.elected.append, self._count_deposed
        )
        self.leadership.attach(self.session)

    def _count_deposed(self) -> None:
        self.deposed += 1


def test_the_first_leads():
    """The bridge that gets the procedure leads, on the session that holds it."""
    one = Competitor()
    ((uri, invoke, answer),) = one.session.requests
    assert (uri, invoke, one.elected) == (URI, "single", [])
    answer.callback(None)
    assert one.elected == [one.session]
    assert not one.clock.getDelayedCalls()


def test_who_does_not_lead_tries_again(said):
    """It tries for ever, without log entries, at a fixed interval."""
    one = Competitor()
    for _ in range(3):
        one.session.refuse(ApplicationError.PROCEDURE_ALREADY_EXISTS)
        assert one.session.requests == []
        one.clock.advance(RETRY_INTERVAL)
    one.session.requests[0][2].callback(None)
    assert one.elected == [one.session]
    assert [line for line in said if "could not" in line] == []


def test_a_router_that_refuses(said):
    """The reason of a refusal is logged once."""
    one = Competitor()
    for _ in range(3):
        one.session.refuse(ApplicationError.NOT_AUTHORIZED)
        one.clock.advance(RETRY_INTERVAL)
    assert said == [f"{URI} could not be registered: wamp.error.not_authorized"]


def test_a_session_that_ends():
    """A late answer to the old session elects no leader."""
    one = Competitor()
    one.leadership.detach(one.session)
    one.session.attached = False
    one.session.requests[0][2].callback(None)
    assert one.elected == []
    waiting = Competitor()
    waiting.session.refuse(ApplicationError.PROCEDURE_ALREADY_EXISTS)
    waiting.leadership.detach(waiting.session)
    assert not waiting.clock.getDelayedCalls()
    again = FakeSession()
    waiting.leadership.attach(again)
    waiting.leadership.detach(waiting.session)
    again.requests[0][2].callback(None)
    assert waiting.elected == [again]


def test_the_end_of_a_reign():
    """A leader is deposed once: when its session ends, or when another session replaces it."""
    one = Competitor()
    one.session.requests.pop()[2].callback(None)
    assert one.deposed == 0
    one.leadership.detach(one.session)
    one.leadership.detach(one.session)
    assert one.deposed == 1
    replaced = Competitor()
    replaced.session.requests.pop()[2].callback(None)
    replaced.leadership.attach(FakeSession())
    replaced.leadership.detach(replaced.session)
    assert replaced.deposed == 1
    waiting = Competitor()
    waiting.leadership.detach(waiting.session)
    assert waiting.deposed == 0


def event(topic: str, publisher: int | None = 9) -> EventDetails:
    return EventDetails(Subscription(None, 1, None, topic), 2, publisher, "joe", "user", topic)


def leading(setup: Any, trigger: Mapping[str, Any], **extra: Any) -> tuple[Any, FakeSession]:
    """A bridge with one trigger, which leads."""
    one = setup(triggers=[trigger], **extra)
    one.session.requests.pop()[2].callback(None)
    return one, one.session


def test_arguments_that_cannot_be_sent(setup, said):
    """An event with a mark of Celery's, or with too many items, submits nothing; the log says so."""
    one, session = leading(setup, {"topic": "com.x", "task": "app.untyped"}, max_items=10)
    session.listeners["com.x"]([{"__type__": "x", "__value__": 1}], {}, event("com.x"))
    one.clock.advance(LOG_INTERVAL)
    session.listeners["com.x"]([], {"x": [0] * 11}, event("com.x"))
    assert one.client.sent == []
    mark, items = (line for line in said if "submitted nothing" in line)
    assert "args[0] has the keys" in mark
    assert "more than 10 items" in items


def test_an_event_submits_the_task(setup):
    """The event's arguments are the task's, whatever their names. The options come from the configuration."""
    trigger = {"topic": "com.x", "task": "app.add", "options": {"queue": "slow"}}
    one, session = leading(setup, trigger)
    assert [request[:2] for request in session.requests] == [("com.x", "exact")]
    session.listeners["com.x"]([1], {"y": 2}, event("com.x"))
    ((name, args, kwargs, options),) = one.client.sent
    assert (name, args, kwargs) == ("app.add", [1], {"y": 2})
    assert (options["queue"], options["time_limit"]) == ("slow", 60)


def test_only_the_leader_subscribes(setup):
    """A bridge that does not lead subscribes to nothing."""
    one = setup(triggers=[{"topic": "com.x", "task": "app.add"}])
    one.session.refuse(ApplicationError.PROCEDURE_ALREADY_EXISTS)
    assert one.session.listeners == {}


def test_the_bridges_own_topics_trigger_nothing(setup):
    """A pattern that matches them does not make tasks submit tasks."""
    one, session = leading(setup, {"topic": "c", "match": "prefix", "task": "app.add"})
    for topic in ("celery.app.add.succeeded", "celery_task.0a", "celery_admin.worker.online"):
        session.listeners["c"]([1, 2], {}, event(topic))
    assert one.client.sent == []
    session.listeners["c"]([1, 2], {}, event("celeryx"))
    assert len(one.client.sent) == 1


def test_an_event_that_does_not_fit(setup, said):
    """It submits nothing. The log says so, but not for every event."""
    one, session = leading(setup, {"topic": "com.x", "task": "app.add"})
    for _ in range(1000):
        session.listeners["com.x"]([1], {"celery_options": {"countdown": 1}}, event("com.x"))
    assert one.client.sent == []
    lines = [line for line in said if "submitted nothing" in line]
    assert len(lines) == 1
    assert "'app.add' on 'com.x' (exact)" in lines[0]
    one.clock.advance(LOG_INTERVAL)
    assert len([line for line in said if "submitted nothing" in line]) == 2


def test_a_broker_that_does_not_take_the_task(setup, said):
    """A task that the broker did not take is logged."""
    one, session = leading(setup, {"topic": "com.x", "task": "app.add"})
    session.listeners["com.x"]([1, 2], {}, event("com.x"))
    one.last.fail_published(Failure(ConnectionError("no broker")))
    assert "submitted nothing: celery.error.broker_unavailable" in said[-1]


def test_a_subscription_that_is_refused(setup, said):
    """The log names the trigger and the router's reason."""
    _, session = leading(setup, {"topic": "com.x", "task": "app.add"})
    session.refuse(ApplicationError.NOT_AUTHORIZED)
    assert said[-1] == "the trigger 'app.add' on 'com.x' (exact) does not work: wamp.error.not_authorized"


@pytest.mark.parametrize(
    ("trigger", "says"),
    [
        ({"task": "app.ad", "topic": "x"}, "found 'app.ad', accepted is .*exposes; did you mean 'app.add'?"),
        (
            {"task": "app.bound", "topic": "x"},
            "triggers.0..task': found 'app.bound', accepted is the name of a",
        ),
        ({"task": "app.add", "topic": "celery.app.add.succeeded"}, "accepted is a topic outside"),
        ({"task": "app.add", "topic": "celery", "match": "prefix"}, "accepted is a topic outside"),
        ({"task": "app.add", "topic": "celery_task.", "match": "prefix"}, "accepted is a topic outside"),
    ],
)
def test_triggers_that_do_not_fit_the_application(trigger, says, setup):
    """Tasks that are not exposed, and the bridge's own topics, are refused at the start."""
    with pytest.raises(ConfigurationError, match=says):
        setup(triggers=[trigger], exclude=["app.bound"])
