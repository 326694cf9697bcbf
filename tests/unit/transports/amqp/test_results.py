"""States and results on a reply queue that outlives its connections."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from tests.support.transport import bare_app
from tests.unit.transports.amqp.fakes import FakeChannel, FakeLink, Network, outcomes_of, refused
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    ReplyNotAccepted,
    ReplyTooLarge,
    ReplyUndecodable,
    ResultError,
)
from twistedcelery.transports.amqp.delivery import Delivery
from twistedcelery.transports.amqp.results import (
    ACK_DELAY,
    ACK_EVERY,
    CROWD,
    DEFAULT_EXPIRES,
    MIN_EXPIRES,
    PREFETCH,
    REST,
    AmqpResults,
)
from twistedcelery.transports.connection import CLOSE_TIMEOUT, State
from twistedcelery.transports.decoding import MAX_UNEXPECTED_BYTES, ReplyDecoder


class Receiver:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.states: list[tuple[str, Mapping[str, Any]]] = []
        self.failures: list[tuple[str, ResultError]] = []
        self.resumptions: list[bool] = []

    def state_changed(self, task_id: str, meta: Mapping[str, Any]) -> None:
        self.states.append((task_id, meta))

    def reply_failed(self, task_id: str, error: ResultError) -> None:
        self.failures.append((task_id, error))

    def resumed(self, replies_lost: bool) -> None:
        self.resumptions.append(replies_lost)


class Scene:
    """A result source, its receiver and its network."""

    def __init__(self, quorum: bool = False, **settings: Any) -> None:
        self.network = Network()
        self.receiver = Receiver()
        decoder = ReplyDecoder(bare_app(**settings))
        self.now = 0.0
        self.results = AmqpResults(
            self.network.clock, self.receiver, decoder, "replies-1", quorum, clock=lambda: self.now
        )
        self.connection = self.network.connection(self.results)
        self.results.use(self.connection)
        self.links: list[FakeLink] = []

    def up(self) -> Scene:
        self.connection.start()
        self.links.append(self.network.accept())
        assert self.connection.state is State.UP
        return self

    @property
    def link(self) -> FakeLink:
        return self.links[-1]

    @property
    def channel(self) -> FakeChannel:
        """The one that consumes; on a second link, another one has looked for the queue before."""
        return self.link.channels[-1]

    def advance(self, seconds: float) -> None:
        self.network.clock.advance(seconds)

    def watch(self, task_id: str = "id-1") -> list[Any]:
        """Watch a task that has to wait; the list gets the outcome."""
        watching = self.results.watch(task_id)
        assert watching is not None
        return outcomes_of(watching)

    def deliver(self, tag: int = 1, **fields: Any) -> None:
        """A reply arrives."""
        self.channel.deliver(reply(tag, **fields))

    def come_back(self, link: FakeLink | None = None) -> None:
        while self.connection.state is State.WAITING:
            self.advance(1)
        self.links.append(self.network.accept(link))


def reply(
    tag: int,
    *,
    correlation_id: str | None = "id-1",
    task_id: Any = "id-1",
    body: bytes | None = None,
    content_type: str | None = "application/json",
    headers: Mapping[str, Any] | None = None,
) -> Delivery:
    meta = {"status": "SUCCESS", "result": 5, "traceback": None, "children": [], "task_id": task_id}
    encoded = json.dumps(meta).encode() if body is None else body
    return Delivery(encoded, content_type, "utf-8", headers or {}, correlation_id, tag)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# Watching


def test_the_first_watched_task_connects(scene):
    """Nothing is connected before; the task may be published once replies can be received."""
    assert not scene.results.connected
    assert scene.network.attempts == []
    outcomes = scene.watch()
    assert outcomes == []
    scene.links.append(scene.network.accept())
    assert outcomes == [None]
    assert scene.results.connected


def test_nothing_waits_while_connected(scene):
    """With the queue consumed there is nothing to wait for."""
    scene.up()
    assert scene.results.watch("id-1") is None


def test_the_queue_is_declared_and_consumed(scene):
    """A durable queue that nobody else's disconnecting deletes, and which expires by itself."""
    scene.up()
    (declaration,) = scene.channel.declared
    assert declaration.method == "queue_declare"
    assert declaration.arguments == {
        "queue": "replies-1",
        "durable": True,
        "arguments": {"x-expires": DEFAULT_EXPIRES * 1000},
    }
    assert scene.channel.consumed == [("replies-1", PREFETCH)]
    assert scene.results.reply_to == "replies-1"
    assert scene.results.available


