"""`TwistedCelery`: the parts, wired. The broker and the workers are the test."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import weakref
from typing import Any

import pytest
from celery import Celery, Task
from celery.signals import before_task_publish
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorCore
from twisted.internet.task import Clock
from zope.interface import directlyProvides

from tests.support.outcomes import error_of, outcomes_of
from tests.support.process import SOURCES
from tests.support.transport import FakePublisher, FakeTransport, bare_app, pacer_of
from twistedcelery import TaskDeferred, TwistedCelery
from twistedcelery.errors import (
    BrokerUnavailable,
    CallCancelled,
    ConfigurationError,
    Disconnected,
    EncodeError,
    InvalidCall,
    NoResultBackend,
    PublishRejected,
    PublishUnconfirmed,
    ReplyUndecodable,
)


def nothing() -> None:
    """What a task does here."""


def revoked_ids(transport: FakeTransport) -> list[str]:
    """The task ids of all revoke commands that were published."""
    return [
        task_id
        for publication in transport.written.publications
        if publication.message.task_id is None and publication.message.exchange.endswith("pidbox")
        for task_id in json.loads(publication.message.body)["arguments"]["task_id"]
    ]


class ReactorWithTriggers(Clock):
    """A clock that has a reactor's shutdown."""

    def __init__(self) -> None:
        super().__init__()
        directlyProvides(self, IReactorCore)
        self.triggers: list[Any] = []

    def addSystemEventTrigger(self, phase: str, event: str, callback: Any) -> Any:  # noqa: N802  # Twisted's
        self.triggers.append((phase, event, callback))
        return self.triggers[-1]

    def removeSystemEventTrigger(self, trigger: Any) -> None:  # noqa: N802  # Twisted's
        self.triggers.remove(trigger)

    def shut_down(self) -> list[Any]:
        """Run the triggers, as a reactor does: each is taken off before it runs."""
        results = []
        while self.triggers:
            _phase, _event, callback = self.triggers.pop(0)
            results.append(callback())
        return results


# Sending


def test_a_call_goes_out_and_its_result_comes_back(transport):
    """A call is watched before it is published, and ends with the reply."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add", args=(2, 3), kwargs={"z": 4})
    assert isinstance(call, TaskDeferred)
    (publication,) = transport.written.publications
    assert transport.replies.watched == [call.task_id]
    assert publication.message.task_id == call.task_id
    assert publication.message.properties["reply_to"] == "replies"
    assert json.loads(publication.message.body)[:2] == [[2, 3], {"z": 4}]
    outcomes, published = outcomes_of(call), outcomes_of(call.published)
    assert tx_app.in_flight == 1
    publication.confirm()
    assert (published, outcomes) == ([None], [])
    transport.replies.reply(call.task_id, "SUCCESS", 5)
    assert outcomes == [5]
    assert tx_app.in_flight == 0
    assert transport.replies.watched == []


def test_one_transport_serves_all_calls(transport):
    """Making a client prepares its transport, which is used from the first call on."""
    tx_app = transport.client()
    assert transport.chosen == 1
    assert transport.written.publications == []
    tx_app.send_task("tasks.add")
    tx_app.send_task("tasks.add")
    assert transport.chosen == 1
    assert tx_app.connected
    transport.replies.connected = False
    assert not tx_app.connected


def test_an_application_that_is_configured_later(transport):
    """Settings that change between the client's making and its first call count; later ones do not."""
    app = bare_app()
    tx_app = transport.client(app)
    unused, transport.written = transport.written, FakePublisher()
    for broker in ("amqp://elsewhere//", "amqp://nowhere//"):
        app.conf.broker_url = broker
        tx_app.send_task("tasks.add")
    assert (unused.closed, unused.publications) == (1, [])
    assert (transport.written.closed, len(transport.written.publications)) == (0, 2)
    assert transport.chosen == 2


def test_a_chosen_task_id_is_used(transport):
    """``task_id`` is the call's."""
    call = transport.client().send_task("tasks.add", task_id="mine")
    assert call.task_id == "mine"
    assert transport.written.last.message.task_id == "mine"


