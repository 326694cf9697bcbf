"""Control commands without a broker: what is sent, which replies count, and when waiting ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.support.transport import bare_app
from twistedcelery.encoding.replay import Replay
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    InvalidCall,
    PublishRejected,
    RepliesLost,
)
from twistedcelery.transports.interface import IncomingMessage
from twistedcelery.workers.inbox import Inbox


class FakeSubscriber:
    """A `Subscriber` whose broker is the test."""

    def __init__(self):
        self.queues: list[Any] = []
        self.user: Any = None
        self.purged: list[Any] = []
        self.cancelled = 0

    def subscribe(self, queue, user):
        self.queues.append(queue)
        self.user = user
        return self

    def renew(self):
        return None

    def cancel(self):
        self.cancelled += 1
        return succeed(None)

    def purge(self, queues):
        self.purged.append([queue.name for queue in queues])
        return succeed(7)

    def close(self):
        if self.user is not None:
            self.user.ended(Disconnected("closed"))
        return succeed(None)


@pytest.fixture
def subscriber(transport, monkeypatch):
    made = FakeSubscriber()
    transport.consumer = made
    return made


@pytest.fixture
def control(transport, subscriber):
    return transport.client(bare_app(), publish_timeout=5).control


class Sent:
    """A command as a worker sees it."""

    def __init__(self, transport):
        self.publication = transport.written.last
        self.body = json.loads(self.publication.message.body)

    def reply(self, subscriber, worker, answer, ticket=None):
        headers = {"ticket": ticket or self.body["ticket"], "clock": 100}
        body = json.dumps({worker: answer})
        subscriber.user.received(IncomingMessage(body, "application/json", "utf-8", headers))


def outcome(deferred):
    """What a Deferred has fired with, as a list; empty while it has not."""
    outcomes: list[Any] = []
    deferred.addBoth(lambda result: outcomes.append(result.value if isinstance(result, Failure) else result))
    return outcomes


def test_a_command_is_kombu_s_message(control, transport):
    """Without ``reply`` nothing is subscribed to, and the broker's confirmation ends the call."""
    ended = outcome(control.rate_limit("tasks.add", "1/s", destination=["a@b"]))
    sent = Sent(transport)
    assert sent.body["method"] == "rate_limit"
    assert sent.body["arguments"] == {"task_name": "tasks.add", "rate_limit": "1/s"}
    assert sent.body["destination"] == ["a@b"]
    assert "ticket" not in sent.body
    message = sent.publication.message
    assert (message.exchange, message.mandatory, message.resend) == ("celery.pidbox", False, False)
    assert [entity.name for entity in message.declare] == ["celery.pidbox"]
    assert ended == []
    sent.publication.confirm()
    assert ended == [None]


def test_no_command_is_sent_before_its_replies_would_be_seen(control, transport, subscriber):
    """The reply queue comes first; it is kombu's, and one for all commands."""
    first, second = outcome(control.ping(limit=1)), outcome(control.inspect(limit=1).stats())
    assert transport.written.publications == []
    subscriber.user.consuming()
    (queue,) = subscriber.queues
    for publication in transport.written.publications:
        body = json.loads(publication.message.body)
        assert body["reply_to"] == {"exchange": "reply.celery.pidbox", "routing_key": queue.routing_key}
        publication.confirm()
        headers = {"ticket": body["ticket"]}
        reply = json.dumps({"w": {"ok": body["method"]}})
        subscriber.user.received(IncomingMessage(reply, "application/json", "utf-8", headers))
    assert queue.exchange.name == "reply.celery.pidbox"
    assert queue.auto_delete
    assert first == [[{"w": {"ok": "ping"}}]]
    assert second == [{"w": {"ok": "stats"}}]


def asking(control, transport, subscriber, **options):
    """A ping on its way."""
    ended = outcome(control.ping(**options))
    subscriber.user.consuming()
    sent = Sent(transport)
    sent.publication.confirm()
    return ended, sent


def test_the_timeout_is_that_between_replies(control, transport, subscriber):
    """As in kombu, each reply begins it anew; what comes too late is dropped."""
    ended, sent = asking(control, transport, subscriber, timeout=1)
    for worker in ("a", "b", "c"):
        transport.clock.advance(0.9)
        sent.reply(subscriber, worker, {"ok": "pong"})
    assert ended == []
    transport.clock.advance(1)
    assert ended == [[{worker: {"ok": "pong"}} for worker in ("a", "b", "c")]]
    sent.reply(subscriber, "d", {"ok": "pong"})
    assert len(ended[0]) == 3
    assert not transport.clock.getDelayedCalls()


