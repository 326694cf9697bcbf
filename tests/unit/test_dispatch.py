"""The life of a call: its table of states, and bursts on every road."""

from __future__ import annotations

import json

import pytest
from celery import Celery, group

from tests.support.outcomes import error_of, outcomes_of
from tests.support.transport import bare_app, pacer_of
from twistedcelery.calls.dispatch import TRANSITIONS, Event, State
from twistedcelery.errors import CallCancelled, PublishRejected, PublishUnconfirmed

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
