"""`RedisPublisher`: the fate of each message."""

from __future__ import annotations

import json

import kombu
import pytest
from twisted.internet.defer import CancelledError

from tests.unit.transports.amqp.fakes import Network, message, outcomes_of
from tests.unit.transports.redis.fakes import FakeLink, redis_app
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    EncodeError,
    Overloaded,
    PublishRejected,
    PublishUnconfirmed,
    Unroutable,
)
from twistedcelery.transports.connection import Refused
from twistedcelery.transports.redis.message_writer import MessageWriter
from twistedcelery.transports.redis.publisher import RedisPublisher
from twistedcelery.transports.turns import TURN_BUDGET


class Scene:
    def __init__(self, **options):
        # In real time a turn of a busy machine may be over after any message.
        options = {"clock": lambda: 0.0, **options}
        self.network = Network()
        self.clock = self.network.clock
        connection = redis_app().connection_for_write()
        self.publisher = RedisPublisher(self.clock, 10, lambda ask: MessageWriter(connection, ask), **options)
        self.publisher.use(self.network.connection(self.publisher))

    def publish(self, *arguments, **fields):
        return outcomes_of(self.publisher.publish(message(*arguments, **fields)))

    def up(self):
        return self.network.accept(FakeLink(self.clock))


@pytest.fixture
def scene():
    return Scene()


def tasks(link):
    """The ids of the tasks that were pushed, in order."""
    pushed = [json.loads(command[2]) for command in link.commands if command[0] == "LPUSH"]
    return [one["properties"]["correlation_id"] for one in pushed]


def test_a_message_is_confirmed_by_the_replies(scene):
    """By the last one, declarations included."""
    outcome = scene.publish(declare=(kombu.Queue("celery", kombu.Exchange("celery"), "celery"),))
    assert not scene.publisher.connected
    link = scene.up()
    assert scene.publisher.connected
    assert link.names() == ["MULTI", "SADD", "SADD", "EXEC", "LPUSH"]
    link.answer(b"OK", b"QUEUED", b"QUEUED", [1, 1])
    assert not outcome
    link.answer(1)
    assert outcome == [None]


def test_messages_keep_their_order(scene):
    """Those that waited for the connection, and those that follow."""
    for name in ("a", "b"):
        scene.publish(name)
    link = scene.up()
    scene.publish("c")
    assert tasks(link) == ["a", "b", "c"]


def test_queues_are_declared_once_for_each_link(scene):
    """Another link may lead to a Redis without the bindings."""
    queue = kombu.Queue("celery", kombu.Exchange("celery"), "celery")
    scene.publish("a", declare=(queue,))
    link = scene.up()
    scene.publish("b", declare=(queue,))
    assert link.names().count("SADD") == 2
    link.answer_all()
    link.lose()
    scene.clock.advance(1)
    again = scene.up()
    scene.publish("c", declare=(queue,))
    assert again.names().count("SADD") == 2


def test_a_lost_reply(scene):
    """Such a message may have arrived: it is sent again where that is allowed, before all others."""
    allowed, not_allowed = scene.publish("a", resend=True), scene.publish("b")
    link = scene.up()
    waiting = scene.publish("c", resend=True)
    link.lose()
    scene.publish("d")
    assert isinstance(not_allowed[0], PublishUnconfirmed)
    scene.clock.advance(1)
    again = scene.up()
    assert tasks(again) == ["a", "c", "d"]
    again.answer_all()
    assert allowed == waiting == [None]


def test_a_link_that_is_dead_already_gets_no_message(scene):
    """Where the system knows that the server has closed the connection, the next link is waited for."""
    link = confirmed_link(scene)
    link.is_alive = False
    first, second = scene.publish("a"), scene.publish("b")
    assert tasks(link) == ["first"]
    scene.clock.advance(0)
    assert not first
    assert not second
    scene.clock.advance(1)
    again = scene.up()
    again.answer_all()
    assert tasks(again) == ["a", "b"]
    assert first == second == [None]


def confirmed_link(scene):
    """A link over which a message has gone."""
    scene.publish("first")
    link = scene.up()
    link.answer_all()
    return link


