"""Who waits for which task, whatever replies come."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.python.failure import Failure

from tests.support.transport import FakeTransport
from twistedcelery import TaskDeferred
from twistedcelery.errors import CallCancelled, Disconnected, ReplyUndecodable
from twistedcelery.results.pending import MAX_STATE_BYTES, StateCache, size_of
from twistedcelery.transports.decoding import FINAL_STATES


def meta(status: str, result: Any = None) -> dict[str, Any]:
    return {"status": status, "result": result, "traceback": None, "children": []}


class Waiting:
    """Calls that wait, and the ids that were forgotten."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.client = self.transport.client()
        self.pending = self.client._pending
        self.forgotten = self.transport.replies.forgotten
        self.outcomes: dict[TaskDeferred, Any] = {}

    def call(self, task_id: str = "id-1") -> TaskDeferred:
        return self.client.send_task("tasks.add", task_id=task_id)

    def hear(self, *calls: TaskDeferred) -> None:
        """Keep the outcomes of calls."""
        for call in calls:
            call.addBoth(lambda outcome, call=call: self.outcomes.__setitem__(call, outcome))

    def value(self, call: TaskDeferred) -> Any:
        outcome = self.outcomes[call]
        return outcome.value if isinstance(outcome, Failure) else outcome


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_results_of_calls_that_were_given_up(waiting):
    """The last of them are kept, bounded in bytes as well as in number."""
    calls = [waiting.call(f"id-{number}") for number in range(300)]
    waiting.hear(*calls)
    for call in calls:
        call.cancel()
        waiting.pending.state_changed(call.task_id, meta("SUCCESS", "x" * 1_000_000))
    kept = [call.task_id for call in calls if waiting.pending.states.get(call.task_id) is not None]
    assert kept == [call.task_id for call in calls[-len(kept) :]]
    assert len(kept) == MAX_STATE_BYTES // 1_000_000


def test_the_bytes_of_states():
    """A state that was replaced or forgotten counts no longer; one that is too large is not kept."""
    states = StateCache(max_bytes=10_000)
    for number in range(100):
        states.note("id-1", meta("PROGRESS", "x" * 4_000))
        states.note(f"other-{number}", meta("PROGRESS", ["x" * 4_000]))
        states.forget(f"other-{number}")
    assert states.get("id-1") == meta("PROGRESS", "x" * 4_000)
    for large in ("x" * 10_000, {"a": [b"x" * 10_000]}, [0] * 1_000, ValueError("x" * 10_000)):
        states.note("id-2", meta("SUCCESS", large))
        assert states.get("id-2") is None
    assert states.get("id-1") is not None
    states.note("id-3", meta("SUCCESS", 1))
    assert states.get("id-3") is not None


@pytest.mark.parametrize(
    ("value", "size"),
    [(5, 0), ("x" * 100, 100), ([b"x" * 100] * 2, 296), ({"key": ("x", None)}, 32 * 3 + 32 * 3 + 4)],
)
def test_the_size_of_a_value(value, size):
    """Texts by their length, containers by their items."""
    assert size_of(value, 1_000_000) == size


def test_the_size_of_a_large_value():
    """Counting ends where it is enough: here before the items, and in a cycle."""
    assert size_of([[0] * 10] * 1000, 1000) == 32 * 1001
    cycle: list[Any] = [1]
    cycle.append(cycle)
    assert size_of(cycle, 1000) > 1000


def test_the_first_final_state_ends_a_call(waiting):
    """A call ends with the first final state, and later ones are dropped."""
    call = waiting.call()
    waiting.hear(call)
    waiting.pending.state_changed("id-1", meta("SUCCESS", 1))
    waiting.pending.state_changed("id-1", meta("FAILURE", ValueError("late")))
    waiting.pending.state_changed("id-1", meta("PROGRESS", "later"))
    assert waiting.value(call) == 1
    assert waiting.forgotten == ["id-1"]
    assert waiting.client.in_flight == 0


@pytest.mark.parametrize("state", ["PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY", "MADE_UP"])
def test_other_states_are_updates(waiting, state):
    """A state that is not final is told to the listeners, and the call goes on waiting."""
    call = waiting.call()
    heard: list[Any] = []
    call.on_update(lambda *update: heard.append(update))
    waiting.pending.state_changed("id-1", meta(state, "meta"))
    assert heard == [(state, "meta")]
    assert waiting.client.in_flight == 1
    assert not call.called


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_final_states_end_a_call(waiting, state):
    """Every final state of Celery's ends the call."""
    call = waiting.call()
    waiting.hear(call)
    waiting.pending.state_changed("id-1", meta(state, ValueError("value")))
    assert call.called
    assert waiting.client.in_flight == 0


def test_final_states_are_celerys():
    """No state of which more may follow is taken for final."""
    assert {"SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED"} == FINAL_STATES


