"""The connection's states: every row of the table, and everything that is not in it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import formatEvent, globalLogPublisher

from tests.unit.transports.amqp.fakes import FakeLink, Network, outcomes_of
from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, ConfigurationError
from twistedcelery.transports.connection import CLOSE_TIMEOUT, TRANSITIONS, Connection, Event, State


class User:
    """Who the connection is for: notes what it is told.

    :ivar preparing: what `prepare` returned, for the test to fire
    :ivar cancelled: those of them that were cancelled
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.reasons: list[BrokerUnavailable] = []
        self.links: list[FakeLink] = []
        self.preparing: list[Deferred[None]] = []
        self.cancelled: list[Deferred[None]] = []

    def prepare(self, link: FakeLink) -> Deferred[None]:
        self.told.append("prepare")
        self.links.append(link)
        self.preparing.append(Deferred(self.cancelled.append))
        return self.preparing[-1]

    def connection_up(self) -> None:
        self.told.append("up")

    def connection_lost(self, reason: BrokerUnavailable) -> None:
        self.told.append("lost")
        self.reasons.append(reason)


class LogRecorder:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: Any) -> None:
        if str(event.get("log_namespace", "")).startswith("twistedcelery."):
            self.lines.append(str(formatEvent(event)))


class Scene:
    """A connection, its user and its network, brought to a state."""

    def __init__(self) -> None:
        self.network = Network()
        self.user = User()
        self.connection: Connection = self.network.connection(self.user)

    def to(self, state: State) -> Scene:
        """Bring the connection, fresh, to a state."""
        if state is State.IDLE:
            return self
        if state is State.CLOSED:
            self.connection.close()
            return self
        self.connection.start()
        if state is State.WAITING:
            self.network.refuse()
        elif state is not State.CONNECTING:
            self.network.accept()
            if state is not State.PREPARING:
                self.user.preparing[-1].callback(None)
            if state is State.CLOSING:
                self.connection.close()
        assert self.connection.state is state
        return self

    @property
    def link(self) -> FakeLink:
        return self.user.links[-1]

    def advance(self, seconds: float) -> None:
        self.network.clock.advance(seconds)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def happens(scene: Scene, event: Event) -> None:
    """Make an event happen, in the way that it does in the state at hand."""
    connection, network, user = scene.connection, scene.network, scene.user
    if event is Event.START:
        connection.start()
    elif event is Event.OPENED:
        network.accept()
    elif event is Event.PREPARED:
        user.preparing[-1].callback(None)
    elif event is Event.LOST:
        if connection.state is State.CONNECTING:
            network.refuse()
        else:
            scene.link.lose()
    elif event is Event.RETRY:
        scene.advance(1)
    elif event is Event.STOP:
        connection.close()
    elif event is Event.STOPPED:
        scene.link.lose()


@pytest.mark.parametrize(("state", "event"), TRANSITIONS, ids=lambda value: value.name)
def test_every_transition(scene, state, event):
    """Each row of the table is what really happens."""
    scene.to(state)
    happens(scene, event)
    assert scene.connection.state is TRANSITIONS[state, event]


def test_the_table_has_every_state():
    """Every state can be reached, and only the last one cannot be left."""
    assert set(TRANSITIONS.values()) | {State.IDLE} == set(State)
    assert set(State) - {state for state, _ in TRANSITIONS} == {State.CLOSED}
    assert {event for _, event in TRANSITIONS} == set(Event)


# Connecting


def test_a_connection_comes_up(scene):
    """The user prepares the new link, and is told once it may be used."""
    scene.to(State.CONNECTING)
    assert scene.user.told == []
    link = scene.network.accept()
    assert scene.user.links == [link]
    assert scene.user.told == ["prepare"]
    scene.user.preparing[0].callback(None)
    assert scene.user.told == ["prepare", "up"]


@pytest.mark.parametrize("state", [state for state in State if state is not State.IDLE])
def test_starting_again_does_nothing(scene, state):
    """`start` counts once, and not after `close`."""
    scene.to(state)
    attempts = len(scene.network.attempts)
    scene.connection.start()
    assert scene.connection.state is state
    assert len(scene.network.attempts) == attempts