def test_options_may_be_positional(transport):
    """What follows ``name, args, kwargs`` is named in Celery's order: ``countdown`` comes first."""
    transport.client().send_task("tasks.add", (1, 2), None, 30)
    assert transport.written.last.message.headers["eta"] is not None


def test_a_reply_may_overtake_the_confirmation(transport):
    """A call that has ended is not bothered by the confirmation, or its loss, that comes later."""
    tx_app = transport.client()
    for settle in ("confirm", "lose"):
        call = tx_app.send_task("tasks.add")
        transport.replies.reply(call.task_id, "SUCCESS", 1)
        assert outcomes_of(call.published) == [None]
        if settle == "confirm":
            transport.written.last.confirm()
        else:
            transport.written.last.fail(PublishUnconfirmed("lost"))
        assert outcomes_of(call) == [1]
    transport.turn()
    assert revoked_ids(transport) == []


def test_updates_reach_their_call(transport):
    """A state that is not final is told to the call it belongs to."""
    tx_app = transport.client()
    heard: list[Any] = []
    call = tx_app.send_task("tasks.add").on_update(lambda *update: heard.append(update))
    tx_app.send_task("tasks.add").on_update(lambda *update: heard.append("other"))
    transport.replies.reply(call.task_id, "PROGRESS", {"current": 1})
    assert heard == [("PROGRESS", {"current": 1})]


def test_a_message_that_does_not_get_out_fails_its_call(transport):
    """The publisher's error is the call's and its publication's, and the task is watched no more."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    published = outcomes_of(call.published)
    error = PublishRejected("no")
    transport.written.last.fail(error)
    assert error_of(call, PublishRejected) is error
    assert published == [error]
    assert tx_app.in_flight == 0
    assert transport.replies.watched == []


def test_a_publisher_that_refuses_at_once(transport):
    """A message that the publisher does not even take fails its call, and no event is sent for it."""
    tx_app = transport.client(bare_app(task_send_sent_event=True))
    transport.written.refusal = lambda: BrokerUnavailable("full")
    error_of(tx_app.send_task("tasks.add"), BrokerUnavailable)
    assert tx_app.in_flight == 0


def test_an_unreadable_reply_fails_its_call_alone(transport):
    """A reply that cannot be read ends the call it is for; its task is not revoked for it."""
    tx_app = transport.client()
    call, other = tx_app.send_task("tasks.add"), tx_app.send_task("tasks.add")
    for publication in transport.written.publications:
        publication.confirm()
    transport.replies.fail(call.task_id, ReplyUndecodable("no"))
    error_of(call, ReplyUndecodable)
    assert not other.called
    transport.turn()
    assert revoked_ids(transport) == []


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((object(),), {}, EncodeError),
        ((), {"countdown": "soon"}, InvalidCall),
        ((), {"producer": object()}, InvalidCall),
        ((), {"connection": object()}, InvalidCall),
    ],
)
def test_bad_input_fails_the_deferred(transport, arguments, options, error):
    """``send_task`` never raises: what is wrong with a call fails its Deferred, and no other."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add", args=arguments, **options)
    published = outcomes_of(call.published)
    error_of(call, error)
    assert type(published[0]) is error
    assert tx_app.in_flight == 0
    assert transport.written.publications == []
    tx_app.send_task("tasks.add", args=(1,))
    assert json.loads(transport.written.last.message.body)[0] == [1]


def test_too_many_positional_options(transport):
    """More positions than Celery has fail the Deferred."""
    error_of(transport.client().send_task("tasks.add", None, None, *[None] * 40), InvalidCall)


@pytest.mark.parametrize("broker", ["nosuch://127.0.0.1:1", "amqp://127.0.0.1:port//"])
def test_an_application_that_cannot_be_used(broker):
    """Settings that kombu cannot read fail the Deferred as a `ConfigurationError`, each time."""
    tx_app = TwistedCelery(Celery("unit", broker=broker, backend="rpc://", set_as_current=False), Clock())
    for _ in range(2):
        error = error_of(tx_app.send_task("tasks.add"), ConfigurationError)
        assert broker.partition(":")[0] in str(error) or error.__cause__ is not None
    assert outcomes_of(tx_app.disconnect()) == [None]


