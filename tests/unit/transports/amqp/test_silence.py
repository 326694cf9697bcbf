"""A peer that says nothing: asked, and given up where it does not answer."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from twistedcelery.transports.amqp.silence import SilenceWatch


class Peer:
    """A connection that is watched for 9 s of silence.

    :ivar at: the times at which it was asked
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.received = 0
        self.at: list[float] = []
        self.reason: str | None = None
        self.watch = SilenceWatch(self, self.clock, 9)

    def ask(self) -> None:
        self.at.append(self.clock.seconds())

    def give_up(self, why: str) -> None:
        self.reason = why


@pytest.fixture
def peer() -> Peer:
    return Peer()


def test_nothing_comes(peer):
    """It is asked once, given up after the time allowed, and then left alone."""
    peer.clock.advance(3)
    assert peer.at == [3]
    assert peer.reason is None
    peer.clock.advance(3)
    assert peer.reason == "the broker has said nothing for 9 s"
    assert peer.clock.getDelayedCalls() == []


def test_each_answer_is_a_sign_of_life(peer):
    """A peer with nothing to say is asked again and again."""
    for _ in range(10):
        asked = len(peer.at)
        peer.clock.advance(3)
        peer.received += len(peer.at) - asked
    assert peer.at == [3, 9, 15, 21, 27]
    assert peer.reason is None


def test_what_came_while_the_reactor_was_busy(peer):
    """It is read before the peer is given up."""

    def read() -> None:
        peer.received += 1

    peer.clock.advance(3)
    peer.clock.callLater(300, read)
    peer.clock.advance(300)
    assert peer.reason is None
    peer.clock.advance(3)
    assert peer.at == [3, 306]


def test_normal_silence(peer):
    """While silence means nothing, nothing is asked and nobody is given up."""
    peer.clock.advance(3)
    peer.watch.is_normal = lambda: True
    for _ in range(10):
        peer.clock.advance(3)
    assert peer.reason is None
    assert peer.at == [3]


def test_stopped(peer):
    """No timer is left."""
    peer.clock.advance(3)
    peer.watch.stop()
    peer.watch.stop()
    assert peer.clock.getDelayedCalls() == []
