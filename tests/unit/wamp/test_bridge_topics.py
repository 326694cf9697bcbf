"""The events of a bridge that comes and goes."""

from __future__ import annotations

import pytest
from autobahn.wamp.exception import ApplicationError, TransportLost
from twisted.python.failure import Failure

from tests.unit.wamp.fakes import FakeSession
from twistedcelery.wamp.router.bridge_topics import BridgeTopics
from twistedcelery.wamp.uris import Uris

DESCRIPTION = {"id": 7, "host": "here", "pid": 8, "since": 9.0}
ONLINE, OFFLINE = "celery_admin.bridge.online", "celery_admin.bridge.offline"


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture
def topics(session):
    return BridgeTopics(session, Uris("celery"), DESCRIPTION)


def events(session):
    return [(topic, payload) for topic, payload, _ in session.published]


def test_the_testament_comes_first(session, topics):
    """Every online event is followed by an offline event, so the testament is left first."""
    topics.publish_online()
    ((procedure, args, answer),) = session.calls
    assert procedure == "wamp.session.add_testament"
    assert args == (OFFLINE, [], {**DESCRIPTION, "reason": "lost"})
    assert session.published == []
    answer.callback(1)
    assert events(session) == [(ONLINE, DESCRIPTION)]


def test_leaving_in_good_order(session, topics):
    """The testament is withdrawn before the bridge publishes that it leaves."""
    retracted = topics.publish_offline()
    ((procedure, args, answer),) = session.calls
    assert (procedure, args) == ("wamp.session.flush_testaments", ())
    assert not retracted.called
    answer.callback(1)
    assert retracted.called
    assert events(session) == [(OFFLINE, {**DESCRIPTION, "reason": "stopped"})]


def test_a_router_without_testaments(session, topics, said):
    """A bridge that may leave no testament logs it, and is online all the same."""
    topics.publish_online()
    session.calls.pop()[2].errback(Failure(ApplicationError("wamp.error.not_authorized")))
    (line,) = said
    assert line.startswith("the router refused the bridge's testament: wamp.error.not_authorized. ")
    topics.publish_offline()
    session.calls.pop()[2].errback(Failure(ApplicationError("wamp.error.not_authorized")))
    assert [topic for topic, _ in events(session)] == [ONLINE, OFFLINE]


@pytest.mark.parametrize("noticed", [True, False])
def test_a_session_that_is_lost_meanwhile(noticed, session, topics, said):
    """The router then publishes the testament."""

    def lost(*_, **__):
        raise TransportLost

    session.publish = lost
    session.attached = not noticed
    for start in (topics.publish_online, topics.publish_offline):
        start()
        session.calls.pop()[2].errback(Failure(TransportLost()))
    assert len(said) == (0 if noticed else 1)
