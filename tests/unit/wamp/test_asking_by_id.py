"""Questions by task id: this bridge, another one, or the result backend answers."""

from __future__ import annotations

from typing import Any

import pytest
from autobahn.wamp.exception import ApplicationError, TransportLost
from celery.exceptions import NotRegistered, TaskRevokedError
from twisted.python.failure import Failure

from tests.unit.wamp.conftest import error_of, result_of
from tests.unit.wamp.fakes import success
from twistedcelery import BrokerUnavailable, NoResultBackend, ResultBackendUnavailable
from twistedcelery.wamp.task_ids import TaskIds

NOBODYS = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def others():
    """The ids of another bridge of the same realm and prefix."""
    return TaskIds("realm1", "celery")


def keep(one: Any) -> None:
    """Give a bridge a result backend that keeps results."""
    one.client.keeps_results = True


def meta(status: str, result: Any, **more: Any) -> dict[str, Any]:
    return {"status": status, "result": result, **more}


@pytest.mark.parametrize("question", ["result", "state"])
def test_the_bridge_that_sent_it_is_asked(question, setup, others):
    """The other bridge gets the question, the id and the caller, and its answer goes to the caller."""
    one, task_id = setup(), others.new()
    answer = one.call(f"celery_api.{question}", task_id)
    ((procedure, args, asked),) = one.session.calls
    assert procedure == f"celery_admin.sent_by.{others.own}"
    assert args == (question, task_id, [7, "joe", "user"])
    asked.callback("its answer")
    assert result_of(answer) == "its answer"


def test_an_error_of_the_other_bridge(setup, others):
    """The caller gets it unchanged."""
    one = setup()
    answer = one.call("celery_api.result", others.new())
    details = {"exc_type": "ValueError", "traceback": "x"}
    failed = ApplicationError("celery.error.task_failed", "ValueError: bad", **details)
    one.session.calls[0][2].errback(Failure(failed))
    error = error_of(answer)
    assert (error.error, error.args) == ("celery.error.task_failed", ("ValueError: bad",))
    assert error.kwargs == details


