"""From a WAMP invocation to a task and back, without any I/O."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import NotRegistered, Reject, TaskRevokedError

from tests.unit.wamp.conftest import error_of, result_of
from tests.unit.wamp.fakes import failure, final, success
from twistedcelery import (
    BrokerUnavailable,
    CallCancelled,
    Disconnected,
    EncodeError,
    NoResultBackend,
    Overloaded,
    ReplyNotAccepted,
    ReplyUndecodable,
    ResultLost,
    TaskFailure,
    Unroutable,
)
from twistedcelery.wamp.bridge import PING_TIMEOUT
from twistedcelery.wamp.task_ids import TaskIds


def test_a_call_becomes_a_task(setup):
    """The task gets the caller's arguments and the options it was declared with."""
    one = setup()
    answer = one.call("app.add", 2, y=3, celery_options={"countdown": 5})
    name, args, kwargs, options = one.client.sent[0]
    assert (name, args, kwargs) == ("app.add", [2], {"y": 3})
    assert options.pop("task_type").name == "app.add"
    assert options.pop("headers") == {"wamp_session": 7, "wamp_authid": "joe", "wamp_authrole": "user"}
    assert options == {"ignore_result": False, "serializer": "json", "time_limit": 60, "countdown": 5}
    assert not answer.called
    one.last.mark_published()
    one.last.finish(success(5))
    assert result_of(answer) == 5


def test_arguments_are_checked_as_celery_does(setup):
    """Bound tasks are checked without ``self``, tasks with ``typing=False`` not at all."""
    one = setup()
    assert not one.call("app.bound", 1, flag=True).called
    assert error_of(one.call("app.bound")).error == "celery.error.invalid_arguments"
    assert not one.call("app.untyped", 1, 2, 3).called
    assert len(one.client.sent) == 2


@pytest.mark.parametrize(
    ("meta", "uri"),
    [
        (failure(KeyError("x")), "task_failed"),
        (failure(NotRegistered("app.add")), "unknown_task"),
        (failure(NotRegistered("another.task")), "task_failed"),
        (failure(WorkerLostError("signal 9")), "worker_lost"),
        (failure(TaskRevokedError("raised by the task itself")), "task_failed"),
        (failure(BrokerUnavailable("raised by the task itself")), "task_failed"),
        (final("REVOKED", TaskRevokedError("revoked")), "revoked"),
        (failure(CallCancelled("raised by the task itself")), "task_failed"),
        (final("REVOKED", "not an exception"), "revoked"),
        (final("REJECTED", Reject("no")), "task_failed"),
        (final("FAILURE", "not an exception"), "task_failed"),
        (final("FAILURE", TaskFailure("no exception", {"custom": "why"})), "task_failed"),
        (success(float("nan")), "result_unencodable"),
        (success(object()), "result_unencodable"),
    ],
)
def test_how_tasks_end_badly(meta, uri, setup):
    """Each end is an error of its own, with the task's id."""
    one = setup()
    answer = one.call("app.add", 1, 2)
    one.last.finish(meta)
    error = error_of(answer)
    assert error.error == f"celery.error.{uri}"
    assert error.kwargs["task_id"] == one.last.task_id
    assert len(one.open) == 0


@pytest.mark.parametrize(
    ("refused", "uri"),
    [
        (BrokerUnavailable("no broker"), "broker_unavailable"),
        (Unroutable("no queue"), "broker_unavailable"),
        (NoResultBackend("nowhere"), "broker_unavailable"),
        (Disconnected("stopped"), "broker_unavailable"),
        (EncodeError("not JSON"), "invalid_arguments"),
        (Overloaded("too much"), "overloaded"),
        (ReplyNotAccepted("pickle"), "result_unencodable"),
        (ReplyUndecodable("not JSON"), "result_unencodable"),
        (ResultLost("nobody has it"), "result_lost"),
    ],
)
def test_calls_that_the_library_refuses(refused, uri, setup):
    """Each of the library's errors is a WAMP error. No event is published of a task that was not sent."""
    one = setup(events=True)
    one.client.refuse = refused
    error = error_of(one.call("app.add", 1, 2))
    assert (error.error, error.args) == (f"celery.error.{uri}", (str(refused),))
    assert one.session.published == []
    assert result_of(one.call("celery_api.status"))["in_flight"] == 0


