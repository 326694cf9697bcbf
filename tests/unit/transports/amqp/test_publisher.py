"""The way of one message: waiting, declaring, sent, confirmed, and every way in which that can end."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
from kombu import Exchange, Queue
from twisted.internet.defer import CancelledError, Deferred

from tests.unit.transports.amqp.fakes import FakeChannel, FakeLink, Network, message, outcomes_of, refused
from twistedcelery.encoding.message import OutgoingMessage
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
from twistedcelery.transports.amqp.declarer import MAX_REMEMBERED
from twistedcelery.transports.amqp.publisher import AmqpPublisher
from twistedcelery.transports.connection import Refused, State


class Scene:
    """A publisher and its network."""

    def __init__(self, **limits: int) -> None:
        self.network = Network()
        self.now = 0.0
        self.publisher = AmqpPublisher(self.network.clock, 10.0, clock=lambda: self.now, **limits)
        self.connection = self.network.connection(self.publisher)
        self.publisher.use(self.connection)
        self.links: list[FakeLink] = []

    def up(self, prompt: bool = True) -> Scene:
        """Bring the connection up; with ``prompt=False`` the declarations are answered by the test."""
        self.connection.start()
        self.links.append(self.network.accept())
        assert self.connection.state is State.UP
        self.links[-1].prompt = prompt
        return self

    @property
    def link(self) -> FakeLink:
        return self.links[-1]

    @property
    def channel(self) -> FakeChannel:
        """The publishing channel of the present link."""
        return self.link.channels[0]

    @property
    def declaring(self) -> FakeChannel:
        """The latest channel that declares."""
        return self.link.channels[-1]

    def publish(self, outgoing: OutgoingMessage) -> list[Any]:
        """Publish; the list gets the outcome."""
        return outcomes_of(self.publisher.publish(outgoing))

    def publish_many(self, *task_ids: str, **fields: Any) -> list[list[Any]]:
        return [self.publish(message(task_id, **fields)) for task_id in task_ids]

    def written(self) -> list[str | None]:
        """The ids of what was written to the present link."""
        return [each.task_id for each in self.channel.published]

    def advance(self, seconds: float) -> None:
        self.network.clock.advance(seconds)

    def lose(self, reason: BrokerUnavailable | None = None) -> None:
        self.link.lose(reason)

    def come_back(self) -> None:
        """After `lose`: the next attempt is made, and succeeds."""
        while self.connection.state is State.WAITING:
            self.advance(1)
        self.links.append(self.network.accept())


@pytest.fixture
def scene() -> Scene:
    return Scene()


def declared_names(channel: FakeChannel) -> list[str]:
    """``queue_declare celery`` for each declaration."""
    return [
        f"{each.method} {each.arguments.get('queue', each.arguments.get('exchange'))}"
        for each in channel.declared
    ]


# Connecting


def test_the_first_message_connects(scene):
    """Nothing is connected before, and the message goes out when the link is up."""
    assert not scene.publisher.connected
    assert scene.network.attempts == []
    outcomes = scene.publish(message())
    assert len(scene.network.attempts) == 1
    scene.links.append(scene.network.accept())
    assert scene.publisher.connected
    assert scene.written() == ["id-1"]
    assert outcomes == []
    scene.channel.confirm(1, False, True)
    assert outcomes == [None]


def test_what_waits_goes_out_in_order(scene):
    """Messages from before the link came up are sent first to last."""
    scene.publish_many("a", "b", "c")
    scene.links.append(scene.network.accept())
    assert scene.written() == ["a", "b", "c"]
    scene.publish_many("d")
    assert scene.written() == ["a", "b", "c", "d"]


def test_nothing_is_sent_before_the_channel_confirms(scene):
    """A channel that is not in confirm mode yet is not used."""
    scene.publish(message())
    scene.links.append(scene.network.accept(FakeLink(scene.network.clock, prompt=False)))
    channel = FakeChannel(scene.link)
    scene.link.channels.append(channel)
    scene.link.opening[0].callback(channel)
    assert channel.published == []
    channel.confirming.callback(None)
    assert len(channel.published) == 1


# Confirmations


def test_each_confirmation_is_its_messages(scene):
    """Tags are counted from 1; confirmations may come out of order."""
    scene.up()
    a, b, c = scene.publish_many("a", "b", "c")
    scene.channel.confirm(2, False, True)
    assert (a, b, c) == ([], [None], [])
    scene.channel.confirm(3, False, True)
    scene.channel.confirm(1, False, True)
    assert (a, b, c) == ([None], [None], [None])


def test_one_confirmation_for_many(scene):
    """``multiple`` confirms everything up to its tag, and nothing after it."""
    scene.up()
    a, b, c = scene.publish_many("a", "b", "c")
    scene.channel.confirm(2, True, True)
    assert (a, b, c) == ([None], [None], [])


@pytest.mark.parametrize("multiple", [False, True])
def test_nack(scene, multiple):
    """A message that the broker refuses fails with `PublishRejected`."""
    scene.up()
    (outcomes,) = scene.publish_many("a")
    scene.channel.confirm(1, multiple, False)
    assert type(outcomes[0]) is PublishRejected
    assert "nack" in str(outcomes[0])


def test_confirmations_of_nothing_are_ignored(scene):
    """A tag that is unknown, or came twice, changes nothing."""
    scene.up()
    (outcomes,) = scene.publish_many("a")
    scene.channel.confirm(7, False, True)
    assert outcomes == []
    scene.channel.confirm(1, False, True)
    scene.channel.confirm(1, False, False)
    scene.channel.confirm(1, True, False)
    assert outcomes == [None]


def test_tags_start_anew_with_each_link(scene):
    """The first message on a new link has tag 1 again."""
    scene.up()
    scene.publish_many("a", "b")
    scene.channel.confirm(2, True, True)
    scene.lose()
    scene.come_back()
    (outcomes,) = scene.publish_many("c")
    scene.channel.confirm(1, False, True)
    assert outcomes == [None]


# Returned messages


def test_a_returned_message_is_unroutable(scene):
    """A message that is returned, and then confirmed, reached no queue."""
    scene.up()
    a, b = scene.publish_many("a", "b")
    scene.channel.give_back("a", "", "celery", "312 NO_ROUTE")
    assert (a, b) == ([], [])
    scene.channel.confirm(2, True, True)
    assert type(a[0]) is Unroutable
    assert "312 NO_ROUTE" in str(a[0])
    assert b == [None]


def test_returns_of_one_task_id_used_twice(scene):
    """Of two messages with one id, each gets its own fate."""
    scene.up()
    a = scene.publish(message("same", routing_key="nobody"))
    b = scene.publish(message("same", routing_key="celery"))
    scene.channel.give_back("same", "", "nobody", "312 NO_ROUTE")
    scene.channel.confirm(1, False, True)
    scene.channel.confirm(2, False, True)
    assert type(a[0]) is Unroutable
    assert b == [None]


def test_returns_of_one_message_sent_twice(scene):
    """Two equal messages that both come back are both unroutable."""
    scene.up()
    a, b = scene.publish_many("same", "same")
    for _ in range(2):
        scene.channel.give_back("same", "", "celery", "312 NO_ROUTE")
    scene.channel.confirm(2, True, True)
    assert [type(each[0]) for each in (a, b)] == [Unroutable, Unroutable]


def test_a_message_that_need_not_find_a_queue(scene):
    """A return, whatever it means, fails nobody who did not ask for it."""
    scene.up()
    outcomes = scene.publish(message(None, mandatory=False))
    scene.channel.give_back(None, "", "celery", "312 NO_ROUTE")
    scene.channel.give_back("stranger", "", "celery", "312 NO_ROUTE")
    scene.channel.confirm(1, False, True)
    assert outcomes == [None]


# The window


def test_the_window(scene):
    """No more than so many messages are sent and unconfirmed; each confirmation lets one more out."""
    scene = Scene(max_unconfirmed=2).up()
    outcomes = scene.publish_many("a", "b", "c", "d")
    assert scene.written() == ["a", "b"]
    scene.channel.confirm(1, False, True)
    assert scene.written() == ["a", "b", "c"]
    scene.channel.confirm(3, True, True)
    assert scene.written() == ["a", "b", "c", "d"]
    assert outcomes == [[None], [None], [None], []]


def test_nobody_overtakes_what_waits(scene):
    """A message published while others wait stands in line, also when there is room just then."""
    scene = Scene(max_unconfirmed=1).up()
    scene.publish_many("a", "b")
    scene.publisher.publish(message("c"))
    scene.channel.confirm(1, False, True)
    scene.channel.confirm(2, False, True)
    assert scene.written() == ["a", "b", "c"]


def test_messages_that_wait_for_a_declaration_count(scene):
    """A burst for a queue that is being declared does not all go out at once when it is."""
    scene = Scene(max_unconfirmed=2).up(prompt=False)
    queue = Queue("new", Exchange("new"), "new")
    for task_id in ("a", "b", "c"):
        scene.publish(message(task_id, declare=(queue,)))
    scene.link.prompt = True
    scene.link.channels.append(FakeChannel(scene.link))
    scene.link.opening[0].callback(scene.declaring)
    assert scene.written() == ["a", "b"]
    scene.channel.confirm(1, False, True)
    assert scene.written() == ["a", "b", "c"]


def test_overloaded(scene):
    """When too many wait, the next fails at once; what waits is not disturbed."""
    scene = Scene(max_waiting=2)
    waiting = scene.publish_many("a", "b")
    assert [type(each[0]) for each in scene.publish_many("c", "d")] == [Overloaded, Overloaded]
    scene.links.append(scene.network.accept())
    assert scene.written() == ["a", "b"]
    assert waiting == [[], []]
    scene.publish_many("e")
    assert scene.written() == ["a", "b", "e"]


def test_overloaded_by_bytes(scene):
    """Large messages may wait as long as they are together below the limit; each that leaves makes room."""
    scene = Scene(max_waiting_bytes=10, max_unconfirmed=1)
    kept = [scene.publisher.publish(message(task_id, body=b"12345")) for task_id in ("a", "b")]
    outcomes = [outcomes_of(each) for each in kept]
    assert type(scene.publish(message("c"))[0]) is Overloaded
    kept[1].cancel()
    large = scene.publish(message("d", body=b"x" * 100))
    assert type(scene.publish(message("e"))[0]) is Overloaded
    scene.links.append(scene.network.accept())
    scene.channel.confirm(1, False, True)
    assert scene.written() == ["a", "d"]
    assert outcomes[0] == [None]
    assert large == []
    scene.lose()
    assert type(large[0]) is PublishUnconfirmed
    again = scene.publish(message("f", body=b"x" * 10))
    scene.advance(10)
    assert type(again[0]) is BrokerUnavailable
    assert scene.publish(message("g")) == []


@pytest.mark.parametrize("how", ["expired", "cancelled"])
def test_what_ended_does_not_overload(scene, how):
    """Messages that expired or were cancelled while there was no broker make room for others."""
    scene = Scene(max_waiting=2)
    for _ in range(5):
        waiting = [scene.publisher.publish(message()) for _ in range(2)]
        outcomes = [outcomes_of(each) for each in waiting]
        if how == "expired":
            scene.advance(10)
        else:
            for each in waiting:
                each.cancel()
        expected = BrokerUnavailable if how == "expired" else CancelledError
        assert [type(each[0]) for each in outcomes] == [expected] * 2


class Slow(FakeChannel):
    """A channel on which each message takes a millisecond to write."""

    scene: Scene

    def publish(self, message: OutgoingMessage) -> None:
        super().publish(message)
        self.scene.now += 0.001


def slow_link(scene: Scene) -> None:
    """The next link's publishing channel is slow."""
    link = FakeLink(scene.network.clock, prompt=False)
    scene.links.append(scene.network.accept(link))
    channel = Slow(link)
    channel.scene = scene
    link.channels.append(channel)
    link.prompt = True
    link.opening[0].callback(channel)