def test_destinations_limit_the_replies(control, transport, subscriber):
    """Waiting ends when all have answered who were asked. Replies to others do not count."""
    ended, sent = asking(control, transport, subscriber, destination=["a", "b"], timeout=60)
    sent.reply(subscriber, "a", {"ok": "pong"})
    sent.reply(subscriber, "x", {"ok": "pong"}, ticket="another")
    assert ended == []
    sent.reply(subscriber, "b", {"ok": "pong"})
    assert ended == [[{"a": {"ok": "pong"}}, {"b": {"ok": "pong"}}]]


def test_replies_may_overtake_the_confirmation(control, transport, subscriber):
    """They are kept; the time begins with the confirmation."""
    ended = outcome(control.ping(timeout=1))
    subscriber.user.consuming()
    sent = Sent(transport)
    sent.reply(subscriber, "a", {"ok": "pong"})
    transport.clock.advance(4)
    assert ended == []
    sent.publication.confirm()
    transport.clock.advance(1)
    assert ended == [[{"a": {"ok": "pong"}}]]


def test_a_refused_command_fails(control, transport, subscriber):
    """What the publisher fails with is what the call fails with."""
    ended = outcome(control.ping())
    subscriber.user.consuming()
    transport.written.last.fail(PublishRejected("no"))
    assert [type(error) for error in ended] == [PublishRejected]
    assert not transport.clock.getDelayedCalls()


def test_a_lost_connection_fails_what_waits_and_nothing_else(control, transport, subscriber):
    """An empty answer would mean that there are no workers. The next command waits for a connection."""
    ended, _ = asking(control, transport, subscriber)
    subscriber.user.interrupted(BrokerUnavailable("lost"))
    assert [type(error) for error in ended] == [RepliesLost]
    count = len(transport.written.publications)
    again = outcome(control.ping(limit=1))
    assert len(transport.written.publications) == count
    subscriber.user.consuming()
    Sent(transport).reply(subscriber, "a", {"ok": "pong"})
    assert again == [[{"a": {"ok": "pong"}}]]
    assert len(subscriber.queues) == 1


def test_without_a_broker_it_fails_in_time(control, transport, subscriber):
    """After ``publish_timeout``, with the reason; at once where the password is wrong."""
    ended = outcome(control.ping())
    subscriber.user.interrupted(BrokerUnavailable("refused by a test"))
    transport.clock.advance(4.9)
    assert ended == []
    transport.clock.advance(0.2)
    assert isinstance(ended[0], BrokerUnavailable)
    assert "refused by a test" in str(ended[0])
    ended = outcome(control.ping())
    subscriber.user.interrupted(BrokerAccessRefused("wrong password"))
    assert isinstance(ended[0], BrokerAccessRefused)


def test_a_refused_reply_queue_is_tried_again_by_the_next_command(control, subscriber):
    """Somebody may have changed the permissions in the meantime."""
    ended = outcome(control.ping())
    subscriber.user.ended(PublishRejected("no permission"))
    assert isinstance(ended[0], PublishRejected)
    outcome(control.ping())
    assert len(subscriber.queues) == 2


def test_cancelling_stops_the_waiting(control, transport, subscriber):
    """At whatever point: before the reply queue is there, before the confirmation, before the replies."""
    waiting = control.ping()
    early = outcome(waiting)
    waiting.cancel()
    unconfirmed = control.ping()
    subscriber.user.consuming()
    (publication,) = transport.written.publications
    publication.sent = False
    middle = outcome(unconfirmed)
    unconfirmed.cancel()
    assert not publication.open
    late = control.ping(timeout=None)
    transport.written.last.confirm()
    end = outcome(late)
    late.cancel()
    assert [type(ended[0]) for ended in (early, middle, end)] == [CancelledError] * 3
    assert not transport.clock.getDelayedCalls()


def test_the_workers_clock_is_heard(transport, subscriber):
    """Replies adjust the logical clock that further commands carry."""
    control = transport.client().control
    _, sent = asking(control, transport, subscriber, limit=1)
    sent.reply(subscriber, "a", {"ok": "pong"})
    control.heartbeat()
    assert transport.written.last.message.headers["clock"] > 100


@pytest.mark.parametrize("headers", [{}, {"clock": "x", "ticket": ["y"]}, {"clock": None, "ticket": None}])
def test_replies_with_odd_headers_are_dropped(control, transport, subscriber, headers):
    """Whoever may publish to the queue cannot do more than that."""
    ended, sent = asking(control, transport, subscriber, limit=1)
    subscriber.user.received(IncomingMessage("{}", "application/json", "utf-8", headers))
    assert ended == []
    sent.reply(subscriber, "a", {"ok": "pong"})
    assert ended == [[{"a": {"ok": "pong"}}]]


def test_purge_is_for_the_queues_of_the_application(transport, subscriber):
    """Those that its workers consume."""
    from kombu import Queue

    app = bare_app(task_queues=[Queue("one"), Queue("two")])
    control = transport.client(app).control
    assert outcome(control.purge()) == [7]
    assert subscriber.purged == [["one", "two"]]