def test_a_failure_without_an_exception_says_what_was_stored(setup):
    """What a worker stored as its failure's details reaches the caller, the subscribers and the totals."""
    one = setup(events=["failed"])
    answer = one.call("app.add", 1, 2)
    stored = {"exc_type": "Refused", "exc_module": "shop", "exc_message": "no tea", "code": 7}
    one.last.finish(failure(TaskFailure("no exception", stored)))
    kwargs = error_of(answer).kwargs
    assert (kwargs["exc_type"], kwargs["exc_module"], kwargs["exc_message"]) == ("Refused", "shop", "no tea")
    assert one.session.topics() == ["app.add.failed"]
    assert result_of(one.call("celery_api.status"))["totals"]["failed"] == 1


def test_tracebacks_stay_inside(setup):
    """A remote traceback is sent only if configured. Logging the error does not remove it."""
    for tracebacks in (False, True):
        one = setup(tracebacks=tracebacks)
        answer = one.call("app.add", 1, 2)
        one.last.finish(failure(ValueError("bad"), traceback="File secret.py"))
        error = error_of(answer)
        assert "bad" in str(error)
        assert error.kwargs.get("traceback") == ("File secret.py" if tracebacks else None)


def test_progress_goes_to_those_who_ask(setup):
    """Each state is a progressive result. Unencodable ones are dropped, and none follows the end."""
    one, seen = setup(), []
    answer = one.call("app.add", 1, 2, progress=lambda *result: seen.append(result))
    for meta in (1, object(), {2: 3}):
        one.last.update("PROGRESS", meta)
    one.last.update("RETRY", ValueError("again"))
    one.last.finish(success(0))
    assert seen[:2] == [("PROGRESS", 1), ("PROGRESS", {"2": 3})]
    assert [state for state, _ in seen[2:]] == ["RETRY"]
    assert seen[2][1]["exc_message"] == "again"
    one.last.update("PROGRESS", 4)
    assert len(seen) == 3
    assert result_of(answer) == 0


def test_a_cancelled_call(setup):
    """Cancelling revokes the task and ends the call. Nothing follows."""
    one, seen = setup(), []
    answer = one.call("app.add", 1, 2, progress=seen.append)
    one.last.mark_published()
    answer.cancel()
    assert error_of(answer).error == "celery.error.revoked"
    assert one.client.cancelled == [one.last]
    one.last.update("PROGRESS", 1)
    assert seen == []
    assert one.session.topics() == ["app.add.revoked"]


@pytest.mark.parametrize(
    ("mode", "router_says", "revoked"),
    [
        ("kill", None, True),
        ("killnowait", "is there", True),
        ("killnowait", "has left", False),
    ],
)
def test_keeping_the_tasks_of_callers_who_leave(mode, router_says, revoked, setup):
    """A cancellation still revokes. Where the caller may have left, the router is asked."""
    from autobahn.wamp.exception import ApplicationError

    one = setup(on_caller_gone="keep")
    answer = one.call("app.add", 1, 2)
    one.open.interrupt_mode = mode
    answer.cancel()
    error_of(answer)
    if router_says is not None:
        procedure, args, asked = one.session.calls[0]
        assert (procedure, args) == ("wamp.session.get", (7,))
        if router_says == "is there":
            asked.callback({"session": 7})
        else:
            asked.errback(ApplicationError("wamp.error.no_such_session"))
    assert bool(one.client.cancelled) == revoked
    assert result_of(one.call("celery_api.status"))["in_flight"] == (0 if revoked else 1)


