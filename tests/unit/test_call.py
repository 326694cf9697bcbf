"""One call: what its Deferred does, and what its holder may do with it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, TaskRevokedError
from twisted.internet.defer import CancelledError, Deferred, _DefGen_Return, succeed
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twistedcelery.calls.call import TaskDeferred
from twistedcelery.errors import CallCancelled, Disconnected, PublishRejected, TaskFailure


def meta(status: str, result: Any = None, **more: Any) -> dict[str, Any]:
    return {"status": status, "result": result, "traceback": None, "children": [], **more}


class Holder:
    """A call, with what its client was asked to do."""

    def __init__(self) -> None:
        self.cancelled: list[TaskDeferred] = []
        self.revoked: list[tuple[str, bool, str]] = []
        self.call = TaskDeferred("id-1", "tasks.add", self)
        self.call.dispatch = self

    def cancel(self) -> None:
        self.cancelled.append(self.call)

    def revoke(self, task_id: str, terminate: bool, signal: str) -> Deferred[None]:
        self.revoked.append((task_id, terminate, signal))
        return succeed(None)


@pytest.fixture
def holder() -> Holder:
    return Holder()


def results_of(deferred: Deferred[Any]) -> list[Any]:
    """A list that the Deferred's outcome is put into."""
    outcomes: list[Any] = []
    deferred.addBoth(outcomes.append)
    return outcomes


def error_of(deferred: Deferred[Any], *types: type[BaseException]) -> BaseException:
    """The error that a Deferred has failed with."""
    (failure,) = results_of(deferred)
    assert isinstance(failure, Failure)
    failure.trap(*types)
    return failure.value


# How it ends


def test_success_fires_with_the_value(holder):
    """SUCCESS fires the call with the task's value and keeps the meta."""
    final = meta("SUCCESS", 5, children=["child"])
    holder.call.finish(final)
    assert results_of(holder.call) == [5]
    assert holder.call.meta is final
    assert holder.call.traceback is None


def test_failure_fails_with_the_tasks_exception(holder):
    """FAILURE fails the call with the very exception, and the remote traceback is at hand."""
    raised = ValueError("no")
    holder.call.finish(meta("FAILURE", raised, traceback="Traceback ..."))
    assert error_of(holder.call, ValueError) is raised
    assert holder.call.traceback == "Traceback ..."


def test_revoked_fails_with_celerys_error(holder):
    """REVOKED fails the call with what the worker put into the reply."""
    holder.call.finish(meta("REVOKED", TaskRevokedError("revoked")))
    error_of(holder.call, TaskRevokedError)


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_a_failure_without_an_exception(holder, state):
    """A failing state whose result is no exception fails the call with `TaskFailure`."""
    holder.call.finish(meta(state, "just text"))
    error = error_of(holder.call, TaskFailure)
    assert state in str(error)
    assert error.stored == "just text"


def test_rejected_fails_with_reject(holder):
    """REJECTED fails the call with Celery's `Reject`."""
    holder.call.finish(meta("REJECTED", "not today"))
    error_of(holder.call, Reject)


def test_ignored_fails_with_ignore(holder):
    """IGNORED fails the call with Celery's `Ignore`: the task has no value."""
    holder.call.finish(meta("IGNORED", "not needed"))
    assert error_of(holder.call, Ignore).args == ("not needed",)


def test_a_call_can_be_awaited(holder):
    """A coroutine gets the value from ``await``."""

    async def wait() -> Any:
        return await holder.call

    waited = Deferred.fromCoroutine(wait())
    holder.call.finish(meta("SUCCESS", "value"))
    assert results_of(waited) == ["value"]


# published


def test_published_gives_a_new_deferred_each_time(holder):
    """Each access gives a Deferred of its own, which fires when the broker has the message."""
    first, second = holder.call.published, holder.call.published
    assert first is not second
    outcomes = results_of(first), results_of(second)
    assert outcomes == ([], [])
    holder.call.mark_published()
    assert outcomes == ([None], [None])
    assert results_of(holder.call.published) == [None]