def turn(scene: Scene) -> None:
    """Run what is due now, and not what that makes due."""
    clock = scene.network.clock
    for call in [call for call in clock.getDelayedCalls() if call.getTime() <= clock.seconds()]:
        clock.calls.remove(call)
        call.called = 1
        call.func(*call.args, **call.kw)


def test_what_waited_is_sent_over_several_turns(scene):
    """A link that comes up to many waiting messages does not hold up the reactor; order is kept."""
    outcomes = scene.publish_many(*"abcdefghij")
    slow_link(scene)
    assert scene.written() == list("abcd")
    scene.publish_many("k")
    turn(scene)
    assert scene.written() == list("abcdefgh")
    turn(scene)
    assert scene.written() == list("abcdefghijk")
    scene.channel.confirm(10, True, True)
    assert outcomes == [[None]] * 10
    assert [call for call in scene.network.clock.getDelayedCalls() if call.getTime() == 0] == []


@pytest.mark.parametrize("end", ["close", "lose"])
def test_a_link_that_ends_while_what_waited_is_sent(scene, end):
    """The rest fails when it is closed, or waits for the next link; no turn is left over."""
    outcomes = scene.publish_many(*"abcdef")
    slow_link(scene)
    if end == "close":
        scene.publisher.close()
        scene.lose()
        assert [type(each[0]) for each in outcomes] == [Disconnected] * 6
        assert scene.network.clock.getDelayedCalls() == []
    else:
        scene.lose()
        turn(scene)
        scene.come_back()
        assert scene.written() == ["e", "f"]