@pytest.mark.parametrize(("policy", "revoked"), [("revoke", True), ("keep", False)])
def test_a_call_times_out(policy, revoked, setup):
    """After ``call_timeout`` the call fails, and ``on_caller_gone`` decides about the task."""
    one, seen = setup(call_timeout=5, on_caller_gone=policy), []
    answer = one.call("app.add", 1, 2, progress=lambda *result: seen.append(result))
    one.clock.advance(4.9)
    assert not answer.called
    one.clock.advance(0.2)
    assert error_of(answer).error == "celery.error.timeout"
    assert bool(one.client.cancelled) == revoked
    if not revoked:
        one.last.update("STARTED", None)
        one.last.finish(success(3))
        assert one.session.topics() == ["app.add.succeeded"]
        assert seen == []
    assert one.clock.getDelayedCalls() == []


def test_a_call_in_time_leaves_no_timer(setup):
    """No timer stays behind."""
    one = setup(call_timeout=5)
    answer = one.call("app.add", 1, 2)
    one.last.finish(success(3))
    assert result_of(answer) == 3
    assert one.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("stored", "exc_type", "says"),
    [
        (TaskRevokedError("expired"), "TaskRevokedError", "expired"),
        (TaskFailure("stored with 'why', which is no exception", "why"), "TaskFailure", "stored with 'why'"),
    ],
)
def test_the_reason_of_a_revocation(stored, exc_type, says, setup):
    """Callers learn what the worker said."""
    one = setup()
    answer = one.call("app.add", 1, 2)
    one.last.finish(final("REVOKED", stored))
    error = error_of(answer)
    assert error.kwargs.keys() == {"exc_type", "exc_module", "exc_message", "task_id"}
    assert error.kwargs["exc_type"] == exc_type
    assert says in error.args[0]
    assert says in error.kwargs["exc_message"]
    assert one.bridge._in_flight.totals["revoked"] == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": {"__type__": "datetime", "__value__": "2020-01-01"}}, "['a'] has the keys '__type__' and"),
        (reduce(lambda inner, _: [inner], range(101), 1), "nested deeper than 100 levels"),
        ([0] * 200, "more than 200 items in all; max_items of the bridge's configuration"),
    ],
)
def test_arguments_that_cannot_be_sent(value, says, setup):
    """They are refused wherever they come from, and take no place."""
    one = setup(max_items=200, allow_options=["headers"])
    for refused in (
        one.call("app.untyped", value),
        one.call("app.untyped", x=value),
        one.call("app.untyped", 1, celery_options={"headers": {"x": value}}),
        one.call("celery_api.submit", "app.untyped", [value]),
        one.call("celery_api.submit", "app.untyped", [], {"x": value}),
    ):
        error = error_of(refused)
        assert error.error == "celery.error.invalid_arguments"
        assert says in error.args[0]
    assert (one.client.sent, len(one.bridge._in_flight)) == ([], 0)


def test_max_in_flight(setup):
    """Past the limit a call is refused at once and nothing is sent. The end of a task makes room."""
    one = setup(max_in_flight=1)
    first = one.call("app.add", 1, 2)
    assert error_of(one.call("app.add", 1, 2)).error == "celery.error.overloaded"
    assert error_of(one.call("celery_api.submit", "app.add", [1, 2])).error == "celery.error.overloaded"
    one.last.finish(success(3))
    assert result_of(first) == 3
    assert not one.call("app.add", 1, 2).called
    assert len(one.client.sent) == 2


def test_a_lost_session_cancels_nothing(setup):
    """Its calls end without an answer, their tasks go on, and their final events are published later."""
    one = setup(events=True)
    answers = [one.call("app.add", 1, 2) for _ in range(3)]
    early, late, failing = one.client.calls
    one.session.attached = False
    early.finish(success(1))
    assert not answers[0].called
    one.bridge.detach(one.session)
    one.open.close()
    assert [result_of(answer) for answer in answers] == [None] * 3
    late.update("PROGRESS", 1)
    late.finish(success(2))
    failing.finish(failure(ValueError("bad")))
    assert one.client.cancelled == []
    one.session.attached = True
    one.bridge.attach(one.session)
    assert one.session.topics() == ["app.add.succeeded", "app.add.succeeded", "app.add.failed"]


def test_a_replaced_session_does_not_take_the_next_ones_place(setup):
    """The late end of an old session does not detach the new one."""
    one = setup()
    newer = type(one.session)()
    one.bridge.attach(newer)
    one.bridge.detach(one.session)
    one.call("app.add", 1, 2)
    one.last.finish(success(1))
    assert newer.topics() == ["app.add.succeeded"]