def test_a_queue_on_several_nodes():
    """A quorum queue is declared as one, and expires as well."""
    (declaration,) = Scene(quorum=True).up().channel.declared
    assert declaration.arguments["arguments"] == {
        "x-expires": DEFAULT_EXPIRES * 1000,
        "x-queue-type": "quorum",
    }


@pytest.mark.parametrize(
    ("expires", "seconds"), [(7200, 7200), (1, MIN_EXPIRES), (None, DEFAULT_EXPIRES), (0, DEFAULT_EXPIRES)]
)
def test_the_queue_lives_as_long_as_results_do(expires, seconds):
    """``result_expires`` sets the queue's life, but no less than a broker's restart takes."""
    scene = Scene(result_expires=expires).up()
    assert scene.channel.declared[0].arguments["arguments"]["x-expires"] == seconds * 1000


def test_tasks_wait_until_the_queue_is_consumed(scene):
    """A queue that exists but is not consumed yet is not enough."""
    outcomes = scene.watch()
    link = FakeLink(scene.network.clock, prompt=False)
    scene.network.accept(link)
    channel = FakeChannel(link)
    link.opening[0].callback(channel)
    assert (len(channel.declared), channel.consumed) == (1, [])
    channel.answer()
    assert channel.consumed == [("replies-1", PREFETCH)]
    assert outcomes == []
    channel.consuming.callback(None)
    assert outcomes == [None]


@pytest.mark.parametrize("end", [None, "lost", "closed"])
def test_thousands_of_tasks_are_let_go_over_several_turns(scene, end):
    """In order, with those that come meanwhile last; when the link ends, the rest waits or fails."""
    order: list[str] = []

    def begin(task_id: str) -> list[Any]:
        watching = scene.results.watch(task_id)
        assert watching is not None

        def published(_: None) -> None:
            order.append(task_id)
            scene.now += 0.001
            if task_id == "3":
                # The connection is up; they were first.
                late.extend(begin("late") or [None])

        return outcomes_of(watching.addCallback(published))

    late: list[Any] = []
    outcomes = [begin(str(n)) for n in range(10)]
    scene.links.append(scene.network.accept())
    assert order == ["0", "1", "2", "3"]
    if end == "lost":
        scene.link.lose()
        scene.come_back()
    if end == "closed":
        scene.results.close()
        assert [type(each[0]) for each in outcomes[4:]] == [Disconnected] * 6
        scene.link.lose()
    scene.advance(0)
    assert order == ([*"0123"] if end == "closed" else [*"0123456789", "late"])
    assert scene.network.clock.getDelayedCalls() == []


def test_waiting_ends_when_it_is_cancelled(scene):
    """The error says what it waited for: the reason of the last failure, where there is one."""
    first = scene.results.watch("a")
    second = scene.results.watch("b")
    assert first is not None
    assert second is not None
    first_outcomes, second_outcomes = outcomes_of(first), outcomes_of(second)
    first.cancel()
    assert type(first_outcomes[0]) is BrokerUnavailable
    assert second_outcomes == []
    scene.network.refuse(BrokerUnavailable("connection refused"))
    second.cancel()
    assert "connection refused" in str(second_outcomes[0])
    scene.advance(1)
    scene.network.accept()
    assert len(first_outcomes) == len(second_outcomes) == 1


def test_a_failed_attempt_is_waited_out(scene):
    """Tasks go on waiting while the broker is tried again."""
    outcomes = scene.watch()
    scene.network.refuse()
    assert outcomes == []
    scene.advance(1)
    scene.network.accept()
    assert outcomes == [None]