# Results that never come


def test_ignore_result_ends_with_publication(transport):
    """A call whose task keeps its result to itself fires with ``None`` once the broker has it."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add", ignore_result=True)
    outcomes = outcomes_of(call)
    assert (outcomes, transport.replies.watched) == ([], [])
    transport.written.last.confirm()
    assert outcomes == [None]
    assert tx_app.in_flight == 0


def test_no_result_backend(transport):
    """Without a result backend the task is sent and published, and the call says why no result comes."""
    transport.replies.available = False
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    published = outcomes_of(call.published)
    transport.written.last.confirm()
    assert published == [None]
    assert "result_backend" in str(error_of(call, NoResultBackend))
    assert tx_app.in_flight == 0


@pytest.mark.parametrize("without", ["result", "backend"])
def test_cancel_inside_published_of_a_call_without_result(transport, without):
    """Cancelling as the broker takes the task revokes it, and the call was cancelled."""
    transport.replies.available = without != "backend"
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add", ignore_result=without == "result")
    call.published.addCallback(lambda _: call.cancel())
    transport.written.last.confirm()
    error_of(call, CallCancelled)
    transport.turn()
    assert revoked_ids(transport) == [call.task_id]


# Waiting for the result source


def test_a_task_is_published_when_its_results_can_be_received(transport):
    """Nothing is sent before the result source is ready, and the time it took counts."""
    transport.replies.ready = False
    tx_app = transport.client(publish_timeout=10)
    call = tx_app.send_task("tasks.add")
    assert transport.written.publications == []
    transport.clock.advance(4)
    transport.replies.waiting[call.task_id].callback(None)
    assert transport.written.last.message.confirm_timeout == 6
    transport.written.last.confirm()
    transport.replies.reply(call.task_id, "SUCCESS", 1)
    assert outcomes_of(call) == [1]
    transport.clock.advance(6)
    assert transport.clock.getDelayedCalls() == []


def test_tasks_that_waited_together_are_published_over_several_turns(transport):
    """Thousands of tasks may wait for one moment; publishing them does not hold up the reactor."""
    transport.replies.ready = False
    tx_app = transport.client()
    calls = [tx_app.send_task("tasks.add") for _ in range(3)]
    transport.turn()
    pacer_of(tx_app)._budget = 0
    for call in calls:
        transport.replies.waiting[call.task_id].callback(None)
    assert len(transport.written.publications) == 1
    calls[1].cancel()
    error_of(calls[1], CallCancelled)
    pacer_of(tx_app)._budget = 60
    transport.turn()
    assert [each.message.task_id for each in transport.written.publications] == [
        calls[0].task_id,
        calls[2].task_id,
    ]


def test_a_result_source_that_is_never_ready(transport):
    """The call fails within its time with what the result source says it waited for; nothing is sent."""
    transport.replies.ready = False
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add", confirm_timeout=3)
    waiting: Deferred[None] = transport.replies.waiting[call.task_id]
    waiting._canceller = lambda d: d.errback(BrokerUnavailable("no results"))
    outcomes = outcomes_of(call)
    transport.clock.advance(2.9)
    assert outcomes == []
    transport.clock.advance(0.1)
    assert str(outcomes[0]) == "no results"
    assert transport.written.publications == []
    assert tx_app.in_flight == 0


def test_the_event_follows_its_task(transport):
    """``task-sent`` goes out after the task, also when the task had to wait."""
    transport.replies.ready = False
    tx_app = transport.client(bare_app(task_send_sent_event=True))
    call = tx_app.send_task("tasks.add")
    assert transport.written.publications == []
    transport.replies.waiting[call.task_id].callback(None)
    task, event = transport.written.publications
    assert task.message.task_id == call.task_id
    assert (event.message.exchange, event.message.mandatory) == ("celeryev", False)


def test_a_lost_event_costs_nothing(transport):
    """A ``task-sent`` event that cannot be published fails nobody."""
    tx_app = transport.client(bare_app(task_send_sent_event=True))
    call = tx_app.send_task("tasks.add")
    transport.written.last.fail(PublishRejected("no monitor"))
    assert not call.called


# Cancelling


def test_cancel_of_a_published_task_revokes_it(transport):
    """Cancelling a call whose task the broker has ends it at once and revokes the task."""
    tx_app = transport.client(terminate=True)
    call = tx_app.send_task("tasks.add")
    transport.written.last.confirm()
    call.cancel()
    error_of(call, CallCancelled)
    assert tx_app.in_flight == 0
    assert transport.replies.watched == []
    transport.turn()
    assert revoked_ids(transport) == [call.task_id]
    assert json.loads(transport.written.last.message.body)["arguments"]["terminate"] is True


def test_cancel_before_the_message_left_revokes_nothing(transport):
    """A message that had not left is dropped; no worker hears of it."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    transport.written.last.sent = False
    call.cancel()
    error_of(call, CallCancelled)
    assert transport.written.publications[0].done.called
    transport.turn()
    assert revoked_ids(transport) == []


