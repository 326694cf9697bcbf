"""What a link does by itself, without a broker."""

from __future__ import annotations

from unittest.mock import Mock

import pika
import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from twistedcelery.errors import BrokerUnavailable
from twistedcelery.transports.amqp.declare import Declaration
from twistedcelery.transports.amqp.link import AmqpChannel, _Protocol


class Scene:
    """A link that has just been connected."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.transport = StringTransport()
        self.protocol = _Protocol(pika.ConnectionParameters(), self.clock)
        self.failures: list[BaseException] = []
        self.protocol.opened.addErrback(lambda failure: self.failures.append(failure.value))
        self.protocol.makeConnection(self.transport)

    @property
    def reads(self) -> bool:
        return bool(self.transport.producerState == "producing")


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_rest(scene):
    """For as long as it was first told to, nothing is read."""
    scene.protocol.rest(2)
    scene.clock.advance(1)
    scene.protocol.rest(2)
    assert not scene.reads
    scene.clock.advance(1)
    assert scene.reads
    assert scene.clock.getDelayedCalls() == []
    scene.protocol.rest(2)
    assert not scene.reads


def test_lost_while_it_rests(scene):
    """No timer is left, and none is begun afterwards."""
    scene.protocol.rest(2)
    scene.protocol.connectionLost(Failure(ConnectionLost()))
    assert scene.clock.getDelayedCalls() == []
    scene.protocol.rest(2)
    assert scene.clock.getDelayedCalls() == []
    assert [type(failure) for failure in scene.failures] == [BrokerUnavailable]


def test_whatever_comes_is_a_sign_of_life(scene):
    """Octets of a frame that is not complete yet count for heartbeats, too."""
    before = scene.protocol._impl.bytes_received
    scene.protocol.dataReceived(b"\x01\x00\x00")
    assert scene.protocol._impl.bytes_received > before


def test_a_call_on_a_channel_that_closes():
    """It fails at once, and nothing of it fails later where nobody looks."""
    closing = Mock(is_open=False)
    channel = AmqpChannel(Mock(_channel=closing), Mock())
    failures: list[BaseException] = []
    for calling in (
        channel.declare(Declaration("queue_declare", {"queue": "q"})),
        channel.delete_consumed_queue("q"),
        channel.consume("q", 1, lambda _: None, lambda: None),
    ):
        calling.addErrback(lambda failure: failures.append(failure.value))
    assert [str(error) for error in failures] == ["the channel is closed"] * 3
    assert not closing.basic_cancel.called
    assert not channel._calls.queue_declare.called