def test_a_queue_that_cannot_be_declared(scene):
    """A refused declaration is one more failed attempt; the waiting ends with its reason."""
    watching = scene.results.watch("a")
    assert watching is not None
    outcomes = outcomes_of(watching)
    link = FakeLink(scene.network.clock, prompt=False)
    scene.network.accept(link)
    channel = FakeChannel(link)
    link.opening[0].callback(channel)
    channel.answer(refused("406 PRECONDITION_FAILED"))
    assert scene.connection.state is State.WAITING
    scene.advance(0)
    assert link.lost is not None
    watching.cancel()
    assert "406" in str(outcomes[0])


def test_access_refused_is_told_at_once(scene):
    """Wrong credentials fail everybody who waits."""
    first, second = scene.watch("a"), scene.watch("b")
    scene.network.refuse(BrokerAccessRefused("wrong password"))
    assert [type(each[0]) for each in (first, second)] == [BrokerAccessRefused] * 2


def test_whoever_tries_again_at_once_when_access_is_refused(scene):
    """Watching from the errback of a refusal waits for the next attempt; it does not spin."""
    tries: list[Any] = []

    def again(failure: Any) -> None:
        tries.append(failure.type)
        watching = scene.results.watch("again")
        assert watching is not None
        watching.addErrback(again)

    watching = scene.results.watch("first")
    assert watching is not None
    watching.addErrback(again)
    scene.network.refuse(BrokerAccessRefused("wrong password"))
    assert tries == [BrokerAccessRefused]


def test_a_callback_may_cancel_another_who_waits(scene):
    """Giving up inside the callback of the first who waited harms nobody."""
    first, second, third = (scene.results.watch(task_id) for task_id in "abc")
    assert first is not None
    assert second is not None
    assert third is not None
    cancelled, kept = outcomes_of(second), outcomes_of(third)
    first.addCallback(lambda _: second.cancel())
    scene.network.accept()
    assert type(cancelled[0]) is BrokerUnavailable
    assert kept == [None]


def test_forgetting_is_nothing(scene):
    """Nothing is kept by task, so forgetting any id is fine."""
    scene.up()
    scene.results.forget("never heard of")


# Replies


def test_a_reply_is_delivered(scene):
    """The receiver gets the decoded meta under the task's id."""
    scene.up()
    scene.deliver()
    ((task_id, meta),) = scene.receiver.states
    assert task_id == "id-1"
    assert (meta["status"], meta["result"]) == ("SUCCESS", 5)


@pytest.mark.parametrize(
    ("correlation_id", "task_id", "found"),
    [("chosen", "id-1", "id-1"), (None, "id-1", "id-1"), ("id-1", None, "id-1"), ("id-1", [5], "id-1")],
)
def test_whose_reply_it_is(scene, correlation_id, task_id, found):
    """The meta says whose reply it is, as in Celery's client; the correlation id where it does not."""
    scene.up()
    scene.deliver(correlation_id=correlation_id, task_id=task_id)
    assert [each for each, _ in scene.receiver.states] == [found]


def test_a_reply_that_is_nobodys(scene):
    """A reply that names no task is dropped."""
    scene.up()
    scene.deliver(correlation_id=None, task_id=None)
    scene.deliver(correlation_id=None, body=b"nonsense")
    assert (scene.receiver.states, scene.receiver.failures) == ([], [])


def test_a_flood_of_replies_that_are_nobodys(scene):
    """They are two lines in the log, one for each kind, and a minute later a count."""
    scene.up()
    with capturedLogs() as events:
        for tag in range(1, 1001):
            scene.deliver(tag, correlation_id=None, task_id=None)
            scene.deliver(tag, correlation_id=None, body=b"\x80 %d" % tag)
            scene.deliver(tag, correlation_id=f"unknown-{tag}", body=b"nonsense")
        scene.advance(60)
        scene.deliver(1001, correlation_id=None, task_id=None)
    lines = [event["text"] for event in events if event["log_level"] is not LogLevel.debug]
    assert [line.partition(":")[0] for line in lines] == [
        "a reply that names no task is dropped",
        "a reply without a correlation id is dropped",
        "a reply that names no task is dropped (and 999 more since the last such line)",
    ]


