"""Many revokes, few broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from tests.support.outcomes import outcomes_of
from twistedcelery.errors import BrokerUnavailable
from twistedcelery.workers.revoker import Revoker


class ListEncoder:
    """As much of an `Encoder` as is used."""

    def revoke(self, task_ids: Sequence[str], *, terminate: bool, signal: str) -> Any:
        return list(task_ids), terminate, signal


class Broadcasts:
    """A revoker, and what it sent: its binding, its bound transport and its publisher."""

    def __init__(self) -> None:
        self.reactor = Clock()
        self.sent: list[tuple[list[str], bool, str]] = []
        self.answers: list[Deferred[None]] = []
        self.bound = self.publisher = self
        self.encoder = ListEncoder()
        self.revoker = Revoker(self.reactor, self)

    def publish(self, message: Any) -> Deferred[None]:
        self.sent.append(message)
        self.answers.append(Deferred())
        return self.answers[-1]

    def revoke(self, task_id: str, terminate: bool = False, signal: str = "SIGTERM") -> list[Any]:
        """Revoke a task; the list gets the outcome."""
        return outcomes_of(self.revoker.revoke(task_id, terminate, signal))

    def turn(self) -> None:
        self.reactor.advance(0)


@pytest.fixture
def broadcasts() -> Broadcasts:
    return Broadcasts()


def test_one_turn_is_one_broadcast(broadcasts):
    """The revokes of a reactor turn go out together, in the next."""
    for task_id in ("a", "b", "c"):
        broadcasts.revoke(task_id)
    assert broadcasts.sent == []
    broadcasts.turn()
    assert broadcasts.sent == [(["a", "b", "c"], False, "SIGTERM")]
    broadcasts.revoke("d")
    broadcasts.turn()
    assert broadcasts.sent[1:] == [(["d"], False, "SIGTERM")]


def test_other_ways_to_revoke_are_other_broadcasts(broadcasts):
    """Tasks to be terminated, and each signal, go out by themselves."""
    broadcasts.revoke("a")
    broadcasts.revoke("b", terminate=True)
    broadcasts.revoke("c", terminate=True, signal="SIGKILL")
    broadcasts.turn()
    assert broadcasts.sent == [
        (["a"], False, "SIGTERM"),
        (["b"], True, "SIGTERM"),
        (["c"], True, "SIGKILL"),
    ]


def test_each_revoke_learns_of_its_broadcast(broadcasts):
    """Everyone gets the outcome of the command that their revoke went out with."""
    first, second = broadcasts.revoke("a"), broadcasts.revoke("b")
    terminated = broadcasts.revoke("c", terminate=True)
    broadcasts.turn()
    assert (first, second, terminated) == ([], [], [])
    error = BrokerUnavailable("gone")
    broadcasts.answers[0].callback(None)
    broadcasts.answers[1].errback(error)
    assert (first, second, terminated) == ([None], [None], [error])


def test_a_cancelled_revoke_bothers_nobody(broadcasts):
    """Who does not want to know the outcome any more changes nothing for the others."""
    given_up = broadcasts.revoker.revoke("a", False, "SIGTERM")
    other = broadcasts.revoke("b")
    given_up.cancel()
    assert isinstance(outcomes_of(given_up)[0], CancelledError)
    broadcasts.turn()
    broadcasts.answers[0].callback(None)
    assert other == [None]


def test_flush_sends_at_once(broadcasts):
    """`flush` does not wait for the turn, and nothing is sent twice."""
    broadcasts.revoke("a")
    broadcasts.revoker.flush()
    assert broadcasts.sent == [(["a"], False, "SIGTERM")]
    assert broadcasts.reactor.getDelayedCalls() == []
    broadcasts.turn()
    assert len(broadcasts.sent) == 1


@pytest.mark.parametrize("lost", [False, True])
def test_flush_fires_when_nothing_is_on_its_way(broadcasts, lost):
    """`flush` waits for the commands of before as well, however they end."""
    broadcasts.revoke("a")
    broadcasts.turn()
    broadcasts.revoke("b")
    outcomes = outcomes_of(broadcasts.revoker.flush())
    broadcasts.answers[1].callback(None)
    assert outcomes == []
    if lost:
        broadcasts.answers[0].errback(BrokerUnavailable("gone"))
    else:
        broadcasts.answers[0].callback(None)
    assert outcomes == [None]


def test_flush_of_nothing_fires_at_once(broadcasts):
    """With nothing gathered there is nothing to wait for, or to send."""
    assert outcomes_of(broadcasts.revoker.flush()) == [None]
    assert broadcasts.sent == []


def test_a_revoke_inside_the_callback_of_a_revoke(broadcasts):
    """A callback may revoke another task: it goes out in the turn that follows."""
    broadcasts.revoker.revoke("a", False, "SIGTERM").addCallback(lambda _: broadcasts.revoke("b"))
    broadcasts.turn()
    broadcasts.answers[0].callback(None)
    broadcasts.turn()
    assert [each[0] for each in broadcasts.sent] == [["a"], ["b"]]
