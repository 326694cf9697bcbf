"""Queues that are consumed for long: their bindings are kept alive."""

from __future__ import annotations

import kombu
import pytest

from tests.unit.transports.amqp.fakes import Network
from tests.unit.transports.redis.fakes import FakeLink, redis_app
from twistedcelery.transports.connection import Refused
from twistedcelery.transports.redis.intake import ListIntake
from twistedcelery.transports.redis.queue_reader import QueueReader
from twistedcelery.transports.redis.requests import Requests


class User:
    """Counts."""

    consumed = 0

    def consuming(self):
        self.consumed += 1

    def interrupted(self, reason):
        """It is expected."""


class Scene:
    """A queue that expires, its connection, and the one for requests."""

    def __init__(self):
        self.consuming, self.asking = Network(), Network()
        self.clock = self.asking.clock = self.consuming.clock
        connection = redis_app().connection_for_read()
        queue = kombu.Queue("q", kombu.Exchange("e"), "q", auto_delete=True, expires=10)
        self.user = User()
        self.requests = Requests(self.clock, 10)
        self.requests.use(self.asking.connection(self.requests))
        self.intake = ListIntake(
            self.clock, queue, self.user, lambda: QueueReader(connection, queue), self.requests
        )
        self.intake.use(self.consuming.connection(self.intake))
        self.intake.start(lambda: None)

    def up(self):
        """The queue is declared, and waited for."""
        link = self.consuming.accept(FakeLink(self.clock))
        link.answer(*[b"OK"] * len(link.unanswered))
        assert link.names()[-1] == "BRPOP"
        return link


@pytest.fixture
def scene():
    return Scene()


def test_bindings_are_renewed(scene):
    """Over the connection for requests, since the other one waits for messages."""
    scene.up()
    assert scene.user.consumed == 1
    assert scene.asking.attempts == []
    scene.clock.advance(60)
    link = scene.asking.accept(FakeLink(scene.clock))
    assert "EVALSHA" in link.names()


def test_a_redis_that_forgot_the_scripts(scene):
    """All of it is declared anew, over a new connection."""
    link = scene.up()
    scene.clock.advance(60)
    asked = scene.asking.accept(FakeLink(scene.clock))
    asked.answer(Refused("NOSCRIPT"))
    asked.answer_all()
    assert link.aborted
    scene.clock.advance(0)
    scene.clock.advance(1)
    again = scene.up()
    assert again.commands[0][:2] == ("SCRIPT", "LOAD")
    assert scene.user.consumed == 2


def test_nothing_is_renewed_after_the_end(scene):
    """Neither after it was cancelled nor while there is no connection."""
    link = scene.up()
    link.lose()
    scene.clock.advance(0)
    assert not [call for call in scene.clock.getDelayedCalls() if "_refresh" in str(call)]
    scene.intake.cancel()
    assert not [call for call in scene.clock.getDelayedCalls() if "_refresh" in str(call)]