def test_cancel_of_a_message_on_its_way_revokes(transport):
    """A message that has left, unconfirmed, may be a task by now: it is revoked."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    call.cancel()
    error_of(call, CallCancelled)
    transport.turn()
    assert revoked_ids(transport) == [call.task_id]


def test_cancel_while_waiting_for_the_result_source(transport):
    """A call that is cancelled before its task was published is never published."""
    transport.replies.ready = False
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    call.cancel()
    error_of(call, CallCancelled)
    transport.replies.waiting[call.task_id].callback(None)
    assert transport.written.publications == []


def test_cancel_in_a_callback_of_published(transport):
    """A call that is cancelled as it is published was published, is cancelled and revoked."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    call.published.addCallback(lambda _: call.cancel())
    transport.written.last.confirm()
    error_of(call, CallCancelled)
    assert outcomes_of(call.published) == [None]
    transport.turn()
    assert revoked_ids(transport) == [call.task_id]


def test_cancel_in_an_errback_of_published(transport):
    """Cancelling again while the call is being cancelled revokes nothing twice."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    call.published.addErrback(lambda _: call.cancel())
    call.cancel()
    error_of(call, CallCancelled)
    transport.turn()
    assert revoked_ids(transport) == [call.task_id]


def test_cancelling_published_cancels_nothing_else(transport):
    """Who no longer waits for publication leaves the task and the call alone."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    published = call.published
    published.cancel()
    error_of(published, CancelledError)
    transport.written.last.confirm()
    transport.replies.reply(call.task_id, "SUCCESS", 1)
    assert outcomes_of(call) == [1]


def test_many_cancels_are_one_broadcast(transport):
    """Calls that are cancelled in one reactor turn cost one control message."""
    tx_app = transport.client()
    calls = [tx_app.send_task("tasks.add") for _ in range(5)]
    for publication in transport.written.publications:
        publication.confirm()
    for call in calls:
        call.cancel()
        error_of(call, CallCancelled)
    transport.turn()
    assert len(transport.written.publications) == 6
    assert revoked_ids(transport) == [call.task_id for call in calls]


def test_a_revoke_that_is_lost_after_a_cancel_is_no_unhandled_error(transport):
    """Nobody waits for the revoke of a cancelled call; its failure is told to the log alone."""
    call = transport.client().send_task("tasks.add")
    call.cancel()
    error_of(call, CallCancelled)
    transport.turn()
    transport.written.last.fail(BrokerUnavailable("gone"))


def test_revoke_keeps_the_call_waiting(transport):
    """``call.revoke`` asks the workers, and the call ends as they say."""
    call = transport.client().send_task("tasks.add")
    revoked = outcomes_of(call.revoke(terminate=True, signal="SIGKILL"))
    transport.turn()
    command = json.loads(transport.written.last.message.body)["arguments"]
    assert (command["terminate"], command["signal"]) == (True, "SIGKILL")
    assert revoked == []
    transport.written.last.confirm()
    assert revoked == [None]
    assert not call.called


