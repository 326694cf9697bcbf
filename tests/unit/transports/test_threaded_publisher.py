"""`ThreadedPublisher` with a broker that does what the test says."""

from __future__ import annotations

import threading

import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from twisted.internet.defer import CancelledError

from tests.support.process import wait_until
from tests.unit.transports.reactor import ThreadClock
from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    EncodeError,
    Overloaded,
    PublishRejected,
    PublishUnconfirmed,
)
from twistedcelery.transports.threads import sender as sender_module
from twistedcelery.transports.threads.publisher import ThreadedPublisher
from twistedcelery.transports.threads.thread import STOP_LIMIT


class ChannelError(Exception):
    pass


class FakeBroker:
    """Stands for `twistedcelery.transports.threads.broker.BrokerConnection`."""

    channel_errors = (ChannelError,)
    connection_errors = (OSError,)

    def __init__(self):
        self.sent = []
        self.outcomes = []
        self.open_outcomes = []
        self.sending, self.release = threading.Event(), threading.Event()
        self.release.set()
        self.opened = self.discarded = 0

    def open(self):
        self.opened += 1
        if self.open_outcomes:
            outcome = self.open_outcomes.pop(0)
            if outcome is not None:
                raise outcome

    def declare(self, entities):
        pass

    def send(self, message, timeout):
        self.sent.append((message.body, timeout))
        self.sending.set()
        self.release.wait(5)
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            if outcome is not None:
                raise outcome

    def discard(self):
        self.discarded += 1

    def close(self):
        pass


class Setup:
    def __init__(self, monkeypatch, **options):
        self.reactor, self.broker = ThreadClock(), FakeBroker()
        monkeypatch.setattr(sender_module, "BrokerConnection", lambda app: self.broker)
        # Attempts follow each other at once: the thread waits in real time.
        monkeypatch.setattr(sender_module, "_LONGEST_DELAY", 0.001)
        app = Celery(set_as_current=False, broker="memory://")
        self.publisher = ThreadedPublisher(app, self.reactor, **options)

    def publish(self, body=b"x", **fields):
        outcome = []
        message = OutgoingMessage(
            body=body, properties={}, headers={}, exchange="", routing_key="q", **fields
        )
        deferred = self.publisher.publish(message)
        deferred.addBoth(lambda result: outcome.append(getattr(result, "value", result)))
        return deferred, outcome

    def outcome(self, outcome):
        self.reactor.run_until(lambda: bool(outcome))
        return outcome[0]

    def close(self):
        closed = []
        self.publisher.close().addCallback(closed.append)
        self.reactor.run_until(lambda: bool(closed))
        assert not self.reactor.getDelayedCalls()


@pytest.fixture
def setup(monkeypatch):
    made = []

    def make(**options):
        made.append(Setup(monkeypatch, **options))
        return made[-1]

    yield make
    for one in made:
        one.broker.release.set()
        one.close()


def test_a_message_that_is_sent_fires(setup):
    """``publish`` fires with nothing, and the driver is given what is left of the message's time."""
    one = setup(publish_timeout=7)
    _, outcome = one.publish()
    assert one.outcome(outcome) is None
    assert one.broker.sent == [(b"x", 7)]
    assert one.publisher.connected


def test_more_messages_than_may_wait_are_refused(setup):
    """Past ``max_queued`` a message fails at once and is never sent; room is made by what ends."""
    one = setup(max_queued=2)
    one.broker.release.clear()
    kept = [one.publish(b"1")[1], one.publish(b"2")[1]]
    assert isinstance(one.publish(b"3")[1][0], Overloaded)
    one.broker.release.set()
    for outcome in kept:
        assert one.outcome(outcome) is None
    assert one.outcome(one.publish(b"4")[1]) is None
    assert [body for body, _ in one.broker.sent] == [b"1", b"2", b"4"]


def test_a_message_in_the_middle_of_being_sent_is_unconfirmed_when_its_time_is_up(setup):
    """Nobody knows whether the broker has it, and one behind it that was not sent never will be."""
    one = setup(publish_timeout=5)
    one.broker.release.clear()
    _, sending = one.publish(b"sending")
    _, queued = one.publish(b"queued")
    assert one.broker.sending.wait(5)
    one.reactor.advance(4.9)
    assert not sending
    one.reactor.advance(0.2)
    assert isinstance(sending[0], PublishUnconfirmed)
    assert isinstance(queued[0], BrokerUnavailable)
    one.broker.release.set()
    assert one.outcome(one.publish(b"next")[1]) is None
    assert [body for body, _ in one.broker.sent] == [b"sending", b"next"]


def test_a_lost_confirmation_is_not_sent_again_by_itself(setup):
    """When the connection fails during sending the message is unconfirmed, and sent once."""
    one = setup()
    one.broker.outcomes = [ConnectionResetError("gone")]
    error = one.outcome(one.publish()[1])
    assert isinstance(error, PublishUnconfirmed)
    assert isinstance(error.__cause__, ConnectionResetError)
    assert len(one.broker.sent) == 1
    assert one.broker.discarded == 1