# Time limits


def test_a_message_that_was_not_sent_in_time(scene):
    """Without a link the message fails after its time, with the reason, and is never sent."""
    outcomes = scene.publish(message())
    scene.network.refuse(BrokerUnavailable("connection refused"))
    scene.advance(9.99)
    assert outcomes == []
    scene.advance(0.01)
    assert type(outcomes[0]) is BrokerUnavailable
    assert "connection refused" in str(outcomes[0])
    assert "id-1" in str(outcomes[0])
    while scene.connection.state is not State.CONNECTING:
        scene.advance(1)
    scene.links.append(scene.network.accept())
    assert scene.written() == []


def test_a_message_that_was_not_confirmed_in_time(scene):
    """A message that was sent may or may not have arrived."""
    scene.up()
    outcomes = scene.publish(message())
    scene.advance(10)
    assert type(outcomes[0]) is PublishUnconfirmed
    scene.channel.confirm(1, False, True)


def test_the_messages_own_limit_counts(scene):
    """``confirm_timeout`` replaces the publisher's default, either way; nothing is also a limit."""
    scene.up()
    soon = scene.publish(message("a", confirm_timeout=2))
    late = scene.publish(message("b", confirm_timeout=20))
    now = scene.publish(message("c", confirm_timeout=0))
    scene.advance(0)
    assert (soon, late, len(now)) == ([], [], 1)
    scene.advance(2)
    assert (len(soon), late) == (1, [])
    scene.advance(18)
    assert len(late) == 1


