"""The life of a call: its table of states, and bursts on every road."""

from __future__ import annotations

import json

import pytest
from celery import Celery, group

from tests.support.outcomes import error_of, outcomes_of
from tests.support.transport import bare_app, pacer_of
from twistedcelery.calls.dispatch import TRANSITIONS, Event, State
from twistedcelery.errors import (
    CallCancelled,
    Disconnected,
    PublishRejected,
    PublishUnconfirmed,
    ReplyUndecodable,
    ResultBackendUnavailable,
)

OPEN = [State.QUEUED, State.ENCODED, State.WATCHED, State.PUBLISHED, State.CONFIRMED]


def app_with_add() -> Celery:
    app = bare_app()

    @app.task(name="tasks.add", shared=False)
    def add(x, y):
        return x + y

    return app


ROADS = {
    "send_task": lambda client: client.send_task("tasks.add", (1, 2)),
    "delay": lambda client: client.task(client.app.tasks["tasks.add"]).delay(1, 2),
    "signature": lambda client: client.apply_async(client.app.tasks["tasks.add"].s(1, 2)),
}


def test_the_table_has_one_way_out_and_two_ends():
    """Each open state has its step, and can end or be cancelled; an ended call goes nowhere."""
    steps = {State.QUEUED: Event.ENCODE, State.ENCODED: Event.WATCH}
    steps |= {State.WATCHED: Event.PUBLISH, State.PUBLISHED: Event.CONFIRM}
    expected = {(state, event): OPEN[OPEN.index(state) + 1] for state, event in steps.items()}
    expected |= {(state, Event.END): State.ENDED for state in OPEN}
    expected |= {(state, Event.CANCEL): State.CANCELLED for state in OPEN}
    assert dict(TRANSITIONS) == expected


@pytest.mark.parametrize("road", ROADS)
def test_the_states_of_a_call(transport, road):
    """A call goes through every state in order, whichever way it was made."""
    transport.replies.ready = False
    client = transport.client(app_with_add())
    pacer = pacer_of(client)
    first = ROADS[road](client)
    pacer._budget = 0
    transport.turn()
    pacer.has_room()
    call = ROADS[road](client)
    dispatch = call.dispatch
    assert dispatch.state is State.QUEUED
    pacer._budget = 60
    transport.turn()
    assert dispatch.state is State.ENCODED
    pacer._budget = 0
    transport.turn()
    pacer.has_room()
    transport.replies.waiting[call.task_id].callback(None)
    assert dispatch.state is State.WATCHED
    pacer._budget = 60
    transport.turn()
    assert dispatch.state is State.PUBLISHED
    transport.written.last.confirm()
    assert dispatch.state is State.CONFIRMED
    transport.replies.reply(call.task_id, "SUCCESS", 3)
    assert dispatch.state is State.ENDED
    assert outcomes_of(call) == [3]
    assert call.dispatch is None
    first.cancel()
    error_of(first, CallCancelled)


@pytest.mark.parametrize("road", ROADS)
def test_a_burst_before_the_first_connection_is_paced(transport, road):
    """Thousands may wait for the connection of replies: they are published over several turns."""
    transport.replies.ready = False
    client = transport.client(app_with_add())
    pacer_of(client)._budget = 60
    calls = [ROADS[road](client) for _ in range(10)]
    transport.turn()
    assert transport.written.publications == []
    pacer_of(client)._budget = 0
    for call in calls:
        transport.replies.waiting[call.task_id].callback(None)
    in_the_first_turn = len(transport.written.publications)
    assert in_the_first_turn <= 1
    pacer_of(client)._budget = 60
    transport.turn()
    transport.turn()
    assert [each.message.task_id for each in transport.written.publications] == [c.task_id for c in calls]


@pytest.mark.parametrize("road", ROADS)
def test_a_call_cancelled_while_it_is_encoded_is_not_published(transport, road):
    """A handler of Celery's publish signals may cancel the call that it is told of."""
    from celery.signals import before_task_publish

    client = transport.client(app_with_add())
    pacer_of(client)._budget = 0
    ROADS[road](client)
    call = ROADS[road](client)
    before = len(transport.written.publications)

    @before_task_publish.connect
    def cancel(**_):
        call.cancel()

    try:
        pacer_of(client)._budget = 60
        transport.turn()
        transport.turn()
    finally:
        before_task_publish.disconnect(cancel)
    error_of(call, CallCancelled)
    assert len(transport.written.publications) == before
    assert transport.replies.watched == [transport.written.publications[0].message.task_id]


def test_a_call_is_revoked_once_however_many_of_its_messages_were_sent(transport):
    """Of a cancelled group some messages were confirmed and some not: one revoke command goes out."""
    client = transport.client(app_with_add())
    add = client.app.tasks["tasks.add"]
    call = client.apply_async(group(add.s(1, n) for n in range(3)))
    transport.written.publications[0].confirm()
    call.cancel()
    error_of(call, CallCancelled)
    transport.turn()
    (revoke,) = [each for each in transport.written.publications if each.message.task_id is None]
    assert len(json.loads(revoke.message.body)["arguments"]["task_id"]) == 3


def test_messages_of_a_call_that_has_failed_are_withdrawn(transport):
    """When the result will not come, what has not left does not leave."""
    client = transport.client(app_with_add())
    call = client.send_task("tasks.add")
    publication = transport.written.last
    publication.sent = False
    transport.replies.fail(call.task_id, PublishRejected("gone"))
    error_of(call, PublishRejected)
    assert not publication.open


