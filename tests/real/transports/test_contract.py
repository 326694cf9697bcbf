"""What every transport promises, on real brokers and result backends.

Everything goes through `twistedcelery.transports.interface`; the other side is Celery's and
kombu's own code.
"""

from __future__ import annotations

import json
import threading
import uuid

import kombu
import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import CancelledError, gatherResults

from tests.real.transports.parts import Receiver, descriptors, message
from tests.support.ports import free_port
from twistedcelery.errors import (
    BrokerAccessRefused,
    BrokerUnavailable,
    Disconnected,
    PublishRejected,
    ReplyNotAccepted,
    ReplyUndecodable,
    Unroutable,
)

# Celery's Redis backend, as workers use it.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def queue():
    """The name of a queue of the test's own."""
    return f"queue-{uuid.uuid4().hex[:8]}"


def new_id():
    return str(uuid.uuid4())


async def watch(source, task_id):
    """Watch a task, and wait until it may be published."""
    placed = source.watch(task_id)
    if placed is not None:
        await placed


class TestPublishing:
    @pytest_twisted.ensureDeferred
    async def test_a_message_arrives_unchanged(self, parts, queue):
        """``publish`` fires with nothing, and body, properties and headers are those that were given."""
        publisher, _ = parts.open()
        sent = message(queue, 7)
        assert await publisher.publish(sent) is None
        assert publisher.connected
        (received,) = parts.take(queue)
        body = received.body if isinstance(received.body, bytes) else received.body.encode()
        assert body == sent.body
        assert received.content_type == "application/json"
        assert received.content_encoding == "utf-8"
        assert dict(received.headers) == dict(sent.headers)
        for name in ("correlation_id", "reply_to", "delivery_mode", "priority"):
            assert received.properties[name] == sent.properties[name]

    @pytest_twisted.ensureDeferred
    async def test_an_expiration_stays_in_milliseconds(self, parts, queue):
        """``expiration`` is text in milliseconds already, and is not scaled again."""
        publisher, _ = parts.open()
        sent = message(queue)
        await publisher.publish(message(queue, properties={**sent.properties, "expiration": "90000"}))
        (received,) = parts.take(queue)
        assert received.properties["expiration"] == "90000"

    @pytest_twisted.ensureDeferred
    async def test_all_of_many_messages_arrive_once(self, parts, queue):
        """Of messages that are published at once each arrives, and none twice."""
        publisher, _ = parts.open()
        await gatherResults([publisher.publish(message(queue, number)) for number in range(100)])
        received = parts.take(queue, 100)
        assert sorted(one.headers["number"] for one in received) == list(range(100))
        assert parts.is_empty(queue)

    @pytest_twisted.ensureDeferred
    async def test_a_message_that_reaches_no_queue_is_unroutable(self, parts, queue):
        """Where no queue is bound a ``mandatory`` message fails, and those beside it do not."""
        publisher, _ = parts.open()
        exchange = kombu.Exchange(f"{queue}-exchange", "direct")
        lost = message(queue, exchange=exchange.name, routing_key="nowhere", declare=(exchange,))
        outcomes = [publisher.publish(lost), publisher.publish(message(queue, 1))]
        with pytest.raises(Unroutable):
            await outcomes[0]
        await outcomes[1]
        assert parts.take(queue)[0].headers["number"] == 1

    @pytest.mark.needs("compares_declarations")
    @pytest_twisted.ensureDeferred
    async def test_a_refused_declaration_fails_its_message_alone(self, parts, queue):
        """A queue that exists with other arguments fails the message that needs it, and no other."""
        with parts.consumer() as connection:
            kombu.Queue(queue, durable=True)(connection.channel()).declare()
        publisher, _ = parts.open()
        differing = kombu.Queue(queue, kombu.Exchange(queue, "direct"), routing_key=queue, max_priority=3)
        outcomes = [
            publisher.publish(message(queue, declare=(differing,))),
            publisher.publish(message(queue, 2)),
        ]
        with pytest.raises(PublishRejected, match="inequivalent"):
            await outcomes[0]
        await outcomes[1]
        assert parts.take(queue)[0].headers["number"] == 2

    @pytest_twisted.ensureDeferred
    async def test_without_a_broker_publishing_fails_in_time(self, parts, queue):
        """When the broker cannot be reached a message fails with `BrokerUnavailable` when its time is up."""
        parts.take_away()
        publisher, _ = parts.open(publish_timeout=0.5)
        started = reactor.seconds()
        with pytest.raises(BrokerUnavailable):
            await publisher.publish(message(queue))
        assert 0.4 < reactor.seconds() - started < 2
        started = reactor.seconds()
        with pytest.raises(BrokerUnavailable):
            await publisher.publish(message(queue, confirm_timeout=0.1))
        assert reactor.seconds() - started < 0.4
        parts.give_back()

    @pytest_twisted.ensureDeferred
    async def test_a_message_waits_for_a_broker_that_comes_back(self, parts, queue, eventually):
        """A message given while the broker is away is sent when it is back, unless it ran out of time."""
        publisher, _ = parts.open(publish_timeout=30)
        await publisher.publish(message(queue, 1))
        parts.take_away()
        with pytest.raises(BrokerUnavailable):
            await publisher.publish(message(queue, 2, confirm_timeout=0.3))
        waiting = publisher.publish(message(queue, 3))
        parts.give_back()
        await waiting
        assert [one.headers["number"] for one in parts.take(queue, 2)] == [1, 3]
        assert parts.is_empty(queue)

    @pytest_twisted.ensureDeferred
    async def test_a_cancelled_message_is_not_sent(self, parts, queue):
        """Cancelling drops a message that waits for the broker."""
        parts.take_away()
        publisher, _ = parts.open(publish_timeout=30)
        dropped, kept = publisher.publish(message(queue, 1)), publisher.publish(message(queue, 2))
        dropped.cancel()
        with pytest.raises(CancelledError):
            await dropped
        parts.give_back()
        await kept
        assert parts.take(queue)[0].headers["number"] == 2
        assert parts.is_empty(queue)

    @pytest.mark.needs("has_passwords")
    @pytest_twisted.ensureDeferred
    async def test_refused_credentials_fail_at_once(self, parts, queue):
        """A wrong password fails all waiting messages without waiting, and is not in the error's text."""
        scheme, _, rest = parts.url.partition("://")
        app = parts.app(f"{scheme}://guest:wr0ng-secret@{rest.rpartition('@')[2]}")
        publisher, _ = parts.open(publish_timeout=30, app=app)
        started = reactor.seconds()
        outcomes = [publisher.publish(message(queue)) for _ in range(3)]
        for outcome in outcomes:
            with pytest.raises(BrokerAccessRefused) as caught:
                await outcome
            assert "wr0ng-secret" not in str(caught.value)
        assert reactor.seconds() - started < 5

    @pytest.mark.needs("has_passwords")
    @pytest_twisted.ensureDeferred
    async def test_unreachable_brokers_passwords_stay_secret(self, parts, queue):
        """The error for a broker that is not there tells the reason, but no password."""
        scheme = parts.url.partition("://")[0]
        app = parts.app(f"{scheme}://guest:t0p-secret@127.0.0.1:{free_port()}/1")
        publisher, _ = parts.open(publish_timeout=0.5, app=app)
        with pytest.raises(BrokerUnavailable, match="refused") as caught:
            await publisher.publish(message(queue))
        assert "t0p-secret" not in str(caught.value)