def test_a_compressed_reply_that_no_call_waits_for(scene):
    """It is not opened further than a little: anybody can send a thousandth of what it becomes."""
    scene.up()
    scene.results.watch("id-1")
    large = json.dumps({"status": "SUCCESS", "result": "x" * 2 * MAX_UNEXPECTED_BYTES}).encode()
    bomb = {"body": zlib.compress(large), "headers": {"compression": "application/x-gzip"}}
    scene.deliver(1, correlation_id="nobodys", **bomb)
    ((task_id, error),) = scene.receiver.failures
    assert (task_id, type(error)) == ("nobodys", ReplyTooLarge)
    scene.deliver(2, correlation_id="id-1", **bomb)
    assert [each for each, _ in scene.receiver.states] == ["id-1"]
    scene.advance(ACK_DELAY)
    assert scene.channel.acked == [2]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"body": b"{nonsense"}, ReplyUndecodable),
        ({"content_type": "application/x-python-serialize"}, ReplyNotAccepted),
        ({"headers": {"compression": ["?"]}}, ReplyUndecodable),
    ],
)
def test_a_reply_that_cannot_be_read(scene, fields, error):
    """It fails its own task, and is acknowledged: the next reply is read."""
    scene.up()
    scene.deliver(1, **fields)
    ((task_id, failure),) = scene.receiver.failures
    assert (task_id, type(failure)) == ("id-1", error)
    scene.deliver(2, correlation_id="id-2", task_id="id-2")
    assert [each for each, _ in scene.receiver.states] == ["id-2"]
    scene.advance(ACK_DELAY)
    assert scene.channel.acked == [2]


def test_one_acknowledgement_for_all_replies_of_a_while(scene):
    """Replies are acknowledged together, a moment after the first was delivered."""
    scene.up()
    for tag in (1, 2, 3):
        scene.deliver(tag)
        scene.advance(ACK_DELAY / 4)
    assert scene.channel.acked == []
    scene.advance(ACK_DELAY / 4)
    assert scene.channel.acked == [3]
    scene.deliver(4)
    scene.advance(ACK_DELAY)
    assert scene.channel.acked == [3, 4]
    assert scene.network.clock.getDelayedCalls() == []


def test_many_replies_at_once(scene):
    """They are acknowledged before the broker has sent all that it sends ahead, and once only."""
    scene.up()
    for tag in range(1, ACK_EVERY + 1):
        scene.deliver(tag)
    assert scene.channel.acked == [ACK_EVERY]
    assert ACK_EVERY < PREFETCH
    scene.advance(ACK_DELAY)
    assert scene.channel.acked == [ACK_EVERY]


def test_replies_in_a_crowd(scene):
    """While many tasks are watched, the link rests after each read; a few never wait for it."""
    scene.up()
    for number in range(CROWD):
        scene.results.watch(f"id-{number}")
    scene.deliver(1)
    assert scene.channel.rests == []
    scene.results.watch("one more")
    scene.deliver(2)
    assert scene.channel.rests == [REST]
    scene.results.forget("one more")
    scene.results.forget("nobody's")
    scene.deliver(3)
    assert scene.channel.rests == [REST]


def test_replies_of_a_lost_link_are_not_acknowledged_on_the_next(scene):
    """Their tags mean nothing there, and would close the channel."""
    scene.up()
    scene.deliver(7)
    scene.link.lose()
    scene.connection._retry()  # before they would have been
    scene.links.append(scene.network.accept())
    scene.advance(ACK_DELAY)
    assert scene.channel.acked == []


# Losing the link


@pytest.mark.parametrize("how", ["link", "channel", "consumer"])
def test_the_queue_is_consumed_again(scene, how):
    """However it was lost, the same queue is declared and consumed on another link."""
    scene.up()
    if how == "link":
        scene.link.lose()
    elif how == "channel":
        scene.channel.end(refused("504"))
    else:
        scene.channel.cancel_consumer()
    scene.advance(0)
    assert not scene.results.connected
    outcomes = scene.watch()
    scene.come_back()
    assert scene.channel.consumed == [("replies-1", PREFETCH)]
    assert outcomes == [None]
    scene.deliver()
    assert len(scene.receiver.states) == 1


# Closing