# One id, two calls


def test_one_task_id_twice(transport):
    """Two calls with one id both end with the first final reply."""
    tx_app = transport.client()
    calls = [tx_app.send_task("tasks.add", task_id="same") for _ in range(2)]
    outcomes = [outcomes_of(call) for call in calls]
    assert tx_app.in_flight == 2
    transport.replies.reply("same", "SUCCESS", 1)
    assert outcomes == [[1], [1]]


def test_one_task_id_again_inside_the_callback(transport):
    """A call made by the callback of one with the same id waits for a reply of its own."""
    tx_app = transport.client()
    again: list[TaskDeferred] = []
    tx_app.send_task("tasks.add", task_id="same").addCallback(
        lambda _: again.append(tx_app.send_task("tasks.add", task_id="same"))
    )
    transport.replies.reply("same", "SUCCESS", 1)
    assert not again[0].called
    assert tx_app.in_flight == 1
    transport.replies.reply("same", "SUCCESS", 2)
    assert outcomes_of(again[0]) == [2]


# Pacing


def test_a_burst_is_spread_over_turns(transport):
    """Calls past the turn's budget are sent in later turns, in order, with the arguments of their time."""
    tx_app = transport.client()
    pacer_of(tx_app)._budget = 0
    first = tx_app.send_task("tasks.add", args=([1],))
    changed = [2]
    later = tx_app.send_task("tasks.add", args=(changed,), headers={"list": changed})
    changed.append("changed")
    assert [each.message.task_id for each in transport.written.publications] == [first.task_id]
    assert tx_app.in_flight == 2
    pacer_of(tx_app)._budget = 60
    transport.turn()
    transport.turn()
    message = transport.written.last.message
    assert message.task_id == later.task_id
    assert json.loads(message.body)[0] == [[2]]
    assert message.headers["list"] == [2]


@pytest.mark.parametrize("observer", ["signal", "send_task", "apply_async"])
def test_what_is_around_a_call_is_seen(transport, monkeypatch, observer):
    """Who looks at each message as it is made sees what was there at the call, in a burst too."""
    around: list[int] = []
    seen: list[int] = []

    def observe(*_args: Any, **_arguments: Any) -> None:
        seen.extend(around)

    def observed(function: Any) -> Any:
        def wrapper(*args: Any, **options: Any) -> Any:
            observe()
            return function(*args, **options)

        return wrapper

    app = bare_app()
    app.task(nothing, name="tasks.add", shared=False)
    app.finalize()
    if observer == "signal":
        before_task_publish.connect(observe)
    else:
        owner = Celery if observer == "send_task" else Task
        monkeypatch.setattr(owner, observer, observed(getattr(owner, observer)))
    client = transport.client(app)
    pacer_of(client)._budget = 0
    calls = []
    try:
        for number in range(3):
            around.append(number)
            if observer == "apply_async":
                calls.append(client.task(app.tasks["tasks.add"]).delay())
            else:
                calls.append(client.send_task("tasks.add"))
            around.clear()
    finally:
        before_task_publish.disconnect(observe)
    assert seen == [0, 1, 2]
    client.disconnect()
    for call in calls:
        error_of(call, Disconnected)


def test_arguments_that_cannot_be_copied_are_sent_at_once(transport):
    """What cannot wait for its turn does not wait."""

    class Uncopyable(dict):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no")

    tx_app = transport.client()
    pacer_of(tx_app)._budget = 0
    tx_app.send_task("tasks.add")
    call = tx_app.send_task("tasks.add", args=(Uncopyable(),))
    assert transport.written.last.message.task_id == call.task_id