def test_published_fails_with_the_calls_error(holder):
    """Whoever waits for publication, before or after, gets the error that the call fails with."""
    early = holder.call.published
    error = PublishRejected("no")
    holder.call.fail_published(Failure(error))
    assert error_of(early, PublishRejected) is error
    assert error_of(holder.call.published, PublishRejected) is error
    assert error_of(holder.call, PublishRejected) is error


def test_a_result_proves_publication(holder):
    """A reply that overtakes the broker's confirmation fires `published` first."""
    order: list[str] = []
    holder.call.published.addCallback(lambda _: order.append("published"))
    holder.call.addCallback(lambda _: order.append("result"))
    holder.call.finish(meta("SUCCESS"))
    assert order == ["published", "result"]


def test_published_outlives_a_later_failure(holder):
    """A call that was published and then failed was published."""
    holder.call.mark_published()
    holder.call.fail(Disconnected("gone"))
    assert results_of(holder.call.published) == [None]
    error_of(holder.call, Disconnected)


def test_cancelling_published_leaves_the_call_alone(holder):
    """Who waits for publication may stop waiting, and nobody else notices."""
    given_up, other = holder.call.published, holder.call.published
    given_up.cancel()
    error_of(given_up, CancelledError)
    kept = results_of(other)
    holder.call.mark_published()
    assert kept == [None]
    assert holder.cancelled == []
    holder.call.finish(meta("SUCCESS", 1))
    assert results_of(holder.call) == [1]


# on_update


def test_updates_go_to_every_listener_in_order(holder):
    """Each listener hears each state, in the order in which they were added."""
    heard: list[Any] = []
    assert holder.call.on_update(lambda *update: heard.append((1, *update))) is holder.call
    holder.call.on_update(lambda *update: heard.append((2, *update)))
    holder.call.update("PROGRESS", {"current": 1})
    assert heard == [(1, "PROGRESS", {"current": 1}), (2, "PROGRESS", {"current": 1})]


def test_a_listeners_error_is_logged_and_costs_nothing(holder, logged_errors):
    """What a listener raises is logged; the next listener and the result still come."""
    heard: list[str] = []
    holder.call.on_update(lambda _state, _meta: 1 / 0)
    holder.call.on_update(lambda state, _meta: heard.append(state))
    holder.call.update("STARTED", None)
    holder.call.finish(meta("SUCCESS", 1))
    assert heard == ["STARTED"]
    assert results_of(holder.call) == [1]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


def test_nothing_is_heard_after_a_cancel_inside_on_update(holder):
    """A listener that cancels the call is the last one to hear of it."""
    heard: list[str] = []
    holder.call.on_update(lambda _state, _meta: holder.call.cancel())
    holder.call.on_update(lambda state, _meta: heard.append(state))
    holder.call.update("PROGRESS", None)
    assert heard == []
    error_of(holder.call, CallCancelled)


def test_a_listener_may_add_a_listener(holder):
    """A listener added by a listener hears the next state, not the present one."""
    heard: list[str] = []

    def add_another(_state: str, _meta: Any) -> None:
        holder.call.on_update(lambda state, _meta: heard.append(state))

    holder.call.on_update(add_another)
    holder.call.update("ONE", None)
    assert heard == []
    holder.call.update("TWO", None)
    assert heard == ["TWO"]


# cancel and revoke


def test_cancel_tells_the_client_and_fails_the_call(holder):
    """Cancelling fails the call with `CallCancelled`, which is a `CancelledError`."""
    published = holder.call.published
    holder.call.cancel()
    assert holder.cancelled == [holder.call]
    error = error_of(holder.call, CallCancelled)
    assert isinstance(error, CancelledError)
    assert "tasks.add" in str(error)
    assert "id-1" in str(error)
    error_of(published, CallCancelled)


def test_cancel_twice_is_cancel_once(holder):
    """The second cancel does nothing."""
    holder.call.cancel()
    holder.call.cancel()
    assert len(holder.cancelled) == 1
    error_of(holder.call, CallCancelled)