def test_an_event_that_is_lost_does_not_hold_up_its_task(transport):
    """``task-sent`` events are published along; the task is confirmed without them."""
    client = transport.client(bare_app(task_send_sent_event=True))
    call = client.send_task("tasks.add")
    task, event = transport.written.publications
    task.confirm()
    assert outcomes_of(call.published) == [None]
    event.fail(PublishUnconfirmed("lost"))
    transport.replies.reply(call.task_id, "SUCCESS", 3)
    assert outcomes_of(call) == [3]


# Lost confirmations


@pytest.mark.parametrize("state", ["STARTED", "SUCCESS", "unreadable"])
@pytest.mark.parametrize("road", ROADS)
def test_a_state_proves_that_the_broker_had_the_message(transport, road, state):
    """A call whose confirmation was lost is published once its task has a state, and ends as the task."""
    client = transport.client(app_with_add())
    call = ROADS[road](client)
    outcomes, published = outcomes_of(call), outcomes_of(call.published)
    transport.written.last.fail(PublishUnconfirmed("lost"))
    transport.clock.advance(9)
    assert (outcomes, published) == ([], [])
    if state == "unreadable":
        transport.replies.fail(call.task_id, ReplyUndecodable("no"))
        assert type(outcomes[0]) is ReplyUndecodable
    else:
        transport.replies.reply(call.task_id, state, 3)
        transport.clock.advance(3)
        assert outcomes == ([3] if state == "SUCCESS" else [])
        transport.replies.reply(call.task_id, "SUCCESS", 3)
        assert outcomes == [3]
    assert published == [None]


def test_a_call_without_a_sign_of_life_is_unconfirmed(transport):
    """It ends when its time for publishing is over, with the error that the transport had."""
    client = transport.client(publish_timeout=20)
    calls = [client.send_task("tasks.add"), client.send_task("tasks.add", confirm_timeout=5)]
    outcomes = [outcomes_of(call) for call in calls]
    for publication in transport.written.publications:
        publication.fail(PublishUnconfirmed("reset by peer"))
    transport.clock.advance(5)
    assert [len(each) for each in outcomes] == [0, 1]
    transport.clock.advance(15)
    assert [str(*each) for each in outcomes] == ["reset by peer"] * 2
    assert client.in_flight == 0
    assert transport.clock.getDelayedCalls() == []


@pytest.mark.parametrize("end", ["cancel", "disconnect"])
def test_a_doubtful_call_can_end_otherwise(transport, end):
    """A cancelled one is revoked, since the broker may have it; no timer is left of it."""
    client = transport.client()
    call = client.send_task("tasks.add")
    transport.written.last.fail(PublishUnconfirmed("lost"))
    if end == "cancel":
        call.cancel()
        error_of(call, CallCancelled)
        transport.turn()
        assert call.task_id.encode() in transport.written.last.message.body
        transport.written.last.confirm()
    else:
        client.disconnect()
        error_of(call, Disconnected)
    assert client._pending._next_states == {}
    client.disconnect()
    assert transport.clock.getDelayedCalls() == []


def test_a_doubtful_call_whose_backend_is_away(transport):
    """No state can come any more: that the broker may have the task is what its caller must know."""
    client = transport.client(publish_timeout=60)
    call = client.send_task("tasks.add")
    transport.written.last.fail(PublishUnconfirmed("lost"))
    transport.replies.fail(call.task_id, ResultBackendUnavailable("refused"))
    error_of(call, PublishUnconfirmed)
    assert client._pending._next_states == {}


def test_a_doubtful_call_without_a_result(transport):
    """No state can come of a task whose result is ignored, so its call does not wait for one."""
    client = transport.client()
    call = client.send_task("tasks.add", ignore_result=True)
    transport.written.last.fail(PublishUnconfirmed("lost"))
    error_of(call, PublishUnconfirmed)


def test_a_doubtful_part_of_a_canvas(transport):
    """Each message of a group has its own doubt; the call is published when all are settled."""
    client = transport.client(app_with_add())
    add = client.app.tasks["tasks.add"]
    call = client.apply_async(group(add.s(1, n) for n in range(3)))
    outcomes, published = outcomes_of(call), outcomes_of(call.published)
    first, second, third = transport.written.publications
    first.fail(PublishUnconfirmed("lost"))
    second.fail(PublishUnconfirmed("lost"))
    third.confirm()
    for publication in (first, second):
        assert published == []
        transport.replies.reply(publication.message.task_id, "SUCCESS", 1)
    assert published == [None]
    transport.replies.reply(third.message.task_id, "SUCCESS", 1)
    assert outcomes == [[1, 1, 1]]
    client.disconnect()
    assert transport.clock.getDelayedCalls() == []


def test_two_doubtful_calls_of_one_task(transport):
    """A sign of life counts for both; what the first one's caller does to the second one is no error."""
    client = transport.client()
    first, second = (client.send_task("tasks.add", task_id="same") for _ in range(2))
    for publication in transport.written.tasks():
        publication.fail(PublishUnconfirmed("lost"))
    first.published.addCallback(lambda _: second.cancel())
    transport.replies.reply("same", "STARTED")
    error_of(second, CallCancelled)
    transport.replies.reply("same", "SUCCESS", 3)
    assert outcomes_of(first) == [3]
