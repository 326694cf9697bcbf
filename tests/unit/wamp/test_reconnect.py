"""A client that reconnects whenever its connection ends."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock

from twistedcelery.wamp.router.reconnect import FIRST_DELAY, MAX_DELAY, ReconnectingClient


class Router:
    """Answers attempts to connect, as the test says."""

    def __init__(self) -> None:
        self.attempts: list[Deferred[Any]] = []
        self.is_closed: Deferred[None] = Deferred()
        self.listens = True

    def connect(self) -> Deferred[Any]:
        if not self.listens:
            self.attempts.append(fail(ConnectError(string="nobody listens")))
        else:
            self.attempts.append(Deferred())
        return self.attempts[-1]

    def accept(self) -> None:
        """Accept the latest attempt."""
        self.is_closed = Deferred()
        self.attempts[-1].callback(self)

    def close(self) -> None:
        self.is_closed.callback(None)


class Setup:
    def __init__(self) -> None:
        self.clock = Clock()
        self.router = Router()
        self.client = ReconnectingClient(self.clock, "the router", self.router.connect)
        self.ended: list[None] = []
        self.client.ended.addCallback(self.ended.append)

    def join(self) -> None:
        self.router.accept()
        self.client.joined("realm1")


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_a_lost_connection_is_made_again(setup):
    """A session that had joined is followed by another one soon, each time."""
    setup.client.start()
    for attempts in range(1, 5):
        assert len(setup.router.attempts) == attempts
        setup.join()
        setup.router.close()
        setup.clock.advance(FIRST_DELAY)


def test_pauses_grow_while_there_is_no_router(setup, said):
    """The delay grows up to a limit, and the failure is logged once a minute."""
    setup.router.listens = False
    setup.client.start()
    times = []
    while setup.clock.seconds() < 60:
        setup.clock.advance(0.1)
        if len(setup.router.attempts) > len(times):
            times.append(setup.clock.seconds())
    pauses = [late - early for early, late in itertools.pairwise(times)]
    assert pauses[0] <= FIRST_DELAY + 0.1
    assert max(pauses) <= MAX_DELAY + 0.1
    assert min(pauses[4:]) >= MAX_DELAY / 2 - 0.1
    line = (
        "no router at the router: An error occurred while connecting: nobody listens. Is it running, and is "
        "that its address? The bridge keeps trying."
    )
    assert said == [line]
    setup.clock.pump([1] * 60)
    assert said == [line] * 2


def test_a_router_that_refuses_is_no_router_that_is_back(setup):
    """A connection without a session that joins does not reset the delay."""
    setup.client.start()
    setup.router.accept()
    setup.router.close()
    setup.clock.advance(FIRST_DELAY)
    assert len(setup.router.attempts) == 2
    setup.router.accept()
    setup.router.close()
    setup.clock.advance(FIRST_DELAY - 0.01)
    assert len(setup.router.attempts) == 2
    setup.clock.advance(FIRST_DELAY + 0.01)
    assert len(setup.router.attempts) == 3


def test_something_that_is_no_router(setup, said):
    """The reason why its handshake failed is logged once a minute, with what to check."""
    setup.router.wasNotCleanReason = "WebSocket connection upgrade failed [404]: Not Found"
    setup.client.start()
    for _ in range(5):
        setup.router.accept()
        setup.router.close()
        setup.clock.advance(MAX_DELAY)
    (line,) = said
    assert line == (
        "no router at the router: WebSocket connection upgrade failed [404]: Not Found. Check the host, the "
        "port and the path of the URL. The bridge keeps trying."
    )


def test_a_reason_that_comes_late(setup, said):
    """Autobahn knows why TLS failed only after it has reported the end of the connection."""
    setup.router.wasNotCleanReason = None
    setup.client.start()
    setup.router.accept()
    setup.router.close()
    setup.router.wasNotCleanReason = "certificate verify failed"
    setup.clock.advance(0)
    (line,) = said
    assert "no router at the router: certificate verify failed. " in line


def test_a_router_that_refuses_the_session(setup, said):
    """The session logs the router's reason, so the end of the connection is not logged."""
    setup.client.start()
    setup.router.accept()
    setup.client.answered()
    setup.router.close()
    assert said == []


def test_a_lost_router(setup, said):
    """What was joined and lost is logged, with the reason, and later trouble anew."""
    setup.router.listens = False
    setup.client.start()
    setup.router.listens = True
    setup.clock.advance(FIRST_DELAY)
    setup.join()
    setup.router.wasNotCleanReason = "peer dropped the TCP connection"
    setup.router.listens = False
    setup.router.close()
    setup.clock.advance(FIRST_DELAY)
    assert said[1:3] == [
        "joined realm1 at the router",
        "the connection to the router is lost: peer dropped the TCP connection",
    ]
    assert said[3] == said[0]


@pytest.mark.parametrize("state", ["not started", "pausing", "connecting", "joining"])
def test_stopping_without_a_session(state, setup):
    """It stops waiting at once."""
    setup.router.listens = state != "pausing"
    if state != "not started":
        setup.client.start()
    if state == "joining":
        setup.router.accept()
    setup.client.stop()
    if state == "not started":
        setup.client.start(FIRST_DELAY)
    assert setup.ended == [None]
    assert setup.clock.getDelayedCalls() == []
    assert len(setup.router.attempts) == (state != "not started")


def test_stopping_with_a_session(setup):
    """A session that has joined may end on its own. None follows."""
    setup.client.start()
    setup.join()
    setup.client.stop()
    assert setup.ended == []
    setup.router.close()
    assert setup.ended == [None]
    assert setup.clock.getDelayedCalls() == []