def test_a_lost_confirmation_is_sent_again_where_the_caller_allowed_it(setup):
    """With ``resend`` the same message goes out again over a new connection."""
    one = setup()
    one.broker.outcomes = [ConnectionResetError("gone"), None]
    assert one.outcome(one.publish(resend=True)[1]) is None
    assert len(one.broker.sent) == 2


def test_a_message_that_may_have_been_sent_stays_unconfirmed(setup):
    """With ``resend`` and no second chance in time, the error does not claim that nothing was sent."""
    one = setup(publish_timeout=1)
    one.broker.outcomes = [ConnectionResetError("gone")]
    one.broker.open_outcomes = [None] + [ConnectionRefusedError("down")] * 10_000
    _, outcome = one.publish(resend=True)
    assert one.broker.sending.wait(5)
    wait_until(lambda: one.broker.discarded >= 2, timeout=5, what="it is tried again")
    one.reactor.advance(1.1)
    assert isinstance(one.outcome(outcome), PublishUnconfirmed)


def test_what_never_left_is_tried_again(setup):
    """A driver that connects when it sends, and cannot, has sent nothing."""
    one = setup()
    refused = ConnectionError("cannot connect")
    refused.__cause__ = ConnectionRefusedError("refused")
    one.broker.outcomes = [refused, None]
    assert one.outcome(one.publish()[1]) is None


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ChannelError("no"), PublishRejected),
        (TypeError("what is this"), EncodeError),
        (RuntimeError("what?"), PublishUnconfirmed),
    ],
)
def test_errors_of_the_driver_are_translated(setup, raised, expected):
    """A refusal, a message that cannot be put on the wire, and what nobody has thought of."""
    one = setup()
    one.broker.outcomes = [raised]
    error = one.outcome(one.publish()[1])
    assert type(error) is expected
    assert error.__cause__ is raised


def test_the_last_failure_to_connect_is_the_cause(setup):
    """When time is up without a connection, the error tells why there was none."""
    one = setup(publish_timeout=1)
    one.broker.open_outcomes = [ConnectionRefusedError("port 1 is closed")] * 1_000_000
    _, outcome = one.publish()
    wait_until(lambda: one.broker.discarded >= 2, timeout=5, what="it is tried again")
    one.reactor.advance(1.1)
    assert isinstance(outcome[0], BrokerUnavailable)
    assert "port 1 is closed" in str(outcome[0])
    assert outcome[0].__cause__ is not None
    assert not one.publisher.connected


def test_a_refusal_answers_for_all_messages_that_wait(setup):
    """A queue full of messages does not become as many failed logins; later ones are tried again."""
    one = setup()
    one.broker.open_outcomes = [AccessRefused("(403) ACCESS_REFUSED")]
    for outcome in [one.publish()[1] for _ in range(20)]:
        assert type(one.outcome(outcome)) is BrokerAccessRefused
    assert one.broker.opened == 1
    one.reactor.advance(2)
    assert one.outcome(one.publish()[1]) is None


def test_a_transport_that_cannot_be_used_fails_at_once(setup, monkeypatch):
    """A missing driver, or a URL of no transport, is told without waiting."""
    one = setup()
    monkeypatch.setattr(sender_module, "BrokerConnection", lambda app: {}["No such transport: nosuch"])
    error = one.outcome(one.publish()[1])
    assert isinstance(error, BrokerUnavailable)
    assert "No such transport: nosuch" in str(error)


def test_cancelling_drops_what_was_not_sent(setup):
    """A cancelled message that waits is not sent; one that is being sent may arrive, and says so."""
    one = setup()
    one.broker.release.clear()
    sending, sending_outcome = one.publish(b"sending")
    queued, outcome = one.publish(b"queued")
    assert one.broker.sending.wait(5)
    sending.cancel()
    queued.cancel()
    assert isinstance(sending_outcome[0], PublishUnconfirmed)
    assert isinstance(outcome[0], CancelledError)
    one.broker.release.set()
    assert one.outcome(one.publish(b"next")[1]) is None
    assert [body for body, _ in one.broker.sent] == [b"sending", b"next"]


def test_closing_does_not_wait_for_a_driver_that_hangs(setup):
    """All messages fail at once, and ``close`` fires after the limit though a call does not return."""
    one = setup()
    one.broker.release.clear()
    outcomes = [one.publish()[1] for _ in range(3)]
    assert one.broker.sending.wait(5)
    closed = []
    one.publisher.close().addCallback(closed.append)
    assert [type(outcome[0]) for outcome in outcomes] == [Disconnected] * 3
    assert "may or may not" in str(outcomes[0][0])
    assert "nothing was sent" in str(outcomes[1][0])
    assert not closed
    one.reactor.advance(STOP_LIMIT + 0.1)
    assert closed
    assert isinstance(one.publish()[1][0], Disconnected)