def test_a_defect_is_not_told_to_callers(setup, logged_errors):
    """The log has the error; the caller only learns that there was one."""
    one = setup()

    def broken(*_: Any, **__: Any) -> Any:
        raise LookupError("with secrets")

    one.client.send_task = broken
    error = error_of(one.call("app.add", 1, 2))
    assert error.error == "wamp.error.runtime_error"
    assert "secrets" not in str(error.args)
    assert len(logged_errors.flush(LookupError)) == 1


def test_submitted_results_are_kept(setup):
    """A result is the same, whether asked for before or after the end."""
    one = setup()
    submitted = one.call("celery_api.submit", "white space")
    assert not submitted.called
    one.last.mark_published()
    task_id = result_of(submitted)
    waiting = one.call("celery_api.result", task_id)
    one.last.finish(success((1, 2)))
    assert result_of(waiting) == result_of(one.call("celery_api.result", task_id)) == [1, 2]
    assert result_of(one.call("celery_api.state", task_id)) == "SUCCESS"


def test_waiting_for_results_is_limited(setup):
    """At most ``max_in_flight`` callers wait. Cancelling makes room, and revokes nothing."""
    one = setup(max_in_flight=1)
    one.call("celery_api.submit", "white space")
    one.last.mark_published()
    first = one.call("celery_api.result", one.last.task_id)
    assert error_of(one.call("celery_api.result", one.last.task_id)).error == "celery.error.overloaded"
    first.cancel()
    assert error_of(first).error == "celery.error.revoked"
    second = one.call("celery_api.result", one.last.task_id)
    one.last.finish(success(1))
    assert result_of(second) == 1
    assert one.client.cancelled == []


def test_revoke_asks_as_configured(setup):
    """A revoke by id reaches the workers, with ``terminate`` as configured."""
    one = setup(terminate=True)
    assert result_of(one.call("celery_api.revoke", "1" * 32)) is None
    assert one.client.revoked == [("11111111-1111-1111-1111-111111111111", True)]


def test_the_end_of_the_process_does_not_wait_for_ever(setup):
    """Stopping does not wait for a broker that does not close, once the session has left."""
    one = setup()
    stopped: list[None] = []
    one.bridge.stop().addCallback(stopped.append)
    one.clock.advance(60)
    one.session.left.callback(None)
    one.clock.advance(4.9)
    assert stopped == []
    one.clock.advance(0.2)
    assert stopped == [None]


def test_the_ids_of_tasks(setup):
    """Other bridges recognise the id of every task that a bridge sends."""
    one = setup()
    one.call("app.add", 1, 2)
    one.call("celery_api.submit", "white space")
    ids = TaskIds("realm1", "celery")
    assert [ids.made(call.task_id) for call in one.client.calls] == [True, True]


@pytest.mark.parametrize(
    ("answer", "workers"),
    [
        ([], "0 workers online"),
        ([{"w1": {"ok": "pong"}}], "1 worker online"),
        ([{"w1": {"ok": "pong"}}, {"w2": {"ok": "pong"}}], "2 workers online"),
        (None, "the broker has not answered yet"),
        (BrokerUnavailable("no"), "its workers cannot be counted: no"),
    ],
)
def test_what_is_served_is_logged(answer, workers, setup, said):
    """One line has the tasks that callers can call, the application, the bridge's name and its workers."""
    one = setup()
    one.bridge.announce({"celery.app.add", "celery.app.bound", "celery_api.tasks"}, "bridge@realm1")
    name, _, kwargs, _, waiting = one.client.control.sent[-1]
    assert (name, kwargs) == ("ping", {"timeout": PING_TIMEOUT})
    if answer is None:
        one.clock.advance(2 * PING_TIMEOUT)
    elif isinstance(answer, Exception):
        waiting.errback(answer)
    else:
        waiting.callback(answer)
    assert said[-1] == (f"the bridge serves 2 tasks of 'app' (prefix celery) as bridge@realm1; {workers}")