def test_replies_for_nobody_are_dropped(waiting):
    """A reply for a task nobody waits for changes nothing for the others."""
    call = waiting.call()
    waiting.pending.state_changed("stranger", meta("SUCCESS", 1))
    waiting.pending.state_changed("stranger", meta("PROGRESS", 1))
    waiting.pending.reply_failed("stranger", ReplyUndecodable("no"))
    assert not call.called
    assert waiting.forgotten == []


def test_two_calls_with_one_id_both_get_the_result(waiting):
    """A task id used twice: one reply ends both calls, and the id is forgotten once."""
    first, second = waiting.call(), waiting.call()
    waiting.hear(first, second)
    assert waiting.client.in_flight == 2
    waiting.pending.state_changed("id-1", meta("SUCCESS", 1))
    assert waiting.value(first) == waiting.value(second) == 1
    assert waiting.forgotten == ["id-1"]


def test_discarding_one_of_two_keeps_the_id(waiting):
    """The id is forgotten when its last call is."""
    first, second = waiting.call(), waiting.call()
    waiting.pending.discard(first.dispatch)
    assert waiting.forgotten == []
    waiting.pending.discard(second.dispatch)
    assert waiting.forgotten == ["id-1"]
    waiting.pending.state_changed("id-1", meta("SUCCESS", 1))
    assert not first.called
    assert not second.called


def test_discarding_a_stranger_is_ignored(waiting):
    """A call that does not wait, any more or at all, cannot be discarded."""
    call = waiting.call()
    waiting.pending.discard(call.dispatch)
    waiting.pending.discard(call.dispatch)
    assert waiting.forgotten == ["id-1"]
    other = waiting.call()
    waiting.pending.discard(call.dispatch)
    waiting.hear(other)
    waiting.pending.state_changed("id-1", meta("SUCCESS", 1))
    assert waiting.value(other) == 1
    assert not call.called


def test_a_callback_may_cancel_the_other_call_of_its_id(waiting):
    """A call that is cancelled while its twin ends was cancelled, and nothing breaks."""
    first, second = waiting.call(), waiting.call()
    first.addCallback(lambda value: second.cancel() or value)
    waiting.hear(first, second)
    waiting.pending.state_changed("id-1", meta("SUCCESS", 1))
    assert waiting.value(first) == 1
    assert isinstance(waiting.value(second), CallCancelled)


def test_a_callback_may_cancel_the_other_call_of_an_unreadable_reply(waiting):
    """The same when the reply cannot be read."""
    first, second = waiting.call(), waiting.call()
    first.addErrback(lambda failure: second.cancel() or failure)
    waiting.hear(first, second)
    waiting.pending.reply_failed("id-1", ReplyUndecodable("no"))
    assert isinstance(waiting.value(first), ReplyUndecodable)
    assert isinstance(waiting.value(second), CallCancelled)


def test_a_listener_may_cancel_the_other_call_of_its_id(waiting):
    """A call that is cancelled by its twin's listener hears nothing of the state."""
    first, second = waiting.call(), waiting.call()
    heard: list[str] = []
    first.on_update(lambda _state, _meta: second.cancel())
    second.on_update(lambda state, _meta: heard.append(state))
    waiting.hear(second)
    waiting.pending.state_changed("id-1", meta("PROGRESS"))
    assert heard == []
    assert isinstance(waiting.value(second), CallCancelled)


def test_a_reply_that_cannot_be_read_ends_its_calls_alone(waiting):
    """The calls of the id fail with the error; others go on."""
    call, other = waiting.call(), waiting.call("id-2")
    waiting.hear(call)
    error = ReplyUndecodable("no")
    waiting.pending.reply_failed("id-1", error)
    assert waiting.value(call) is error
    assert not other.called


def test_fail_all_ends_every_call(waiting):
    """Each call gets an error of its own."""
    calls = [waiting.call(task_id) for task_id in ("a", "a", "b")]
    waiting.hear(*calls)
    waiting.pending.fail_all(lambda call: Disconnected(call.task_id))
    assert [str(waiting.value(call)) for call in calls] == ["a", "a", "b"]
    assert len({id(waiting.value(call)) for call in calls}) == 3
    assert sorted(waiting.forgotten) == ["a", "b"]
    assert waiting.client.in_flight == 0


def test_fail_all_while_callbacks_cancel(waiting):
    """A callback may cancel any other call while all of them are failed."""
    calls = [waiting.call(task_id) for task_id in ("a", "a", "b")]
    calls[0].addErrback(lambda failure: [call.cancel() for call in calls[1:]] and failure)
    waiting.hear(*calls)
    waiting.pending.fail_all(lambda call: Disconnected(call.task_id))
    assert [type(waiting.value(call)) for call in calls] == [Disconnected, CallCancelled, CallCancelled]


def test_a_call_may_be_added_by_a_callback(waiting):
    """A call with the id of the one that is just ending waits for a reply of its own."""
    call = waiting.call()
    again: list[TaskDeferred] = []
    call.addCallback(lambda _: again.append(waiting.call()))
    waiting.pending.state_changed("id-1", meta("SUCCESS", 1))
    assert not again[0].called
    assert waiting.client.in_flight == 1