def test_an_error_reply_refuses_its_message_alone(scene):
    """With Redis' own words; what had to be declared for it is declared anew."""
    queue = kombu.Queue("celery", kombu.Exchange("celery"), "celery")
    refused, fine = scene.publish("a", declare=(queue,)), scene.publish("b")
    link = scene.up()
    link.answer(b"OK", b"QUEUED", b"QUEUED", Refused("OOM command not allowed"), 1, 1)
    assert isinstance(refused[0], PublishRejected)
    assert "OOM command not allowed" in str(refused[0])
    assert fine == [None]
    scene.publish("c", declare=(queue,))
    assert link.names().count("SADD") == 4


EXCHANGE = kombu.Exchange("animals", "topic")
BINDINGS = {b"*.pet\x06\x16^[^\\.]+\\.pet$\x06\x16pets", b"#\x06\x16^.*?$\x06\x16all"}


def test_bindings_are_read_for_each_message(scene):
    """Others may bind queues at any time; a message goes to each queue that is bound for its key."""
    outcome = scene.publish("a", exchange="animals", routing_key="cat.pet", declare=(EXCHANGE,))
    link = scene.up()
    assert link.commands == [("SMEMBERS", "_kombu.binding.animals")]
    link.answer(BINDINGS)
    assert sorted(command[1] for command in link.commands[1:]) == ["all", "pets"]
    link.answer_all()
    assert outcome == [None]
    scene.publish("b", exchange="animals", routing_key="stone")
    link.answer(BINDINGS)
    assert [command[1] for command in link.commands[4:]] == ["all"]


def test_new_bindings_are_there_before_they_are_read(scene):
    """A queue that comes with the message gets it."""
    queue = kombu.Queue("pets", EXCHANGE, "*.pet")
    scene.publish("a", exchange="animals", routing_key="cat.pet", declare=(queue,))
    assert scene.up().names() == ["MULTI", "SADD", "SADD", "EXEC", "SMEMBERS"]


@pytest.mark.parametrize("mandatory", [True, False])
def test_no_queue_is_bound(scene, mandatory):
    """That is an error for a message that is ``mandatory``."""
    outcome = scene.publish("a", exchange="animals", routing_key="x", mandatory=mandatory)
    link = scene.up()
    link.answer(set())
    assert link.names() == ["SMEMBERS"]
    assert isinstance(outcome[0], Unroutable) if mandatory else outcome == [None]


def test_a_link_lost_while_bindings_are_read(scene):
    """The message was not sent, and waits for the next link, in its place."""
    asking = scene.publish("a", exchange="animals", routing_key="x")
    link = scene.up()
    link.lose()
    scene.publish("b")
    scene.clock.advance(1)
    again = scene.up()
    again.answer({b"x\x06\x16\x06\x16q"})
    again.answer_all()
    assert asking == [None]
    assert sorted(tasks(again)) == ["a", "b"]


def test_fanout_is_published(scene):
    """On the channel that kombu's workers subscribe to, without a look at bindings."""
    outcome = scene.publish(
        None, exchange="celery.pidbox", routing_key="", declare=(kombu.Exchange("celery.pidbox", "fanout"),)
    )
    link = scene.up()
    ((name, channel, _),) = link.commands
    assert (name, channel) == ("PUBLISH", "/0.celery.pidbox")
    link.answer(0)
    assert outcome == [None]


def test_what_does_not_fit_into_an_envelope(scene):
    """Fails its own message, with nothing sent."""
    scene.publish("a")
    link = scene.up()
    odd = message("b")
    object.__setattr__(odd, "headers", {"x": object()})
    (error,) = outcomes_of(scene.publisher.publish(odd))
    assert isinstance(error, EncodeError)
    assert "not JSON serializable" in str(error)
    assert tasks(link) == ["a"]