def test_back_off(scene):
    """Each failure in a row waits as the policy says, and tries the next broker."""
    scene.connection.start()
    for delay in (1, 2, 3, 4):
        scene.network.refuse()
        assert scene.connection.state is State.WAITING
        scene.advance(delay - 0.01)
        assert scene.connection.state is State.WAITING
        scene.advance(0.01)
        assert scene.connection.state is State.CONNECTING
    assert [broker for broker, _ in scene.network.attempts] == [0, 1, 2, 0, 1]
    assert scene.user.told == ["lost"] * 4


def test_what_is_logged(scene):
    """A failure is logged once a minute, with what the connection is for, and again after it was up."""
    observer: Any = LogRecorder()
    globalLogPublisher.addObserver(observer)
    try:
        scene.connection.start()
        for delay in range(1, 12):
            scene.network.refuse(BrokerUnavailable("refused."))
            scene.advance(delay)
        scene.network.accept()
        scene.user.preparing[-1].callback(None)
        scene.link.lose()
    finally:
        globalLogPublisher.removeObserver(observer)
    refused = [f"no connection for tests: amqp://{n}: refused. The client keeps trying." for n in range(3)]
    # Three brokers in 66 s.
    assert observer.lines[:3] == refused
    assert observer.lines[-2].startswith("connected for tests to amqp://")
    assert observer.lines[-1].startswith("no connection for tests: amqp://")
    assert len(observer.lines) < 10


def test_a_failover_list_is_tried_as_a_whole(scene):
    """As with kombu, the next broker is tried at once, and waiting begins when none has answered."""
    scene.network.brokers.at_once = 3
    scene.connection.start()
    for delay in (0, 0, 1, 0, 0, 2):
        scene.network.refuse()
        if delay:
            scene.advance(delay - 0.01)
            assert scene.connection.state is State.WAITING
        scene.advance(0.01)
        assert scene.connection.state is State.CONNECTING
    assert [broker for broker, _ in scene.network.attempts] == [0, 1, 2, 0, 1, 2, 0]


def test_success_starts_the_back_off_anew(scene):
    """After a link that came up the first wait is short again."""
    scene.connection.start()
    scene.network.refuse()
    scene.advance(1)
    scene.network.refuse()
    scene.advance(2)
    scene.network.accept()
    scene.user.preparing[-1].callback(None)
    scene.link.lose()
    scene.advance(1)
    assert scene.connection.state is State.CONNECTING


def test_a_link_that_never_comes_up_does_not(scene):
    """A broker that accepts and then refuses what the user needs is no success."""
    scene.connection.start()
    for delay in (1, 2, 3):
        scene.network.accept()
        scene.user.preparing[-1].errback(BrokerUnavailable("no"))
        scene.advance(delay - 0.01)
        assert scene.connection.state is State.WAITING
        scene.advance(0.01)
        assert scene.connection.state is State.CONNECTING


def test_the_reason_names_the_broker(scene):
    """The user is told which broker failed, how, and with the same class of error."""
    scene.connection.start()
    error = BrokerAccessRefused("wrong password")
    scene.network.refuse(error)
    (reason,) = scene.user.reasons
    assert type(reason) is BrokerAccessRefused
    assert str(reason) == "amqp://0: wrong password"
    assert reason.__cause__ is error


def test_any_other_error_is_translated(scene):
    """Whatever an attempt fails with, the user is told of a `BrokerUnavailable`."""
    scene.to(State.PREPARING)
    error = ValueError("odd")
    scene.user.preparing[0].errback(error)
    assert type(scene.user.reasons[0]) is BrokerUnavailable
    assert "odd" in str(scene.user.reasons[0])
    scene.advance(0)
    assert scene.link.lost is not None


@pytest.mark.parametrize("error", [ConfigurationError("no such file"), ValueError("port"), KeyError()])
def test_brokers_that_cannot_even_be_tried(scene, error):
    """Wrong settings, or a password function that raises, count as a failed attempt, not as a crash."""
    scene.network.brokers.broken = error
    scene.connection.start()
    assert scene.connection.state is State.WAITING
    assert scene.user.reasons[0].__cause__.__cause__ is error
    scene.network.brokers.broken = None
    scene.advance(1)
    scene.network.accept()
    scene.user.preparing[0].callback(None)
    assert scene.connection.state is State.UP


# Time limits