def test_expired_messages_keep_their_place_in_the_window(scene):
    """What the broker has not confirmed is still on its way, whether or not anybody waits for it."""
    scene = Scene(max_unconfirmed=1).up()
    (expired,) = scene.publish_many("a", confirm_timeout=2)
    scene.advance(2)
    assert type(expired[0]) is PublishUnconfirmed
    scene.publish_many("b")
    assert scene.written() == ["a"]
    scene.channel.confirm(1, False, True)
    assert scene.written() == ["a", "b"]


def test_a_silent_broker(scene):
    """A broker under an alarm takes no messages: those that wait say so."""
    scene = Scene(max_unconfirmed=1).up()
    sent, waiting = scene.publish_many("a", "b")
    scene.advance(10)
    assert type(sent[0]) is PublishUnconfirmed
    assert type(waiting[0]) is BrokerUnavailable
    assert "takes no messages" in str(waiting[0])


# Alarms


def test_nothing_is_written_while_the_broker_blocks_the_link(scene):
    """Messages wait unsent, in order, and what they need is not declared; then they go out."""
    scene.up()
    scene.publish_many("before")
    scene.link.block("low on memory")
    assert not scene.publisher.connected
    outcomes = scene.publish_many("a", "b")
    scene.publish(message("c", exchange="somewhere"))
    scene.channel.confirm(1, False, True)
    assert scene.written() == ["before"]
    assert len(scene.link.channels) == 1
    scene.link.unblock()
    assert scene.publisher.connected
    assert scene.written() == ["before", "a", "b", "c"]
    assert outcomes == [[], []]


def test_a_message_that_waits_for_the_end_of_an_alarm(scene):
    """It can be withdrawn; when its time is up it was certainly not sent, and the error says why."""
    scene.up()
    scene.link.block("low on disk")
    withdrawn = scene.publisher.publish(message("withdrawn"))
    outcomes = outcomes_of(withdrawn)
    expired = scene.publish(message("expired"))
    withdrawn.cancel()
    assert [type(each) for each in outcomes] == [CancelledError]
    scene.advance(10)
    assert type(expired[0]) is BrokerUnavailable
    assert "out of memory or disk space (it says 'low on disk')" in str(expired[0])
    scene.link.unblock()
    assert scene.written() == []


def test_an_alarm_ends_with_its_link(scene):
    """The next link takes messages until it is blocked itself."""
    scene.up()
    scene.link.block("low on memory")
    (waiting,) = scene.publish_many("a")
    scene.lose()
    scene.come_back()
    assert scene.publisher.connected
    assert scene.written() == ["a"]
    assert waiting == []


# Silence


def test_confirmations_that_stop_coming_end_the_link(scene):
    """After the time allowed for publishing it is given up, and what comes next waits for another link."""
    scene.up()
    scene.publish_many("a")
    scene.advance(4)
    scene.channel.confirm(1, False, True)
    scene.advance(5)
    (unconfirmed,) = scene.publish_many("b")
    scene.advance(9.9)
    assert scene.publisher.connected
    scene.advance(0.1)
    assert scene.link.given_up == "the broker has confirmed nothing for 10 s"
    (waiting,) = scene.publish_many("c")
    scene.advance(0)
    assert not scene.publisher.connected
    assert scene.written() == ["a", "b"]
    assert type(unconfirmed[0]) is PublishUnconfirmed
    scene.come_back()
    assert scene.written() == ["c"]
    assert waiting == []


def test_confirmations_that_come_slowly_keep_the_link(scene):
    """As long as one comes now and then, however late, the network is not silent."""
    scene.up()
    scene.publish_many(*"abcdef")
    for tag in range(1, 6):
        scene.advance(8)
        scene.channel.confirm(tag, False, True)
    assert not hasattr(scene.link, "given_up")
    scene.advance(10)
    assert hasattr(scene.link, "given_up")


def test_a_message_with_more_time_keeps_the_link(scene):
    """What was given a minute may take a minute."""
    scene.up()
    scene.publish_many("large", confirm_timeout=60)
    scene.advance(59)
    assert not hasattr(scene.link, "given_up")
    scene.advance(1)
    assert hasattr(scene.link, "given_up")


def test_a_blocked_link_is_not_given_up(scene):
    """Under an alarm the broker confirms nothing; its time begins when the alarm ends."""
    scene.up()
    scene.publish_many("a")
    scene.link.block("low on memory")
    scene.advance(100)
    scene.link.unblock()
    scene.advance(9)
    assert not hasattr(scene.link, "given_up")
    scene.advance(1)
    assert hasattr(scene.link, "given_up")