def test_a_call_that_is_cancelled_before_its_turn_is_not_sent(transport):
    """A queued call that is cancelled is never encoded."""
    tx_app = transport.client()
    pacer_of(tx_app)._budget = 0
    tx_app.send_task("tasks.add")
    call = tx_app.send_task("tasks.add")
    call.cancel()
    error_of(call, CallCancelled)
    pacer_of(tx_app)._budget = 60
    transport.turn()
    transport.turn()
    assert len(transport.written.publications) == 1
    assert transport.clock.getDelayedCalls() == []


# Disconnecting


def test_disconnect_ends_every_call(transport):
    """Every pending call fails with `Disconnected`, and both halves are closed once."""
    tx_app = transport.client()
    pacer_of(tx_app)._budget = 0
    calls = [tx_app.send_task("tasks.add") for _ in range(3)]
    transport.written.last.confirm()
    outcomes = [outcomes_of(call) for call in calls]
    assert outcomes_of(tx_app.disconnect()) == [None]
    assert outcomes_of(tx_app.disconnect()) == [None]
    assert [type(each[0]) for each in outcomes] == [Disconnected] * 3
    assert (transport.written.closed, transport.replies.closed) == (1, 1)
    assert tx_app.in_flight == 0
    assert not tx_app.connected
    assert transport.clock.getDelayedCalls() == []


def test_disconnect_before_anything_was_sent(transport):
    """It ends at once, and no second transport is made for it."""
    assert outcomes_of(transport.client().disconnect()) == [None]
    assert transport.chosen == 1


def test_everyone_who_disconnects_waits_for_the_end(transport):
    """Each ``disconnect()`` fires when both halves are closed, and may be cancelled alone."""
    tx_app = transport.client()
    tx_app.send_task("tasks.add").addErrback(lambda _: None)
    transport.written.closing = Deferred()
    transport.replies.closing = Deferred()
    first, given_up, third = tx_app.disconnect(), tx_app.disconnect(), tx_app.disconnect()
    given_up.cancel()
    error_of(given_up, CancelledError)
    outcomes = outcomes_of(first), outcomes_of(third)
    transport.written.closing.callback(None)
    assert outcomes == ([], [])
    transport.replies.closing.callback(None)
    assert outcomes == ([None], [None])
    assert outcomes_of(tx_app.disconnect()) == [None]


def test_a_half_that_cannot_be_closed(transport, logged_errors):
    """The other half is waited for all the same, and what went wrong is logged."""
    tx_app = transport.client()
    tx_app.send_task("tasks.add").addErrback(lambda _: None)
    transport.written.closing = Deferred()
    transport.replies.closing = Deferred()
    outcomes = outcomes_of(tx_app.disconnect())
    transport.written.closing.errback(OSError("no"))
    assert outcomes == []
    transport.replies.closing.callback(None)
    assert outcomes == [None]
    assert len(logged_errors.flush(OSError)) == 1


def test_a_disconnected_client_sends_no_more(transport):
    """Calls and revokes after ``disconnect()`` fail with `Disconnected`."""
    tx_app = transport.client()
    tx_app.disconnect()
    error_of(tx_app.send_task("tasks.add"), Disconnected)
    revoked = outcomes_of(tx_app.revoke("id"))
    transport.turn()
    assert type(revoked[0]) is Disconnected
    assert transport.chosen == 1
    assert transport.written.publications == []


def test_sending_inside_the_callback_of_a_call_that_disconnect_ends(transport):
    """A call made while all calls are ended ends as well, unsent, and leaves no timer."""
    tx_app = transport.client()
    again: list[Any] = []
    for _ in range(2):
        tx_app.send_task("tasks.add").addErrback(
            lambda _: again.extend(outcomes_of(tx_app.send_task("tasks.again")))
        )
    sent = len(transport.written.publications)
    assert outcomes_of(tx_app.disconnect()) == [None]
    assert [type(outcome) for outcome in again] == [Disconnected] * 2
    assert len(transport.written.publications) == sent
    assert transport.clock.getDelayedCalls() == []