@pytest.mark.parametrize("state", [State.CONNECTING, State.PREPARING])
def test_an_attempt_has_one_time_limit(scene, state):
    """A broker that goes silent at any point of an attempt is given up after the limit."""
    scene.to(state)
    scene.advance(3.9)
    assert scene.connection.state is state
    scene.advance(0.1)
    assert scene.connection.state is State.WAITING
    assert "no answer within 4 s" in str(scene.user.reasons[0])
    assert scene.network.attempts[-1][1].called
    if state is State.PREPARING:
        assert scene.user.cancelled == scene.user.preparing
        scene.advance(0)
        assert scene.link.lost is not None


def test_the_limit_counts_from_the_start_of_the_attempt(scene):
    """Preparing has what connecting has left."""
    scene.connection.start()
    scene.advance(3)
    scene.network.accept()
    scene.advance(1)
    assert scene.connection.state is State.WAITING


def test_a_link_that_is_up_has_no_limit(scene):
    """The limit ends with the attempt, and leaves no timer."""
    scene.to(State.UP)
    assert scene.network.clock.getDelayedCalls() == []
    scene.advance(100)
    assert scene.connection.state is State.UP


# Losing links


@pytest.mark.parametrize("state", [State.PREPARING, State.UP])
def test_a_lost_link_is_made_again(scene, state):
    """The user is told once, and the next link is prepared from the beginning."""
    scene.to(state)
    scene.link.lose(BrokerUnavailable("gone"))
    assert scene.user.told.count("lost") == 1
    assert "gone" in str(scene.user.reasons[0])
    scene.advance(1)
    second = scene.network.accept()
    assert scene.user.links[-1] is second
    scene.user.preparing[-1].callback(None)
    assert scene.connection.state is State.UP
    assert scene.user.told.count("lost") == 1


def test_a_link_lost_while_preparing_ends_the_preparation(scene):
    """What the user was waiting for on the lost link is cancelled."""
    scene.to(State.PREPARING)
    scene.link.lose()
    assert scene.user.cancelled == scene.user.preparing


def test_a_link_that_is_lost_as_it_is_handed_over(scene):
    """A link that ended before anybody could listen is lost like any other."""
    link = FakeLink(scene.network.clock)
    link.lose(BrokerUnavailable("gone"))
    scene.connection.start()
    scene.network.accept(link)
    assert scene.connection.state is State.WAITING
    assert scene.user.told.count("lost") == 1


def test_a_preparation_that_ends_late_changes_nothing(scene):
    """A preparation that goes on after its link was lost cannot harm the next attempt."""
    late: Deferred[None] = Deferred()
    preparing: Deferred[None] = Deferred()
    preparing.addErrback(lambda _: late)
    scene.user.prepare = lambda _: preparing
    scene.connection.start()
    scene.network.accept().lose()
    scene.advance(1)
    assert scene.connection.state is State.CONNECTING
    late.errback(BrokerUnavailable("late"))
    scene.advance(3.9)
    assert scene.connection.state is State.CONNECTING
    assert scene.user.told == ["lost"]


def test_a_link_that_opens_late_is_dropped(scene):
    """A link of an attempt that was given up, and that came all the same, is not kept."""
    late: Deferred[FakeLink] = Deferred()
    opening: Deferred[FakeLink] = Deferred()
    opening.addErrback(lambda _: late)
    scene.connection._opener = lambda *_: opening
    scene.connection.start()
    scene.connection.close()
    link = FakeLink(scene.network.clock)
    late.callback(link)
    scene.advance(0)
    assert link.lost is not None
    assert scene.user.told == []


def test_drop_makes_another_link(scene):
    """A link given up by its user ends, and another one is made."""
    scene.to(State.UP)
    scene.connection.drop()
    assert scene.link.aborted
    scene.advance(0)
    assert scene.connection.state is State.WAITING
    scene.advance(1)
    assert scene.connection.state is State.CONNECTING


@pytest.mark.parametrize("state", [State.IDLE, State.CONNECTING, State.WAITING, State.CLOSED])
def test_drop_without_a_link_does_nothing(scene, state):
    """There is nothing to give up."""
    scene.to(state)
    scene.connection.drop()
    assert scene.connection.state is state