def test_silence_means_nothing_while_confirmations_are_waited_for(scene):
    """Then they have a time limit of their own, and under an alarm the broker reads nothing."""
    scene.up()
    assert not scene.link.is_silence_allowed()
    scene.publish_many("a")
    assert scene.link.is_silence_allowed()
    scene.channel.confirm(1, False, True)
    assert not scene.link.is_silence_allowed()
    scene.link.block("low on memory")
    assert scene.link.is_silence_allowed()


# Losing the link


def test_what_was_not_sent_waits_for_the_next_link(scene):
    """A lost link costs a message that waited nothing but time."""
    scene = Scene(max_unconfirmed=1).up()
    _, waiting = scene.publish_many("a", "b")
    scene.lose()
    assert waiting == []
    scene.come_back()
    assert scene.written() == ["b"]
    scene.channel.confirm(1, False, True)
    assert waiting == [None]


def test_what_was_sent_and_not_confirmed_is_unconfirmed(scene):
    """Without leave to send twice the message fails, at once, with the reason."""
    scene.up()
    (outcomes,) = scene.publish_many("a")
    scene.lose(BrokerUnavailable("reset by peer"))
    assert type(outcomes[0]) is PublishUnconfirmed
    assert "reset by peer" in str(outcomes[0])
    assert "retry=True" in str(outcomes[0])
    scene.come_back()
    assert scene.written() == []


@pytest.mark.parametrize("end", [None, "close"])
def test_thousands_of_unconfirmed_messages_fail_over_several_turns(scene, end):
    """A lost link does not hold up the reactor; closing ends them all at once."""
    scene.up()
    failed: list[str] = []
    for task_id in "abcdefghij":

        def fail(_: Any, task_id: str = task_id) -> None:
            failed.append(task_id)
            scene.now += 0.001

        scene.publisher.publish(message(task_id)).addErrback(fail)
    scene.lose()
    assert failed == list("abcd")
    if end == "close":
        scene.publisher.close()
        assert scene.network.clock.getDelayedCalls() == []
    else:
        turn(scene)
        assert failed == list("abcdefgh")
        turn(scene)
    assert failed == list("abcdefghij")


def test_what_may_be_sent_twice_is(scene):
    """With leave it goes out again, first, in its old order, under the same id."""
    scene = Scene(max_unconfirmed=2).up()
    outcomes = scene.publish_many("a", "b", "c", resend=True)
    scene.lose()
    assert outcomes == [[], [], []]
    scene.come_back()
    assert scene.written() == ["a", "b"]
    scene.channel.confirm(2, True, True)
    assert scene.written() == ["a", "b", "c"]
    scene.channel.confirm(3, True, True)
    assert outcomes == [[None], [None], [None]]


@pytest.mark.parametrize("how", ["expired", "cancelled", "refused"])
def test_what_was_sent_once_may_have_arrived(scene, how):
    """A message that waits to be sent again, and is not, may be a task: it is unconfirmed, not unsent."""
    scene.up()
    publication = scene.publisher.publish(message(resend=True))
    outcomes = outcomes_of(publication)
    scene.lose()
    if how == "expired":
        scene.advance(10)
    elif how == "cancelled":
        publication.cancel()
    else:
        scene.advance(1)
        scene.network.refuse(BrokerAccessRefused("wrong password"))
    assert type(outcomes[0]) is PublishUnconfirmed


def test_what_ended_is_not_sent_again(scene):
    """A message that expired or was cancelled before the link was lost stays where it is."""
    scene.up()
    publications = [scene.publisher.publish(message(task_id, resend=True)) for task_id in ("a", "b")]
    outcomes = [outcomes_of(publication) for publication in publications]
    publications[0].cancel()
    scene.advance(10)
    assert [type(each[0]) for each in outcomes] == [PublishUnconfirmed] * 2
    scene.lose()
    scene.come_back()
    assert scene.written() == []


def test_access_refused_fails_what_waits(scene):
    """Wrong credentials are told at once to everybody who waits, and later messages may still try."""
    first = scene.publish(message("a"))
    scene.network.refuse(BrokerAccessRefused("wrong password"))
    assert type(first[0]) is BrokerAccessRefused
    later = scene.publish(message("b"))
    assert later == []
    scene.advance(1)
    scene.links.append(scene.network.accept())
    assert scene.written() == ["b"]


@pytest.mark.parametrize("error", [BrokerUnavailable("closed"), PublishRejected("404 NOT_FOUND")])
def test_a_publishing_channel_that_closes_takes_its_link_with_it(scene, error):
    """Nothing more is written to it; what comes meanwhile waits for the next link."""
    scene.up()
    (unconfirmed,) = scene.publish_many("a")
    scene.channel.end(error)
    assert scene.link.aborted
    (waiting,) = scene.publish_many("b")
    assert (unconfirmed, waiting) == ([], [])
    scene.advance(0)
    assert type(unconfirmed[0]) is PublishUnconfirmed
    scene.come_back()
    assert scene.written() == ["b"]