def test_closing_deletes_the_queue(scene):
    """The queue is deleted on the way out; its answer is not waited for."""
    scene.up()
    outcomes = outcomes_of(scene.results.close())
    assert scene.channel.deleted == ["replies-1"]
    assert scene.link.closing
    scene.channel.deleting.errback(BrokerUnavailable("closed first"))
    scene.link.lose()
    assert outcomes == [None]
    assert scene.network.clock.getDelayedCalls() == []


@pytest.mark.parametrize("when", ["before", "while connecting", "while waiting"])
def test_closing_without_a_link(scene, when):
    """Whoever waits learns of it, and nothing is left."""
    outcomes: list[Any] = []
    if when != "before":
        outcomes = scene.watch()
        if when == "while waiting":
            scene.network.refuse()
    assert outcomes_of(scene.results.close()) == [None]
    assert all(type(each) is Disconnected for each in outcomes)
    assert len(outcomes) == (when != "before")
    assert scene.network.clock.getDelayedCalls() == []


@pytest.mark.parametrize("is_kept", [True, False])
def test_whether_replies_were_lost(scene, is_kept):
    """After an interruption the receiver learns whether the reply queue is still there, or a new one."""
    scene.up()
    assert scene.receiver.resumptions == []
    scene.link.lose()
    link = FakeLink(scene.network.clock)
    link.missing = set() if is_kept else {"replies-1"}
    scene.come_back(link)
    assert scene.receiver.resumptions == [not is_kept]
    assert scene.channel.consumed == [("replies-1", PREFETCH)]
    assert scene.results.connected
    scene.link.lose()
    scene.come_back()
    assert scene.receiver.resumptions == [not is_kept, False]


def test_closing_while_the_queue_is_declared(scene):
    """A queue that the broker may have by now is waited for, and deleted."""
    outcomes = scene.watch()
    scene.links.append(scene.network.accept(FakeLink(scene.network.clock, prompt=False)))
    channel = FakeChannel(scene.link)
    scene.link.channels.append(channel)
    scene.link.opening[0].callback(channel)
    closed = outcomes_of(scene.results.close())
    assert type(outcomes[0]) is Disconnected
    assert closed == []
    channel.answer()
    channel.consuming.callback(None)
    assert channel.deleted == ["replies-1"]
    channel.deleting.callback(None)
    scene.link.lose()
    assert closed == [None]
    assert scene.network.clock.getDelayedCalls() == []


@pytest.mark.parametrize("end", ["up", "refused", "silence"])
def test_closing_while_the_connection_is_made_again(scene, end):
    """The queue of the last link is deleted over the next one, if there is one within a moment."""
    scene.up()
    scene.link.lose()
    while scene.connection.state is State.WAITING:
        scene.advance(1)
    closed = outcomes_of(scene.results.close())
    assert closed == []
    if end == "up":
        scene.links.append(scene.network.accept())
        assert scene.channel.deleted == ["replies-1"]
        scene.link.lose()
    elif end == "refused":
        scene.network.refuse()
    else:
        scene.advance(CLOSE_TIMEOUT)
    assert closed == [None]
    assert scene.network.clock.getDelayedCalls() == []


def test_closing_twice(scene):
    """The queue is deleted once, and both are told of the end."""
    scene.up()
    first, second = outcomes_of(scene.results.close()), outcomes_of(scene.results.close())
    assert scene.channel.deleted == ["replies-1"]
    scene.link.lose()
    assert (first, second) == ([None], [None])


def test_watching_after_closing(scene):
    """It fails at once, while closing and afterwards."""
    scene.up()
    scene.results.close()
    for _ in range(2):
        watching: Deferred[None] | None = scene.results.watch("id-1")
        assert watching is not None
        assert type(outcomes_of(watching)[0]) is Disconnected
        scene.link.lose()


def test_replies_while_closing_leave_no_timer(scene):
    """What still arrives is delivered and not acknowledged; nothing is left with the reactor."""
    scene.up()
    scene.deliver(1)
    scene.results.close()
    scene.deliver(2)
    scene.link.lose()
    assert scene.network.clock.getDelayedCalls() == []
    assert scene.channel.acked == []