@pytest.mark.parametrize(
    "gone",
    [
        ApplicationError("wamp.error.no_such_procedure"),
        ApplicationError("wamp.error.not_authorized"),
        ApplicationError("wamp.error.canceled", "callee disconnected"),
        ApplicationError("celery.error.unknown_task", "it has forgotten it"),
        TransportLost(),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_the_bridge_that_sent_it_is_gone(kept, gone, setup, others):
    """Then a result backend that keeps results is asked. Without one, the task is unknown."""
    one, task_id = setup(), others.new()
    one.client.keeps_results = kept
    answer, state = one.call("celery_api.result", task_id), one.call("celery_api.state", task_id)
    for _, _, asked in one.session.calls:
        asked.errback(Failure(gone))
    if kept:
        for stored, value in zip(one.client.results[task_id].asked, (5, "SUCCESS"), strict=True):
            stored.callback(value)
        assert (result_of(answer), result_of(state)) == (5, "SUCCESS")
    else:
        assert error_of(answer).error == "celery.error.unknown_task"
        assert result_of(state) == "PENDING"


def test_tasks_of_anybody(setup):
    """The result backend answers for tasks that no bridge sent, if it keeps results."""
    one = setup()
    keep(one)
    answer, state = one.call("celery_api.result", NOBODYS), one.call("celery_api.state", NOBODYS)
    assert one.session.calls == []
    for stored, value in zip(one.client.results[NOBODYS].asked, ((1, 2), "PENDING"), strict=True):
        stored.callback(value)
    assert (result_of(answer), result_of(state)) == ([1, 2], "PENDING")


@pytest.mark.parametrize(
    ("failure", "stored", "uri"),
    [
        (ValueError("bad"), meta("FAILURE", None, traceback="x"), "task_failed"),
        (NotRegistered("theirs"), meta("FAILURE", None), "unknown_task"),
        (NotRegistered(), meta("FAILURE", None), "task_failed"),
        (BrokerUnavailable("raised by the task"), meta("FAILURE", None), "task_failed"),
        (TaskRevokedError("revoked"), meta("REVOKED", None), "revoked"),
        (ResultBackendUnavailable("gone"), None, "broker_unavailable"),
        (NoResultBackend("none"), None, "broker_unavailable"),
    ],
)
def test_ends_that_the_backend_tells(failure, stored, uri, setup):
    """The errors are the same as those of the caller's own calls."""
    one = setup(tracebacks=True)
    keep(one)
    answer = one.call("celery_api.result", NOBODYS)
    result = one.client.results[NOBODYS]
    result.meta = stored
    result.asked[0].errback(Failure(failure))
    error = error_of(answer)
    assert (error.error, error.kwargs["task_id"]) == (f"celery.error.{uri}", NOBODYS)
    assert error.kwargs.get("traceback") == (stored or {}).get("traceback")


def test_a_result_of_too_many_items(setup):
    """A value that the bridge would not send to the task's own caller is not sent by id either."""
    one = setup(max_items=10)
    keep(one)
    answers = [one.call("celery_api.result", NOBODYS) for _ in range(2)]
    for asked, items in zip(one.client.results[NOBODYS].asked, (10, 11), strict=True):
        asked.callback([0] * items)
    assert result_of(answers[0]) == [0] * 10
    error = error_of(answers[1])
    assert (error.error, error.kwargs) == ("celery.error.result_unencodable", {"task_id": NOBODYS})


def test_a_backend_that_does_not_answer(setup):
    """A backend failure is an error, not PENDING."""
    one = setup()
    keep(one)
    answer = one.call("celery_api.state", NOBODYS)
    one.client.results[NOBODYS].asked[0].errback(Failure(ResultBackendUnavailable("gone")))
    assert error_of(answer).error == "celery.error.broker_unavailable"


def test_a_backend_knows_nothing_of_callers(setup, others):
    """With access to one's own tasks only, the backend is not asked, but the bridge that sent the task is."""
    one = setup(task_access="caller")
    keep(one)
    for procedure in ("result", "revoke"):
        assert error_of(one.call(f"celery_api.{procedure}", NOBODYS)).error == "celery.error.unknown_task"
    assert result_of(one.call("celery_api.state", NOBODYS)) == "PENDING"
    task_id = others.new()
    revoked = one.call("celery_api.revoke", task_id)
    assert one.session.calls[0][1] == ("revoke", task_id, [7, "joe", "user"])
    one.session.calls[0][2].errback(Failure(ApplicationError("celery.error.unknown_task", "not yours")))
    assert error_of(revoked).error == "celery.error.unknown_task"
    assert one.client.results == {}
    assert one.client.revoked == []


def ask(one: Any, *args: Any) -> Any:
    """Ask this bridge as another bridge does."""
    (uri,) = (uri for uri in one.bridge.procedures if uri.startswith("celery_admin.sent_by."))
    return one.call(uri, *args, caller=99)


def test_another_bridge_asks(setup):
    """Another bridge gets the caller's answer, and may revoke only the caller's tasks."""
    one = setup(task_access="caller")
    one.call("celery_api.submit", "app.add", [1, 2])
    task_id, mine, others = one.last.task_id, [7, None, None], [8, "jim", "user"]
    assert result_of(ask(one, "state", task_id, mine)) == "PENDING"
    waiting = ask(one, "result", task_id, mine)
    for question in ("state", "result", "revoke"):
        assert error_of(ask(one, question, task_id, others)).error == "celery.error.unknown_task"
    assert one.client.revoked == []
    assert result_of(ask(one, "revoke", task_id, mine)) is None
    assert one.client.revoked == [(task_id, False)]
    one.last.finish(success(3))
    assert result_of(waiting) == result_of(ask(one, "result", task_id, mine)) == 3
    assert one.session.calls == []


@pytest.mark.parametrize(
    "args", [(), ("result",), ("x", NOBODYS, [1, 2, 3]), ("state", 7, [1, 2, 3]), ("state", NOBODYS, 7)]
)
def test_who_asks_like_no_bridge(args, setup):
    """Such a call is refused."""
    assert error_of(ask(setup(), *args)).error == "celery.error.invalid_arguments"


def test_an_id_of_its_own_that_is_forgotten(setup):
    """A bridge does not ask itself."""
    one = setup()
    ids = one.bridge.procedures
    (own,) = (uri.rpartition(".")[2] for uri in ids if ".sent_by." in uri)
    task_id = TaskIds("realm1", "celery")
    task_id._mark = bytes.fromhex(own)
    assert error_of(one.call("celery_api.result", task_id.new())).error == "celery.error.unknown_task"
    assert one.session.calls == []


def test_waiting_has_an_end(setup, others):
    """``call_timeout`` limits every wait for a result by id. The tasks go on."""
    one = setup(call_timeout=5, max_in_flight=3)
    keep(one)
    one.call("celery_api.submit", "app.add", [1, 2])
    one.last.mark_published()
    waiting = [
        one.call("celery_api.result", task_id) for task_id in (one.last.task_id, NOBODYS, others.new())
    ]
    assert error_of(one.call("celery_api.result", NOBODYS)).error == "celery.error.overloaded"
    assert result_of(one.call("celery_api.status"))["waiting"] == 3
    one.clock.advance(5.1)
    assert [error_of(each).error for each in waiting] == ["celery.error.timeout"] * 3
    assert result_of(one.call("celery_api.status"))["waiting"] == 0
    assert one.client.cancelled == []
    one.last.finish(success(3))
    assert one.clock.getDelayedCalls() == []