def test_a_channel_that_turns_out_to_be_closed(scene):
    """Messages that cannot be written since the link is ending wait for the next one, in order."""
    scene = Scene(max_unconfirmed=1).up()
    outcomes = scene.publish_many("a", "b", "c")
    scene.channel.refuse = BrokerUnavailable("closing")
    scene.channel.confirm(1, False, True)
    assert outcomes == [[None], [], []]
    scene.lose()
    scene.come_back()
    scene.channel.confirm(1, False, True)
    assert scene.written() == ["b", "c"]


def test_a_message_without_amqp_form_fails_alone(scene):
    """What cannot be written fails its caller, takes no tag, and disturbs nobody."""
    scene.up()
    scene.channel.refuse = EncodeError("no AMQP form")
    (bad,) = scene.publish_many("bad")
    assert type(bad[0]) is EncodeError
    scene.channel.refuse = None
    (good,) = scene.publish_many("good")
    scene.channel.confirm(1, False, True)
    assert good == [None]


# Declaring

QUEUE = Queue("new", Exchange("new", "topic"), "new.#")
OTHER = Queue("other", Exchange("other"), "other")


def test_what_a_message_needs_is_declared_first(scene):
    """Exchange, queue and binding are declared on a channel of their own, once for each link."""
    scene.up()
    scene.publish_many("a", "b", exchange="new", declare=(QUEUE,))
    assert declared_names(scene.declaring) == ["exchange_declare new", "queue_declare new", "queue_bind new"]
    assert scene.declaring is not scene.channel
    assert scene.written() == ["a", "b"]
    scene.lose()
    scene.come_back()
    scene.publish_many("c", exchange="new", declare=(QUEUE,))
    assert len(scene.declaring.declared) == 3


def test_an_exchange_that_nobody_declares_is_checked(scene):
    """Publishing to an exchange that does not exist would close the channel: it is looked for, once."""
    scene.up()
    scene.publish_many("a", "b", exchange="somewhere")
    (check,) = scene.declaring.declared
    assert (check.method, check.arguments["passive"]) == ("exchange_declare", True)
    assert scene.written() == ["a", "b"]


def test_messages_for_what_is_declared_overtake(scene):
    """A message that needs nothing does not wait for one whose queue is being declared."""
    scene.up(prompt=False)
    scene.publish_many("a", declare=(QUEUE,))
    scene.publish_many("b")
    assert scene.written() == ["b"]


def test_messages_for_one_queue_keep_their_order(scene):
    """All that wait for one declaration go out in the order in which they were published."""
    scene.up(prompt=False)
    outcomes = scene.publish_many("a", "b", declare=(QUEUE,), exchange="new")
    scene.link.channels.append(FakeChannel(scene.link))
    scene.link.opening[0].callback(scene.declaring)
    for _ in range(3):
        assert scene.written() == []
        scene.declaring.answer()
    assert scene.written() == ["a", "b"]
    assert outcomes == [[], []]


def test_a_refused_declaration_fails_its_messages_alone(scene):
    """A queue that exists with other arguments fails what needs it; the next is declared on a new channel."""
    scene.up(prompt=False)
    bad = scene.publish(message("bad", declare=(QUEUE,)))
    good = scene.publish(message("good", declare=(OTHER,)))
    scene.link.channels.append(FakeChannel(scene.link))
    scene.link.opening[0].callback(scene.declaring)
    first = scene.declaring
    scene.link.prompt = True
    first.answer(refused("406 PRECONDITION_FAILED"))
    assert type(bad[0]) is PublishRejected
    assert "406" in str(bad[0])
    assert "bad" in str(bad[0])
    assert isinstance(bad[0].__cause__, Refused)
    assert scene.declaring is not first
    assert scene.written() == ["good"]
    scene.channel.confirm(1, False, True)
    assert good == [None]
    assert scene.connection.state is State.UP


def test_a_declaration_without_amqp_form(scene):
    """A queue whose arguments AMQP cannot carry fails its message, and the channel goes on."""
    scene.up(prompt=False)
    bad, _ = scene.publish_many("bad", "good", declare=(QUEUE,))
    scene.link.channels.append(FakeChannel(scene.link))
    scene.link.opening[0].callback(scene.declaring)
    scene.declaring.unanswered.pop(0).errback(EncodeError("no AMQP form"))
    assert type(bad[0]) is PublishRejected
    assert isinstance(bad[0].__cause__, EncodeError)
    scene.link.prompt = True
    scene.declaring.answer()
    assert scene.written() == ["good"]
    assert len(scene.link.channels) == 2