def test_disconnecting_inside_the_callback_of_a_call_that_disconnect_ends(transport):
    """A nested ``disconnect()`` waits for the same end; nothing is closed twice."""
    tx_app = transport.client()
    nested: list[list[Any]] = []
    tx_app.send_task("tasks.add").addErrback(lambda _: nested.append(outcomes_of(tx_app.disconnect())))
    transport.replies.closing = Deferred()
    outcomes = outcomes_of(tx_app.disconnect())
    assert (outcomes, nested) == ([], [[]])
    assert (transport.written.closed, transport.replies.closed) == (1, 1)
    transport.replies.closing.callback(None)
    assert (outcomes, nested) == ([None], [[None]])


def test_disconnecting_inside_the_callback_of_a_result(transport):
    """The last callback of a program may disconnect."""
    tx_app = transport.client()
    outcomes: list[Any] = []
    other = tx_app.send_task("tasks.add")
    other_outcomes = outcomes_of(other)
    call = tx_app.send_task("tasks.add")
    call.addCallback(lambda _: outcomes.append(outcomes_of(tx_app.disconnect())))
    transport.replies.reply(call.task_id, "SUCCESS", 1)
    assert outcomes == [[None]]
    assert type(other_outcomes[0]) is Disconnected


def test_disconnecting_inside_the_callback_of_published(transport):
    """Disconnecting as soon as a task is published fails its call with `Disconnected`."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add", ignore_result=True)
    call.published.addCallback(lambda _: tx_app.disconnect())
    transport.written.last.confirm()
    error_of(call, Disconnected)


def test_a_cancel_just_before_disconnect_still_revokes(transport):
    """The revokes of cancelled calls go out before the connection is closed."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    transport.written.last.confirm()
    call.cancel()
    error_of(call, CallCancelled)
    outcomes = outcomes_of(tx_app.disconnect())
    assert revoked_ids(transport) == [call.task_id]
    assert (outcomes, transport.written.closed) == ([], 0)
    transport.written.last.confirm()
    assert (outcomes, transport.written.closed) == ([None], 1)
    assert transport.clock.getDelayedCalls() == []


def test_only_cancelled_calls_are_revoked(transport):
    """A task whose confirmation is lost while the client disconnects was not cancelled by anybody."""
    tx_app = transport.client()
    cancelled, kept = tx_app.send_task("tasks.add"), tx_app.send_task("tasks.add")
    cancelled.cancel()
    error_of(cancelled, CallCancelled)
    tx_app.disconnect()
    error_of(kept, Disconnected)
    assert not transport.written.publications[1].open, "its confirmation was lost"
    transport.written.last.confirm()
    transport.turn()
    assert revoked_ids(transport) == [cancelled.task_id]


def test_a_revoke_that_no_broker_takes_does_not_hold_up_disconnect(transport):
    """``disconnect()`` waits for the last revokes for a second, no longer."""
    tx_app = transport.client()
    call = tx_app.send_task("tasks.add")
    call.cancel()
    error_of(call, CallCancelled)
    outcomes = outcomes_of(tx_app.disconnect())
    transport.clock.advance(0.9)
    assert outcomes == []
    transport.clock.advance(0.1)
    assert outcomes == [None]


def test_the_reactor_stops(transport):
    """A reactor that stops disconnects the client, and waits for it."""
    reactor = ReactorWithTriggers()
    tx_app = transport.client(reactor=reactor)
    outcomes = outcomes_of(tx_app.send_task("tasks.add"))
    assert [trigger[:2] for trigger in reactor.triggers] == [("before", "shutdown")]
    transport.written.closing = Deferred()
    (waited_for,) = reactor.shut_down()
    assert type(outcomes[0]) is Disconnected
    finished = outcomes_of(waited_for)
    assert finished == []
    transport.written.closing.callback(None)
    assert finished == [None]


def test_an_owner_who_disconnects_it(transport):
    """A client that is not to disconnect by itself goes on while the reactor stops."""
    reactor = ReactorWithTriggers()
    transport.client(reactor=reactor, disconnect_at_shutdown=False).send_task("tasks.add")
    assert reactor.triggers == []


