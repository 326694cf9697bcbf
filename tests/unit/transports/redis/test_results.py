"""`RedisResults`: no state is missed, none is told out of order, and everybody who waits is told."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from celery.backends.base import compress_payload

from tests.unit.transports.amqp.fakes import Network, outcomes_of
from tests.unit.transports.redis.fakes import FakeLink, redis_app
from twistedcelery.errors import (
    BrokerAccessRefused,
    Disconnected,
    ReplyTooLarge,
    ReplyUndecodable,
    ResultBackendUnavailable,
)
from twistedcelery.transports.connection import Refused
from twistedcelery.transports.redis.offline_backend import OfflineRedisBackend
from twistedcelery.transports.redis.requests import Reads, Requests
from twistedcelery.transports.redis.results import RedisResults, Subscriptions


class Receiver:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, Any]] = []
        self.failed: list[tuple[str, Exception]] = []

    def state_changed(self, task_id, meta):
        self.told.append((task_id, meta["status"], meta["result"]))

    def reply_failed(self, task_id, error):
        self.failed.append((task_id, error))


class Scene:
    """A result source with its two connections, whose networks share a clock."""

    def __init__(self, **settings: Any) -> None:
        self.subscribing, self.reading = Network(), Network()
        self.clock = self.reading.clock = self.subscribing.clock
        self.receiver = Receiver()
        self.backend = OfflineRedisBackend(redis_app(**settings))
        self.source = RedisResults(self.clock, self.receiver, self.backend, give_up_after=30)
        subscriptions = Subscriptions(self.clock, self.source)
        requests = Requests(self.clock, None)
        requests.use(self.reading.connection(requests))
        self.source.use(
            subscriptions.use(self.subscribing.connection(subscriptions)),
            Reads(self.clock, requests, self.source.found),
        )

    def up(self) -> tuple[FakeLink, FakeLink]:
        """Both connections come up."""
        return self.subscribing.accept(FakeLink(self.clock)), self.reading.accept(FakeLink(self.clock))

    def watched(self, task_id: str = "a") -> tuple[FakeLink, FakeLink]:
        """A task is watched, and nothing is stored."""
        waiting = self.source.watch(task_id)
        subscriber, reader = self.up()
        subscriber.answer_all()
        assert waiting.called
        self.clock.advance(0)
        reader.answer([None])
        return subscriber, reader


KEY = b"celery-task-meta-a"


def state(status: str, result: Any = None, **more: Any) -> bytes:
    return json.dumps(
        {"status": status, "result": result, "traceback": None, "children": [], "task_id": "a", **more}
    ).encode()


@pytest.fixture
def scene():
    return Scene()


def test_a_task_may_be_published_once_it_is_subscribed(scene):
    """Not before Redis has said so: its first state could be missed."""
    waiting = outcomes_of(scene.source.watch("a"))
    subscriber, _ = scene.up()
    assert subscriber.commands == [("SUBSCRIBE", KEY)]
    assert not waiting
    subscriber.answer([b"subscribe", KEY, 1])
    assert waiting == [None]
    assert scene.source.connected
    assert scene.source.watch("a") is None


def test_states_are_told_as_they_come(scene):
    """Each is told at once, whatever its kind; what nobody watches is not."""
    subscriber, _ = scene.watched()
    subscriber.deliver(KEY, state("PROGRESS", 1))
    subscriber.deliver(b"celery-task-meta-b", state("SUCCESS", 5))
    subscriber.deliver(KEY, state("SUCCESS", 2))
    assert scene.receiver.told == [("a", "PROGRESS", 1), ("a", "SUCCESS", 2)]


def test_a_state_stored_before_the_subscription_is_read(scene):
    """One MGET asks for the tasks of a reactor turn, after they are subscribed."""
    for task_id in ("a", "b"):
        scene.source.watch(task_id)
    subscriber, reader = scene.up()
    assert not reader.commands
    subscriber.answer_all()
    scene.clock.advance(0)
    assert reader.commands == [("MGET", KEY, b"celery-task-meta-b")]
    reader.answer([state("SUCCESS", 7), None])
    subscriber.answer_all()
    assert scene.receiver.told == [("a", "SUCCESS", 7)]


@pytest.mark.parametrize("moment", ["before the answer", "after the answer"])
def test_what_was_read_does_not_overtake_what_was_published(scene, moment):
    """Both connections tell of the same state: the one that keeps the order wins."""
    scene.source.watch("a")
    subscriber, reader = scene.up()
    subscriber.answer_all()
    scene.clock.advance(0)
    if moment == "after the answer":
        reader.answer([state("SUCCESS", 2)])
        assert not scene.receiver.told
    subscriber.deliver(KEY, state("PROGRESS", 1))
    if moment == "before the answer":
        reader.answer([state("SUCCESS", 2)])
    subscriber.answer_all()
    assert scene.receiver.told == [("a", "PROGRESS", 1)]
    subscriber.deliver(KEY, state("SUCCESS", 2))
    assert scene.receiver.told[1:] == [("a", "SUCCESS", 2)]


def test_after_a_lost_connection_everything_is_subscribed_and_read_again(scene):
    """A result that was stored in between is told, and later ones are."""
    subscriber, reader = scene.watched()
    scene.source.watch("b")
    scene.clock.advance(0)
    subscriber.answer_all()
    scene.clock.advance(0)
    reader.answer([None])
    subscriber.lose()
    assert not scene.source.connected
    scene.clock.advance(1)
    again = scene.subscribing.accept(FakeLink(scene.clock))
    assert again.commands == [("SUBSCRIBE", KEY, b"celery-task-meta-b")]
    again.answer_all()
    scene.clock.advance(0)
    reader.answer([state("SUCCESS", 1), None])
    again.answer_all()
    assert scene.receiver.told == [("a", "SUCCESS", 1)]
    again.deliver(b"celery-task-meta-b", state("SUCCESS", 2))
    assert scene.receiver.told[1:] == [("b", "SUCCESS", 2)]


def test_a_read_that_was_not_answered_is_asked_again(scene):
    """The connection for reading may be lost by itself."""
    scene.source.watch("a")
    subscriber, reader = scene.up()
    subscriber.answer_all()
    scene.clock.advance(0)
    reader.lose()
    scene.clock.advance(1)
    again = scene.reading.accept(FakeLink(scene.clock))
    assert again.commands == [("MGET", KEY)]
    again.answer([state("SUCCESS", 1)])
    subscriber.answer_all()
    assert scene.receiver.told == [("a", "SUCCESS", 1)]


def test_what_comes_before_an_answer_is_read_together(scene):
    """A burst while Redis is slow is one question more, in pieces, and none for what was forgotten."""
    scene.source.watch("first")
    subscriber, reader = scene.up()
    subscriber.answer_all()
    scene.clock.advance(0)
    for number in range(150):
        scene.source.watch(f"{number}")
    scene.clock.advance(0)
    subscriber.answer_all()
    scene.clock.advance(0)
    scene.source.forget("7")
    assert reader.commands == [("MGET", b"celery-task-meta-first")]
    reader.answer([None])
    scene.clock.advance(0)
    pieces = reader.commands[1:]
    assert [len(keys) for _, *keys in pieces] == [100, 49]
    assert b"celery-task-meta-7" not in pieces[0]
    reader.answer([None] * 100, [None] * 48 + [state("SUCCESS", 149)])
    subscriber.answer_all()
    assert scene.receiver.told == [("149", "SUCCESS", 149)]


def test_reads_wait_for_a_password_that_is_put_right(scene):
    """Those that were not answered are asked once Redis lets the client in."""
    scene.source.watch("a")
    subscriber = scene.subscribing.accept(FakeLink(scene.clock))
    subscriber.answer_all()
    scene.clock.advance(0)
    scene.reading.refuse(BrokerAccessRefused("WRONGPASS"))
    scene.clock.advance(1)
    again = scene.reading.accept(FakeLink(scene.clock))
    scene.clock.advance(0)
    assert again.commands == [("MGET", KEY)]
    again.answer([state("SUCCESS", 1)])
    subscriber.answer_all()
    assert scene.receiver.told == [("a", "SUCCESS", 1)]


def test_reads_that_are_refused(scene, logged_errors):
    """That is logged, and later keys are read."""
    scene.source.watch("a")
    subscriber, reader = scene.up()
    subscriber.answer_all()
    scene.clock.advance(0)
    reader.answer(Refused("NOPERM"))
    scene.source.watch("b")
    scene.clock.advance(0)
    subscriber.answer_all()
    scene.clock.advance(0)
    assert reader.commands[1:] == [("MGET", b"celery-task-meta-b")]
    subscriber.deliver(KEY, state("SUCCESS", 1))
    assert scene.receiver.told == [("a", "SUCCESS", 1)]


def test_a_forgotten_task_is_unsubscribed(scene):
    """Nothing is told of it, whatever is still on its way."""
    scene.source.watch("a")
    subscriber, reader = scene.up()
    subscriber.answer_all()
    scene.clock.advance(0)
    scene.source.forget("a")
    scene.clock.advance(1)
    assert subscriber.commands[-1] == ("UNSUBSCRIBE", KEY)
    reader.answer([state("SUCCESS", 1)])
    subscriber.deliver(KEY, state("SUCCESS", 1))
    subscriber.answer_all()
    scene.source.forget("a")
    assert not scene.receiver.told


def test_the_tasks_of_a_turn_are_subscribed_together(scene):
    """And those that are forgotten soon after one another are unsubscribed together."""
    subscriber, _ = scene.watched()
    for task_id in "bcd":
        scene.source.watch(task_id)
    scene.source.forget("c")
    scene.clock.advance(0)
    keys = [f"celery-task-meta-{task_id}".encode() for task_id in "abd"]
    assert subscriber.commands[1:] == [("SUBSCRIBE", *keys[1:])]
    subscriber.answer_all()
    for task_id in "abd":
        scene.source.forget(task_id)
    scene.clock.advance(1)
    assert subscriber.commands[2:] == [("UNSUBSCRIBE", *keys)]


def test_a_task_that_is_watched_again(scene):
    """Before its subscription has ended, it goes on."""
    subscriber, _ = scene.watched()
    scene.source.forget("a")
    scene.source.watch("a")
    scene.clock.advance(1)
    assert subscriber.commands == [("SUBSCRIBE", KEY)] * 2
    subscriber.answer_all()
    subscriber.deliver(KEY, state("SUCCESS", 1))
    assert scene.receiver.told == [("a", "SUCCESS", 1)]


def test_timers_end_with_the_connection(scene):
    """What was to be sent later is not sent over a lost link, or after the end."""
    subscriber, _ = scene.watched()
    scene.source.forget("a")
    waiting = [outcomes_of(scene.source.watch("b"))]
    subscriber.lose()
    scene.clock.advance(1)
    again = scene.subscribing.accept(FakeLink(scene.clock))
    assert again.commands == [("SUBSCRIBE", b"celery-task-meta-b")]
    waiting.append(outcomes_of(scene.source.watch("c")))
    scene.source.close()
    scene.clock.advance(1)
    assert len(again.commands) == 1
    assert all(isinstance(outcome, Disconnected) for (outcome,) in waiting)


def test_a_crowd_is_read_in_larger_pieces(scene):
    """Few tasks are not kept waiting."""
    subscriber, _ = scene.watched()
    subscriber.deliver(KEY, state("PROGRESS", 1))
    assert not subscriber.rests
    for number in range(200):
        scene.source.watch(f"{number}")
    subscriber.deliver(KEY, state("PROGRESS", 2))
    assert subscriber.rests


def test_a_redis_that_stays_away_is_given_up(scene):
    """After the time allowed those who wait are told: by the receiver, or by what they wait for."""
    subscriber, _ = scene.watched()
    subscriber.lose()
    waiting = outcomes_of(scene.source.watch("b"))
    scene.clock.advance(29)
    assert not scene.receiver.failed
    assert not waiting
    scene.clock.advance(2)
    ((task_id, error),) = scene.receiver.failed
    assert task_id == "a"
    assert isinstance(error, ResultBackendUnavailable)
    assert isinstance(waiting[0], ResultBackendUnavailable)
    assert "lost" in str(waiting[0])


def test_a_redis_that_comes_back_in_time_is_not_given_up(scene):
    """The limit is on one absence, not on all together."""
    subscriber, _ = scene.watched()
    for _ in range(3):
        subscriber.lose()
        scene.clock.advance(20)
        subscriber = scene.subscribing.accept(FakeLink(scene.clock))
        subscriber.answer_all()
    scene.clock.advance(60)
    assert not scene.receiver.failed


def test_a_wrong_password_fails_those_who_have_not_begun(scene):
    """At once; a task that was published goes on waiting until Redis is given up."""
    subscriber, _ = scene.watched()
    subscriber.lose()
    waiting = outcomes_of(scene.source.watch("b"))
    scene.clock.advance(1)
    scene.subscribing.refuse(BrokerAccessRefused("WRONGPASS"))
    assert isinstance(waiting[0], ResultBackendUnavailable)
    assert "WRONGPASS" in str(waiting[0])
    assert not scene.receiver.failed


def test_a_subscription_that_is_refused_fails_its_task_alone(scene):
    """With Redis' own words."""
    waiting = [outcomes_of(scene.source.watch(task_id)) for task_id in ("a", "b")]
    subscriber, _ = scene.up()
    # Redis does not say which one.
    subscriber.answer(Refused("NOPERM"))
    assert subscriber.commands[1:] == [("SUBSCRIBE", KEY), ("SUBSCRIBE", b"celery-task-meta-b")]
    subscriber.answer(Refused("NOPERM"), b"OK")
    assert isinstance(waiting[0][0], ResultBackendUnavailable)
    assert "NOPERM" in str(waiting[0][0])
    assert waiting[1] == [None]