def test_time_limits(scene):
    """Not sent in time: `BrokerUnavailable` with the reason. Sent and not answered: unconfirmed."""
    early = scene.publish("a", confirm_timeout=1)
    scene.network.refuse()
    scene.clock.advance(1)
    assert isinstance(early[0], BrokerUnavailable)
    assert "refused" in str(early[0])
    link = scene.up()
    late = scene.publish("b")
    scene.clock.advance(10)
    assert isinstance(late[0], PublishUnconfirmed)
    link.answer_all()
    assert len(late) == 1
    assert tasks(link) == ["b"]


def test_a_wrong_password_fails_all_that_wait(scene):
    """Waiting does not help."""
    waiting = [scene.publish("a"), scene.publish("b")]
    scene.network.refuse(BrokerAccessRefused("WRONGPASS"))
    assert [type(outcome[0]) for outcome in waiting] == [BrokerAccessRefused] * 2


def test_a_burst_that_waited_goes_out_over_several_turns():
    """No turn takes longer than its budget, and what comes meanwhile goes after what waited."""
    times = iter(range(1000))
    scene = Scene(clock=lambda: next(times) * TURN_BUDGET / 2)
    for number in range(5):
        scene.publish(f"{number}")
    link = scene.up()
    assert tasks(link) == ["0"]
    scene.publish("late")
    assert tasks(link) == ["0"]
    scene.clock.advance(0)
    assert tasks(link) == ["0", "1", "2", "3", "4", "late"]


def test_limits_in_number():
    """Few are unanswered at once, the others wait; past a number they are refused."""
    scene = Scene(max_unconfirmed=2, max_waiting=1)
    scene.publish("a")
    link = scene.up()
    scene.publish("b")
    scene.publish("c")
    assert isinstance(scene.publish("d")[0], Overloaded)
    assert tasks(link) == ["a", "b"]
    link.answer(1)
    assert tasks(link) == ["a", "b", "c"]


def test_cancelling(scene):
    """What waits is dropped; what was sent may have arrived."""
    waiting = scene.publisher.publish(message("a"))
    outcome = outcomes_of(waiting)
    waiting.cancel()
    assert isinstance(outcome[0], CancelledError)
    sent = scene.publisher.publish(message("b"))
    outcome = outcomes_of(sent)
    # The attempt was not for the cancelled message alone.
    scene.publisher._connection.start()
    link = scene.up()
    sent.cancel()
    assert isinstance(outcome[0], PublishUnconfirmed)
    assert tasks(link) == ["b"]
    link.answer_all()


@pytest.mark.parametrize("stage", ["connecting", "sent", "asking"])
def test_closing(scene, stage):
    """Whatever is unfinished fails, no timer is left, and late answers disturb nobody."""
    outcome = scene.publish("a", exchange="animals" if stage == "asking" else "")
    if stage != "connecting":
        link = scene.up()
    closed = outcomes_of(scene.publisher.close())
    assert isinstance(outcome[0], Disconnected)
    if stage != "connecting":
        link.answer_all()
    scene.clock.advance(0)
    assert closed == [None]
    assert isinstance(scene.publish("b")[0], Disconnected)
    assert not scene.clock.getDelayedCalls()


def test_declarations_of_a_message_that_was_not_sent(scene):
    """The next message that needs the queue declares it: nothing of the first one went out."""
    queue = kombu.Queue("celery", kombu.Exchange("celery"), "celery")
    link = confirmed_link(scene)
    odd = message("a", declare=(queue,))
    object.__setattr__(odd, "headers", {"x": object()})
    assert isinstance(outcomes_of(scene.publisher.publish(odd))[0], EncodeError)
    scene.publish("b", declare=(queue,))
    assert link.names() == ["LPUSH", "MULTI", "SADD", "SADD", "EXEC", "LPUSH"]


@pytest.mark.parametrize("mandatory", [True, False])
def test_a_message_without_a_route_makes_room(mandatory):
    """Those that wait behind it go out, though nothing else is confirmed."""
    scene = Scene(max_unconfirmed=1)
    link = confirmed_link(scene)
    scene.publish("a", exchange="animals", routing_key="x", mandatory=mandatory)
    scene.publish("b")
    assert tasks(link) == ["first"]
    link.answer(set())
    assert tasks(link) == ["first", "b"]