def test_the_application_keeps_its_own_control(transport, subscriber):
    """Its mailbox, its clock and its classes are as they were."""
    app = bare_app()
    mailbox, inspect = app.control.mailbox, app.control.inspect
    before = dict(mailbox.__dict__)
    control = transport.client(app).control
    outcome(control.ping())
    assert app.control.mailbox is mailbox
    assert app.control.inspect is inspect
    assert mailbox.__dict__ == before
    assert app.control.app is app
    assert inspect.app is app


# Code that was written to block


class Steps:
    """A blocking step, and the Deferreds that stand for its outcomes."""

    def __init__(self):
        self.calls: list[tuple[Any, ...]] = []
        self.waiting: list[Deferred[Any]] = []
        self.replay = Replay(self._step)

    def _step(self, *args):
        self.calls.append(args)
        self.waiting.append(Deferred())
        return self.waiting[-1]


def test_code_with_several_steps_is_run_to_its_end():
    """Each step is done once, with what the code made of the ones before."""
    steps = Steps()

    def code():
        first = steps.replay.step("first")
        return first + steps.replay.step(first * 2)

    ended = outcome(steps.replay.run(code))
    steps.waiting[0].callback(10)
    assert ended == []
    steps.waiting[1].callback(1)
    assert ended == [11]
    assert steps.calls == [("first",), (20,)]


def test_the_code_may_handle_what_a_step_raises():
    """It sees the step's exception, and may go on; otherwise the caller sees it, as it is."""
    steps = Steps()

    def careful():
        try:
            steps.replay.step()
        except LookupError as error:
            return str(error)

    handled, passed_on = outcome(steps.replay.run(careful)), outcome(steps.replay.run(steps.replay.step))
    for waiting in steps.waiting:
        waiting.errback(LookupError("text"))
    assert handled == ["text"]
    assert type(passed_on[0]) is LookupError


def test_code_that_waits_at_the_same_time_is_kept_apart():
    """Two runs of the same code have outcomes of their own, in any order."""
    steps = Steps()
    one, other = outcome(steps.replay.run(steps.replay.step)), outcome(steps.replay.run(steps.replay.step))
    steps.waiting[1].callback("other")
    steps.waiting[0].callback("one")
    assert (one, other) == (["one"], ["other"])


def test_what_the_code_itself_raises_is_the_caller_s_mistake():
    """Any other exception than a step's becomes `InvalidCall`."""
    steps = Replay(lambda: fail(LookupError()))
    ended = outcome(steps.run(lambda: 1 / 0))
    assert isinstance(ended[0], InvalidCall)
    assert isinstance(ended[0].__cause__, ZeroDivisionError)
    with pytest.raises(RuntimeError):
        steps.step()


# What is accepted


@pytest.mark.parametrize(
    ("message", "decoded"),
    [
        (IncomingMessage('{"a": 1}', "application/json", "utf-8", {}), {"a": 1}),
        (IncomingMessage(b"[1]", "application/json", "utf-8", {}), [1]),
        (IncomingMessage(b"1", "application/json", "utf-8", {}), None),
        (IncomingMessage(b"{", "application/json", "utf-8", {}), None),
        (IncomingMessage(b"\x80\x04}.", "application/x-python-serialize", "binary", {}), None),
        (IncomingMessage(b"{}", "application/unknown", "utf-8", {}), None),
        (IncomingMessage(b'{"a": 1}', None, None, {}), None),
    ],
)
def test_an_inbox_decodes_what_is_accepted(message, decoded):
    """JSON mappings and lists here; the rest is dropped."""
    assert Inbox(["json"], "a message", Clock().seconds).decode(message) == decoded


def test_an_inbox_that_is_flooded():
    """Thousands of messages that cannot be read are one line in the log, and a second one a minute later."""
    clock = Clock()
    inbox = Inbox(["json"], "a message", clock.seconds)
    with capturedLogs() as events:
        for number in range(1000):
            body = b"5" if number % 2 else b"{truncated %d" % number
            inbox.decode(IncomingMessage(body, "application/json", "utf-8", {}))
        clock.advance(60)
        inbox.decode(IncomingMessage(b"5", "application/json", "utf-8", {}))
    first, second = (event["text"] for event in events)
    assert first.startswith("a message is dropped: of type 'application/json'")
    assert "it is int, not a mapping or a list (and 999 more since" in second


def test_an_inbox_accepts_what_it_is_told_to():
    """Pickle, where somebody wants it."""
    message = IncomingMessage(b"\x80\x04}.", "application/x-python-serialize", "binary", {})
    assert Inbox(["pickle"], "a message", Clock().seconds).decode(message) == {}