def test_a_cancelled_wait_tells_what_it_waited_for(scene):
    """And is left alone afterwards."""
    waiting = scene.source.watch("a")
    outcome = outcomes_of(waiting)
    waiting.cancel()
    assert isinstance(outcome[0], ResultBackendUnavailable)
    subscriber, _ = scene.up()
    subscriber.answer_all()


@pytest.mark.parametrize("stage", ["connecting", "subscribing", "up"])
def test_closing(scene, stage):
    """Whoever waits is told, no timer is left, and answers that come late disturb nobody."""
    waiting = outcomes_of(scene.source.watch("a"))
    if stage != "connecting":
        subscriber, _ = scene.up()
        if stage == "up":
            subscriber.answer_all()
    closed = outcomes_of(scene.source.close())
    outcomes_of(scene.source.close())
    if stage == "subscribing":
        subscriber.answer_all()
    scene.clock.advance(0)
    assert closed == [None]
    assert waiting == [None] if stage == "up" else isinstance(waiting[0], Disconnected)
    assert isinstance(outcomes_of(scene.source.watch("b"))[0], Disconnected)
    assert not scene.clock.getDelayedCalls()


def test_what_cannot_be_decoded_ends_its_task(scene):
    """Once, and nothing more is told of it."""
    subscriber, _ = scene.watched()
    subscriber.deliver(KEY, b"{")
    subscriber.deliver(KEY, state("SUCCESS", 1))
    ((task_id, error),) = scene.receiver.failed
    assert task_id == "a"
    assert isinstance(error, ReplyUndecodable)
    assert not scene.receiver.told


def test_compressed_states(scene):
    """They are opened as Celery packs them, up to a limit."""
    subscriber, _ = scene.watched()
    subscriber.deliver(KEY, compress_payload(state("PROGRESS", 1), "gzip"))
    assert scene.receiver.told == [("a", "PROGRESS", 1)]
    scene.backend._decoder._max_bytes = 10_000
    bomb = compress_payload(b"", "gzip").removesuffix(zlib.compress(b"")) + zlib.compress(bytes(1_000_000))
    subscriber.deliver(KEY, bomb)
    assert isinstance(scene.receiver.failed[0][1], ReplyTooLarge)


def test_the_prefix_of_keys():
    """``global_keyprefix`` is before each key, and so before each channel."""
    scene = Scene(result_backend_transport_options={"global_keyprefix": "mine:"})
    scene.source.watch("a")
    subscriber, _ = scene.up()
    assert subscriber.commands == [("SUBSCRIBE", b"mine:" + KEY)]