def test_cancel_after_the_end_does_nothing(holder):
    """A call that has ended cannot be cancelled."""
    holder.call.finish(meta("SUCCESS", 1))
    holder.call.cancel()
    assert holder.cancelled == []
    assert results_of(holder.call) == [1]


def test_cancel_inside_published_as_the_result_comes(holder):
    """Whoever cancels on publication wins over the result that arrives at that moment."""
    holder.call.published.addCallback(lambda _: holder.call.cancel())
    holder.call.finish(meta("SUCCESS", 1))
    error_of(holder.call, CallCancelled)


def test_cancel_inside_published_as_the_call_is_cancelled(holder):
    """Cancelling again from `published` while the call is being cancelled does no harm."""
    holder.call.published.addErrback(lambda _: holder.call.cancel())
    holder.call.cancel()
    error_of(holder.call, CallCancelled)


def test_cancel_inside_published_as_publishing_fails(holder):
    """Cancelling from `published` while publishing fails does no harm."""
    holder.call.published.addErrback(lambda _: holder.call.cancel())
    holder.call.fail_published(Failure(PublishRejected("no")))
    error_of(holder.call, CallCancelled)


def test_twisteds_own_timeout_cancels(holder):
    """``addTimeout`` works as on any Deferred."""
    clock = Clock()
    holder.call.addTimeout(2, clock)
    clock.advance(2)
    assert holder.cancelled == [holder.call]
    error_of(holder.call, TimedOut)


def test_revoke_leaves_the_call_waiting(holder):
    """`revoke` passes its options on, and the call goes on waiting."""
    outcome = results_of(holder.call.revoke(terminate=True, signal="SIGKILL"))
    assert outcome == [None]
    assert holder.revoked == [("id-1", True, "SIGKILL")]
    assert not holder.call.called


# Memory and noise


def test_a_call_is_no_cycle():
    """A call that nobody holds is freed at once, not at some later garbage collection."""
    gc.disable()
    try:
        call = TaskDeferred("id-1", "tasks.add", object())
        freed = weakref.ref(call)
        call.finish(meta("SUCCESS"))
        del call
        assert freed() is None
    finally:
        gc.enable()


def test_an_error_nobody_handles_is_heard_at_once(holder, logged_errors):
    """A failed call that was dropped is logged as any Deferred is."""
    holder.call.fail_published(Failure(PublishRejected("no")))
    del holder.call
    assert len(logged_errors.flush(PublishRejected)) == 1


def test_a_failed_call_that_was_handled_makes_no_noise(holder, logged_errors):
    """`published` that nobody asked for logs nothing."""
    holder.call.addErrback(lambda _: None)
    holder.call.fail_published(Failure(PublishRejected("no")))
    del holder.call
    assert logged_errors.flush() == []


class TestClassesThatStopThings:
    """A worker's failure is a failure, whatever class its reply names."""

    @pytest.mark.parametrize(
        "cls",
        [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration, _DefGen_Return],
    )
    def test_the_failure_is_an_exception_of_that_name(self, holder, cls):
        """It cannot end the process, a generator or `inlineCallbacks`."""
        outcomes = results_of(holder.call)
        holder.call.finish(meta("FAILURE", cls("stop")))
        error = outcomes[0].value
        assert isinstance(error, Exception)
        assert not isinstance(error, StopIteration | StopAsyncIteration)
        assert (type(error).__name__, type(error).__module__) == (cls.__name__, cls.__module__)
        assert error.args == ("stop",)

    def test_a_coroutine_that_awaits_it_fails(self, holder):
        """The exception reaches the coroutine as any other."""

        async def wait():
            try:
                await holder.call
            except Exception as error:
                return type(error).__name__

        outcomes = results_of(Deferred.fromCoroutine(wait()))
        holder.call.finish(meta("FAILURE", SystemExit(3)))
        assert outcomes == ["SystemExit"]