def test_a_broken_entity_fails_its_message_alone(scene):
    """What kombu's own code raises for an entity belongs to the message that brought it."""

    class Broken(Queue):
        def declare(self, *_args: Any, **_options: Any) -> None:
            raise RuntimeError("broken")

    scene.up()
    (bad,) = scene.publish_many("bad", declare=(Broken("q"),))
    assert type(bad[0]) is PublishRejected
    scene.publish_many("good", declare=(QUEUE,))
    assert scene.written() == ["good"]


@pytest.mark.parametrize("when", ["opening the channel", "declaring"])
def test_a_link_lost_while_declaring(scene, when):
    """What waits for a declaration waits for the next link, before what came later, and is sent once."""
    scene.up(prompt=False)
    outcomes = scene.publish_many("a", "b", declare=(QUEUE,))
    if when == "declaring":
        scene.link.channels.append(FakeChannel(scene.link))
        scene.link.opening[0].callback(scene.declaring)
    scene.lose()
    scene.publish_many("c", declare=(QUEUE,))
    assert outcomes == [[], []]
    scene.come_back()
    assert scene.written() == ["a", "b", "c"]


def test_a_declaring_channel_that_ends_before_its_link(scene):
    """Between the end of the channel and that of the link nothing is tried, and nothing is lost."""
    scene.up(prompt=False)
    (outcomes,) = scene.publish_many("a", declare=(QUEUE,))
    scene.link.channels.append(FakeChannel(scene.link))
    scene.link.opening[0].callback(scene.declaring)
    scene.declaring.end(BrokerUnavailable("lost"))
    assert outcomes == []
    assert scene.written() == []
    scene.lose()
    scene.come_back()
    assert scene.written() == ["a"]


@pytest.mark.parametrize("how", ["expired", "cancelled"])
def test_a_message_that_ends_while_it_is_declared_for(scene, how):
    """It was not sent, it is not sent afterwards, and its declaration stands."""
    scene.up(prompt=False)
    publication = scene.publisher.publish(message("a", declare=(QUEUE,)))
    outcomes = outcomes_of(publication)
    if how == "expired":
        scene.advance(10)
        assert type(outcomes[0]) is BrokerUnavailable
    else:
        publication.cancel()
        assert type(outcomes[0]) is CancelledError
    scene.link.channels.append(FakeChannel(scene.link))
    scene.link.prompt = True
    scene.link.opening[0].callback(scene.declaring)
    assert scene.written() == []
    scene.publish_many("b", declare=(QUEUE,))
    assert len(scene.declaring.declared) == 3
    assert scene.written() == ["b"]


def test_what_cannot_be_remembered_is_declared_each_time(scene):
    """A queue that deletes itself may be gone: it is declared for every message."""
    scene.up()
    vanishing = Queue("vanishing", Exchange("new"), "key", auto_delete=True)
    scene.publish_many("a", "b", declare=(vanishing,))
    assert declared_names(scene.declaring).count("queue_declare vanishing") == 2


def test_declarations_that_are_remembered_are_bounded(scene):
    """Whoever makes a new ``Queue`` for each call does not fill the memory."""
    scene.up()
    freed = []
    for number in range(MAX_REMEMBERED + 50):
        queue = Queue("q", Exchange("new"), "key")
        freed.append(weakref.ref(queue))
        outcomes = scene.publish(message(declare=(queue,)))
        scene.channel.confirm(number + 1, False, True)
        assert outcomes == [None]
        scene.channel.published.clear()
        scene.declaring.declared.clear()
        del queue
    scene.publisher._deadlines.stop()
    gc.collect()
    assert sum(reference() is not None for reference in freed) <= MAX_REMEMBERED


# Cancelling


def test_cancel_before_it_was_sent(scene):
    """A message that waits is dropped, and never sent."""
    publication = scene.publisher.publish(message("a"))
    other = scene.publish(message("b"))
    outcomes = outcomes_of(publication)
    publication.cancel()
    assert type(outcomes[0]) is CancelledError
    scene.links.append(scene.network.accept())
    assert scene.written() == ["b"]
    assert other == []


def test_cancel_after_it_was_sent(scene):
    """A message on its way cannot be called back: the error says so, and its confirmation is ignored."""
    scene.up()
    publication = scene.publisher.publish(message())
    outcomes = outcomes_of(publication)
    publication.cancel()
    publication.cancel()
    assert type(outcomes[0]) is PublishUnconfirmed
    scene.channel.confirm(1, False, True)
    scene.advance(10)
    assert len(outcomes) == 1


# Closing


def test_closing_settles_everything(scene):
    """Whatever is unfinished, at any point of its way, fails with `Disconnected`."""
    scene = Scene(max_unconfirmed=2).up(prompt=False)
    outcomes = [
        scene.publish(message("sent")),
        scene.publish(message("declaring", declare=(QUEUE,))),
        scene.publish(message("waiting")),
    ]
    closed = outcomes_of(scene.publisher.close())
    assert [type(each[0]) for each in outcomes] == [Disconnected] * 3
    assert closed == []
    scene.lose()
    assert closed == [None]
    assert scene.network.clock.getDelayedCalls() == []
    assert not scene.publisher.connected