def test_an_old_link_is_no_news(scene):
    """The end of a link that was given up does not touch its successor."""
    scene.to(State.PREPARING)
    old = scene.link
    scene.user.preparing[0].errback(BrokerUnavailable("no"))
    assert old.aborted
    scene.network.clock.calls = [
        call for call in scene.network.clock.calls if call.func != old.lose
    ]  # its transport takes its time
    scene.advance(1)
    scene.network.accept()
    scene.user.preparing[-1].callback(None)
    assert scene.connection.state is State.UP
    old.lose()
    assert scene.connection.state is State.UP
    assert scene.user.told == ["prepare", "lost", "prepare", "up"]


# Closing


@pytest.mark.parametrize("state", [state for state in State if state not in (State.UP, State.CLOSING)])
def test_closing_without_a_working_link(scene, state):
    """Without a link that is up closing is done at once, or once the link is gone; nothing is left."""
    scene.to(state)
    outcomes = outcomes_of(scene.connection.close())
    scene.advance(0)
    assert outcomes == [None]
    assert scene.connection.state is State.CLOSED
    assert scene.network.clock.getDelayedCalls() == []
    assert all(attempt.called for _, attempt in scene.network.attempts)
    assert all(link.lost is not None for link in scene.user.links)
    assert "up" not in scene.user.told


def test_closing_in_good_order(scene):
    """A link that is up is closed by the book, and waited for."""
    scene.to(State.UP)
    outcomes = outcomes_of(scene.connection.close())
    assert scene.link.closing
    assert not scene.link.aborted
    assert outcomes == []
    scene.link.lose()
    assert outcomes == [None]
    assert scene.network.clock.getDelayedCalls() == []
    assert "lost" not in scene.user.told


def test_closing_is_bounded(scene):
    """A broker that does not answer is not waited for any longer than this."""
    scene.to(State.UP)
    outcomes = outcomes_of(scene.connection.close())
    scene.advance(CLOSE_TIMEOUT - 0.01)
    assert not scene.link.aborted
    scene.advance(0.01)
    assert scene.link.aborted
    scene.advance(0)
    assert outcomes == [None]


def test_closing_while_the_broker_refuses_the_preparation(scene):
    """A preparation that fails while the connection is closing is not tried again."""
    scene.to(State.PREPARING)
    scene.connection.close()
    scene.advance(100)
    assert scene.connection.state is State.CLOSED
    assert len(scene.network.attempts) == 1
    assert "lost" not in scene.user.told


def test_everyone_who_closes_is_told(scene):
    """`close` may be called at any time, and each caller gets a Deferred that fires at the end."""
    scene.to(State.UP)
    first, given_up = scene.connection.close(), scene.connection.close()
    given_up.cancel()
    assert isinstance(outcomes_of(given_up)[0], CancelledError)
    outcomes = outcomes_of(first)
    scene.link.lose()
    assert outcomes == [None]
    assert outcomes_of(scene.connection.close()) == [None]
    assert scene.connection.state is State.CLOSED


def test_closing_inside_connection_up(scene):
    """The user may close the moment the link is up."""
    scene.to(State.PREPARING)
    outcomes: list[Any] = []
    scene.user.connection_up = lambda: outcomes.append(outcomes_of(scene.connection.close()))
    scene.user.preparing[0].callback(None)
    assert scene.connection.state is State.CLOSING
    scene.link.lose()
    assert outcomes == [[None]]


@pytest.mark.parametrize("state", [State.CONNECTING, State.PREPARING, State.UP])
def test_closing_inside_connection_lost(scene, state):
    """The user may close when told of a loss: no further attempt is made."""
    scene.to(state)
    outcomes: list[Any] = []
    scene.user.connection_lost = lambda _reason: outcomes.append(outcomes_of(scene.connection.close()))
    if state is State.CONNECTING:
        scene.network.refuse()
    else:
        scene.link.lose()
    assert outcomes == [[None]]
    assert scene.network.clock.getDelayedCalls() == []
    assert len(scene.network.attempts) == 1


def test_nothing_grows_with_reconnects(scene):
    """A connection that was lost often keeps nothing of the links it had."""
    scene.to(State.UP)
    lost = []
    for _ in range(20):
        lost.append(weakref.ref(scene.link))
        scene.link.lose()
        scene.advance(1)
        scene.network.accept()
        scene.user.preparing[-1].callback(None)
    del scene.user.links[:-1], scene.user.preparing[:-1], scene.network.attempts[:]
    gc.collect()
    assert [link() for link in lost] == [None] * 20
    assert scene.network.clock.getDelayedCalls() == []