class TestResults:
    @pytest_twisted.ensureDeferred
    async def test_states_arrive_in_order(self, parts, eventually):
        """Each state of a task is told, in order; where states are polled, at least the last one is."""
        receiver, task_id = Receiver(), new_id()
        _, source = parts.open(receiver)
        await watch(source, task_id)
        assert source.connected
        wanted = [("STARTED", {"pid": 1})]
        wanted += [("PROGRESS", {"current": n}) for n in range(5)]
        wanted += [("SUCCESS", [1, "grün"])]
        for state, result in wanted:
            parts.store(source, task_id, result, state)
        await eventually(lambda: wanted[-1] in receiver.of(task_id))
        told = receiver.of(task_id)
        assert told == (wanted if parts.tells_every_state else [one for one in wanted if one in told])

    @pytest_twisted.ensureDeferred
    async def test_a_non_final_state_is_told_while_it_lasts(self, parts, eventually):
        """A state is told before the next one comes."""
        receiver, task_id = Receiver(), new_id()
        _, source = parts.open(receiver)
        await watch(source, task_id)
        for state in [("PROGRESS", {"current": 1}), ("CUSTOM", "x"), ("SUCCESS", 3)]:
            parts.store(source, task_id, state[1], state[0])
            await eventually(lambda state=state: receiver.of(task_id)[-1:] == [state])

    @pytest_twisted.ensureDeferred
    async def test_an_exception_is_rebuilt(self, parts, eventually):
        """A failure's result is the exception that the task raised."""
        receiver, task_id = Receiver(), new_id()
        _, source = parts.open(receiver)
        await watch(source, task_id)
        parts.store(source, task_id, ValueError("no", 5), "FAILURE")
        await eventually(lambda: receiver.states)
        (_, state, error) = receiver.states[0]
        assert state == "FAILURE"
        assert type(error) is ValueError
        assert error.args == ("no", 5)

    @pytest_twisted.ensureDeferred
    async def test_many_tasks_do_not_mix(self, parts, eventually):
        """Of many tasks that are watched at once each gets its own result."""
        receiver, task_ids = Receiver(), [new_id() for _ in range(50)]
        _, source = parts.open(receiver)
        for task_id in task_ids:
            await watch(source, task_id)
        for number, task_id in enumerate(task_ids):
            parts.store(source, task_id, number)
        await eventually(lambda: {one[0] for one in receiver.states} == set(task_ids))
        assert {one[0]: one[2] for one in receiver.states} == {t: n for n, t in enumerate(task_ids)}

    @pytest.mark.needs("forgets")
    @pytest_twisted.ensureDeferred
    async def test_a_forgotten_task_is_not_told(self, parts, eventually):
        """After ``forget`` nothing of a task is told; unknown ids may be forgotten."""
        receiver, forgotten, kept = Receiver(), new_id(), new_id()
        _, source = parts.open(receiver)
        await watch(source, forgotten)
        await watch(source, kept)
        source.forget(forgotten)
        source.forget(new_id())
        parts.store(source, forgotten, 1)
        parts.store(source, kept, 2)
        await eventually(lambda: receiver.of(kept))
        assert receiver.of(forgotten) == []

    @pytest.mark.needs("uses_serializer")
    @pytest_twisted.ensureDeferred
    async def test_odd_replies_disturb_no_other(self, parts, eventually):
        """No JSON, a meta without a status, one for an unknown task, and two finals: others get theirs."""
        receiver = Receiver()
        broken, incomplete, twice, fine = (new_id() for _ in range(4))
        _, source = parts.open(receiver)
        for task_id in (broken, incomplete, twice, fine):
            await watch(source, task_id)
        parts.store_raw(source, broken, '{"status": "SUCC')
        if not parts.backend.startswith("db+"):
            # A table has its columns.
            parts.store_raw(source, incomplete, json.dumps({"task_id": incomplete, "result": 1}))
            parts.store_raw(source, new_id(), json.dumps({"oh": "no"}))
            parts.store_raw(source, incomplete, json.dumps([1, 2]))
        parts.store(source, new_id(), "for nobody")
        parts.store(source, twice, "first")
        parts.store(source, twice, "second")
        parts.store(source, fine, "fine")
        await eventually(lambda: receiver.of(fine) and receiver.of(twice))
        await eventually(lambda: broken in dict(receiver.failures))
        assert receiver.of(fine) == [("SUCCESS", "fine")]
        assert receiver.of(twice)[0] == ("SUCCESS", "first")
        assert isinstance(dict(receiver.failures)[broken], ReplyUndecodable)
        assert not {twice, fine} & set(dict(receiver.failures))

    @pytest.mark.needs("uses_serializer")
    @pytest_twisted.ensureDeferred
    async def test_a_content_type_that_is_not_accepted_is_refused(self, parts, eventually):
        """``result_accept_content`` is enforced before anything is decoded."""
        receiver, task_id = Receiver(), new_id()
        config = {"result_serializer": "pickle"}
        _, source = parts.open(receiver, app=parts.app(result_accept_content=["json"], **config))
        await watch(source, task_id)
        worker = parts.worker(**config, accept_content=["pickle", "json"])
        parts.store(source, task_id, "never", worker=worker)
        await eventually(lambda: receiver.failures)
        assert [(one, type(error)) for one, error in receiver.failures] == [(task_id, ReplyNotAccepted)]
        assert receiver.states == []

    @pytest.mark.needs("notices_absence")
    @pytest_twisted.ensureDeferred
    async def test_results_are_found_after_the_network_was_gone(self, parts, eventually):
        """What is stored while the client is cut off is told when it is back, and so is what follows."""
        receiver, missed, later = Receiver(), new_id(), new_id()
        _, source = parts.open(receiver)
        await watch(source, missed)
        parts.take_away()
        await eventually(lambda: not source.connected)
        placed = source.watch(later)
        assert placed is not None
        assert not placed.called
        if not parts.url.startswith("filesystem"):
            # Files are away for the worker too.
            parts.store(source, missed, "missed")
        parts.give_back()
        await placed
        if parts.url.startswith("filesystem"):
            parts.store(source, missed, "missed")
        parts.store(source, later, "later")
        await eventually(lambda: receiver.of(missed) and receiver.of(later))
        assert receiver.of(missed) == [("SUCCESS", "missed")]
        assert receiver.of(later) == [("SUCCESS", "later")]