@pytest.mark.parametrize("when", ["before the first message", "while connecting", "while waiting"])
def test_closing_without_a_link(scene, when):
    """There is nothing to wait for, and no timer or attempt is left."""
    outcomes: list[Any] = []
    if when != "before the first message":
        outcomes = scene.publish(message())
        if when == "while waiting":
            scene.network.refuse()
    assert outcomes_of(scene.publisher.close()) == [None]
    assert all(type(each) is Disconnected for each in outcomes)
    assert scene.network.clock.getDelayedCalls() == []
    assert outcomes_of(scene.publisher.close()) == [None]


def test_publishing_to_a_closed_publisher(scene):
    """It fails with `Disconnected`, while closing and afterwards."""
    scene.up()
    scene.publisher.close()
    assert type(scene.publish(message())[0]) is Disconnected
    scene.lose()
    assert type(scene.publish(message())[0]) is Disconnected
    assert scene.network.clock.getDelayedCalls() == []


# Callbacks that do things


@pytest.mark.parametrize("do", ["close", "publish", "lose"])
def test_callbacks_of_confirmations_may_do_anything(scene, do):
    """Closing, publishing or losing the link inside one confirmation's callback harms no other."""
    scene.up()
    first: Deferred[None] = scene.publisher.publish(message("a"))
    others = scene.publish_many("b", "c")
    unconfirmed = scene.publish(message("d"))
    actions = {
        "close": scene.publisher.close,
        "publish": lambda: scene.publish(message("e")),
        "lose": scene.lose,
    }
    first.addCallback(lambda _: actions[do]() and None)
    scene.channel.confirm(3, True, True)
    assert others == [[None], [None]]
    expected = {"close": [Disconnected], "publish": [], "lose": [PublishUnconfirmed]}
    assert [type(each) for each in unconfirmed] == expected[do]


@pytest.mark.parametrize("do", ["close", "publish"])
def test_errbacks_of_a_lost_link_may_do_anything(scene, do):
    """Closing or publishing while a lost link is cleaned up harms nobody."""
    scene.up()
    first: Deferred[None] = scene.publisher.publish(message("a"))
    other = scene.publish(message("b"))
    again = scene.publish(message("c", resend=True))
    published: list[list[Any]] = []
    actions = {
        "close": scene.publisher.close,
        "publish": lambda: published.append(scene.publish(message("d"))),
    }
    first.addErrback(lambda _: actions[do]() and None)
    scene.lose()
    assert type(other[0]) is PublishUnconfirmed
    if do == "close":
        assert type(again[0]) is Disconnected
        assert scene.network.clock.getDelayedCalls() == []
    else:
        scene.come_back()
        assert scene.written() == ["c", "d"]


def test_whoever_tries_again_at_once_when_access_is_refused(scene):
    """Publishing from the errback of a refusal waits for the next attempt; it does not spin."""
    tries: list[Any] = []

    def again(failure: Any) -> None:
        tries.append(failure.type)
        scene.publisher.publish(message()).addErrback(again)

    scene.publisher.publish(message()).addErrback(again)
    scene.network.refuse(BrokerAccessRefused("wrong password"))
    assert tries == [BrokerAccessRefused]
    scene.publisher._deadlines.stop()


# Memory


class Headers(dict[str, Any]):
    """Headers that can be watched."""


def test_nothing_is_kept_of_what_ended(scene):
    """However a message ends, nothing of it is kept, while other messages come and go."""
    scene = Scene(max_unconfirmed=10).up()
    scene.publisher._deadlines.stop()
    freed = []

    def forgettable(**fields: Any) -> OutgoingMessage:
        headers = Headers()
        freed.append(weakref.ref(headers))
        return replace(message(**fields), headers=headers)

    scene.publish(forgettable(task_id="confirmed"))
    scene.publish(forgettable(task_id="nacked"))
    scene.publish(forgettable(task_id="returned"))
    scene.channel.give_back("returned", "", "celery", "312")
    scene.channel.confirm(1, False, True)
    scene.channel.confirm(2, False, False)
    scene.channel.confirm(3, False, True)
    scene.publish(forgettable(task_id="lost"))
    cancelled = scene.publisher.publish(forgettable(task_id="cancelled", resend=True))
    outcomes_of(cancelled)
    cancelled.cancel()
    scene.channel.published.clear()
    scene.lose()
    waiting = scene.publisher.publish(forgettable(task_id="waiting"))
    outcomes_of(waiting)
    waiting.cancel()
    del cancelled, waiting
    scene.publisher._deadlines.stop()
    gc.collect()
    assert [reference() for reference in freed] == [None] * 6