def test_the_reactor_stops_while_disconnecting(transport):
    """A reactor that stops in the middle of ``disconnect()`` waits for its end."""
    reactor = ReactorWithTriggers()
    tx_app = transport.client(reactor=reactor)
    tx_app.send_task("tasks.add").addErrback(lambda _: None)
    transport.written.closing = Deferred()
    outcomes = outcomes_of(tx_app.disconnect())
    finished = outcomes_of(reactor.shut_down()[0])
    transport.written.closing.callback(None)
    assert (outcomes, finished) == ([None], [None])


def test_disconnect_leaves_nothing_with_the_reactor(transport):
    """A disconnected client is no longer told that the reactor stops."""
    reactor = ReactorWithTriggers()
    tx_app = transport.client(reactor=reactor)
    tx_app.send_task("tasks.add").addErrback(lambda _: None)
    tx_app.disconnect()
    assert reactor.triggers == []


# Memory


def test_nothing_is_kept_of_a_call_that_ended(transport):
    """However a call ends, it is freed when its holder lets it go."""
    tx_app = transport.client()
    freed = []
    for end in ("reply", "unreadable", "rejected", "cancelled"):
        call = tx_app.send_task("tasks.add", args=(end,)).addErrback(lambda _: None)
        freed.append(weakref.ref(call))
        if end != "rejected":
            transport.written.last.confirm()
        if end == "reply":
            transport.replies.reply(call.task_id, "SUCCESS", 1)
        elif end == "unreadable":
            transport.replies.fail(call.task_id, ReplyUndecodable("no"))
        elif end == "rejected":
            transport.written.last.fail(PublishRejected("no"))
        else:
            call.cancel()
            transport.turn()
            transport.written.last.confirm()
        del call
    gc.collect()
    assert [reference() for reference in freed] == [None] * 4
    transport.turn()
    assert transport.clock.getDelayedCalls() == []
    assert tx_app.in_flight == 0


# Misunderstandings


@pytest.mark.parametrize("option", ["countdwn", "eat", "pirority"])
def test_an_unknown_option_is_named(transport, option):
    """A misspelt option fails its call, with the one that was meant."""
    meant = {"countdwn": "countdown", "eat": "eta", "pirority": "priority"}[option]
    error = error_of(transport.client().send_task("tasks.add", **{option: 3}), InvalidCall)
    assert f"there is no option {option!r}; did you mean {meant!r}?" in str(error)
    assert transport.written.publications == []


def test_a_task_where_a_name_belongs(transport):
    """``send_task`` takes names."""
    app = bare_app()

    @app.task(name="tasks.nothing", shared=False)
    def task():
        pass

    error = error_of(transport.client(app).send_task(task), InvalidCall)
    assert "send_task() takes the name of a task" in str(error)


def test_a_name_where_a_task_belongs(transport):
    """``task`` takes tasks."""
    with pytest.raises(InvalidCall, match=r"task\(\) takes a Celery task, not 'tasks.add'; .* use send_task"):
        transport.client().task("tasks.add")


@pytest.mark.parametrize(
    ("reactor", "says"),
    [("another", "ConfigurationError: an asyncio event loop runs"), ("own", "BrokerUnavailable: ")],
)
def test_a_reactor_that_does_not_run_within_asyncio(reactor, says):
    """A call under ``asyncio.run`` fails at once instead of waiting for ever; asyncio's own reactor works."""
    program = """
        import asyncio, sys
        from twisted.internet import asyncioreactor
        from celery import Celery

        async def main():
            loop = asyncio.get_running_loop()
            if sys.argv[1] == "own":
                asyncioreactor.install(loop)
            from twistedcelery import TwistedCelery
            app = Celery("app", broker="amqp://127.0.0.1:1//", backend="rpc://")
            client = TwistedCelery(app, publish_timeout=0.1)
            try:
                await client.send_task("add").asFuture(loop)
            except Exception as error:
                print(f"{type(error).__name__}: {error}")

        asyncio.run(main())
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), reactor],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert finished.stdout.startswith(says), finished.stderr
    assert ("twistedcelery.aio" in finished.stdout) == (reactor == "another")