class TestClosing:
    @pytest_twisted.ensureDeferred
    async def test_nothing_is_left(self, parts, queue, eventually):
        """After ``close`` there is no thread, descriptor or timer more than before. Twice is fine."""
        # From here on the reactor has the timer of the test's own time limit.
        await task.deferLater(reactor, 0)
        before = descriptors(), threading.active_count(), len(reactor.getDelayedCalls())
        task_id, receiver = new_id(), Receiver()
        publisher, source = parts.open(receiver, app=parts.app())
        await watch(source, task_id)
        await publisher.publish(message(queue))
        assert threading.active_count() - before[1] == (0 if parts.native else 2)
        first = gatherResults([publisher.close(), source.close()])
        await gatherResults([publisher.close(), source.close()])
        await first
        # The relay closes its ends when it has read that ours are closed.
        await eventually(lambda: descriptors() <= before[0])
        assert threading.active_count() == before[1]
        assert len(reactor.getDelayedCalls()) <= before[2]
        assert not publisher.connected
        assert not source.connected

    @pytest_twisted.ensureDeferred
    async def test_whatever_is_unfinished_fails(self, parts, queue):
        """``close`` fails waiting messages and watches with `Disconnected`, and whatever comes after it."""
        parts.take_away()
        publisher, source = parts.open(publish_timeout=30)
        messages = [publisher.publish(message(queue)) for _ in range(3)]
        placed = source.watch(new_id())
        started = reactor.seconds()
        closing = gatherResults([publisher.close(), source.close()])
        for unfinished in [*messages, placed, publisher.publish(message(queue)), source.watch(new_id())]:
            with pytest.raises(Disconnected):
                await unfinished
        await closing
        assert reactor.seconds() - started < 5
        parts.give_back()
        await task.deferLater(reactor, 0)
        assert parts.is_empty(queue)

    @pytest.mark.needs("has_reply_queue")
    @pytest_twisted.ensureDeferred
    async def test_the_reply_queue_goes(self, parts):
        """A reply queue is the client's own, and is deleted when it closes."""
        _, source = parts.open()
        _, other = parts.open()
        assert source.reply_to != other.reply_to
        await watch(source, new_id())
        with parts.consumer() as connection:
            channel = connection.channel()
            channel.queue_declare(source.reply_to, passive=True)
            await source.close()
            with pytest.raises(connection.channel_errors, match="404"):
                channel.queue_declare(source.reply_to, passive=True)
