"""Calls of tasks: WAMP client, router, bridge, RabbitMQ, worker, and back."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet.defer import gatherResults

from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("worker_process")


async def refusal(call: Any) -> ApplicationError:
    """The error that a call ends with."""
    with pytest.raises(ApplicationError) as refused:
        await call
    return refused.value


@pytest.mark.parametrize("serializer", ["json", "msgpack", "cbor"])
@pytest_twisted.ensureDeferred
async def test_a_call_returns_what_the_task_returns(serializer, router, bridge, client):
    """A task's arguments and its value cross both protocols, whatever the serialiser."""
    running, caller = await bridge(router.url), await client(router.url, serializer)
    assert await caller.call(running.uri("taskapp.add"), 2, 3) == 5
    args, kwargs = [1, "ü", None, [2.5, {"a": True}]], {"details": 1, "task": "x", "invocation": 3}
    assert await caller.call(running.uri("taskapp.echo"), *args, **kwargs) == {"args": args, "kwargs": kwargs}


@pytest_twisted.ensureDeferred
async def test_progressive_results(router, bridge, client):
    """A caller who asks for progress gets each state with its meta, in order, and the value last."""
    running, caller = await bridge(router.url), await client(router.url)
    seen = []
    options = CallOptions(on_progress=lambda state, meta: seen.append((state, meta)))
    uri = running.uri("taskapp.countdown")
    assert await caller.call(uri, 3, delay=0.01, options=options) == 3
    assert seen == [("PROGRESS", {"current": step, "total": 3}) for step in (1, 2, 3)]
    # Who did not ask gets the value alone; otherwise the client would have complained.
    assert await caller.call(uri, 3, delay=0.01) == 3
    assert len(seen) == 3


@pytest_twisted.ensureDeferred
async def test_a_retry_is_progress_too(router, bridge, client):
    """The state RETRY carries a description of the exception, since WAMP carries no exceptions."""
    running, caller = await bridge(router.url), await client(router.url)
    seen = []
    options = CallOptions(on_progress=lambda state, meta: seen.append((state, meta)))
    assert await caller.call(running.uri("taskapp.retry_once"), options=options) == 1
    assert [(state, meta["exc_message"]) for state, meta in seen] == [("RETRY", "first attempt")]


@pytest_twisted.ensureDeferred
async def test_many_calls_at_once(router, bridge, client):
    """Each of many calls in flight gets its own answer."""
    running = await bridge(router.url, max_in_flight_per_caller=300)
    caller = await client(router.url)
    uri = running.uri("taskapp.add")
    sums = await gatherResults([caller.call(uri, number, 1) for number in range(300)], consumeErrors=True)
    assert sums == [number + 1 for number in range(300)]
    assert (await caller.call(running.api("status")))["in_flight"] == 0


async def touched_by(caller, running, path) -> Any:
    """What a file holds, asked by a task that runs after every earlier one was due."""
    later = str(path) + ".later"
    await caller.call(running.uri("taskapp.touch"), later, celery_options={"countdown": 1.5})
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("mode", ["kill", "killnowait"])
@pytest_twisted.ensureDeferred
async def test_cancelling_a_call_revokes_the_task(mode, touched, router, bridge, client):
    """The task of a cancelled call never runs, and the other calls go on."""
    running, caller = await bridge(router.url), await client(router.url)
    other = caller.call(running.uri("taskapp.sleep"), 0.5)
    call = caller.call(running.uri("taskapp.touch"), str(touched), celery_options={"countdown": 1})
    # The bridge has both, for it is asked after them.
    assert (await caller.call(running.api("status")))["in_flight"] == 2
    caller.cancel_call(call, mode)
    assert (await refusal(call)).error == "wamp.error.canceled"
    assert await other == 0.5
    assert await touched_by(caller, running, touched) == ""


@pytest_twisted.ensureDeferred
async def test_skipping_a_call(touched, router, bridge, client):
    """A call cancelled with ``skip`` never reaches the bridge again: its task runs, and its events tell."""
    running, caller = await bridge(router.url), await client(router.url)
    events = await caller.events(running.uri("taskapp.touch"), match="prefix")
    call = caller.call(running.uri("taskapp.touch"), str(touched), celery_options={"countdown": 0.5})
    # The router forgets it; so does the client when it leaves.
    call.addErrback(lambda failure: failure.trap(ApplicationError))
    caller.cancel_call(call, "skip")
    topic, _ = await events.get()
    assert topic == running.uri("taskapp.touch.succeeded")
    assert touched.read_text() == "ran\n"
    assert (await caller.call(running.api("status")))["totals"] == {"sent": 1, "succeeded": 1}
    assert not call.called


@pytest.mark.parametrize("policy", ["revoke", "keep"])
@pytest_twisted.ensureDeferred
async def test_a_caller_who_waits_for_a_time(policy, touched, router, bridge, client):
    """Past a call's own timeout, in whole seconds, the router ends it, and its task is revoked."""
    from twisted.internet import reactor

    running, caller = await bridge(router.url, on_caller_gone=policy), await client(router.url)
    since = reactor.seconds()
    options = CallOptions(timeout=1)
    countdown = {"countdown": 2.5}
    call = caller.call(running.uri("taskapp.touch"), str(touched), celery_options=countdown, options=options)
    error = await refusal(call)
    assert (error.error, error.args) == ("wamp.error.canceled", ("timeout reached",))
    # Crossbar's seconds end together, so that the last one of a call may be short.
    assert reactor.seconds() - since < 2.5
    assert await touched_by(caller, running, touched) == ""


@pytest.mark.parametrize(("policy", "ran"), [("revoke", ""), ("keep", "ran\n")])
@pytest_twisted.ensureDeferred
async def test_a_caller_who_leaves(policy, ran, touched, router, bridge, client):
    """The task of a caller who has gone is revoked, unless the configuration keeps it."""
    running = await bridge(router.url, on_caller_gone=policy)
    leaving, staying = await client(router.url), await client(router.url)
    call = leaving.call(running.uri("taskapp.touch"), str(touched), celery_options={"countdown": 1})
    assert (await leaving.call(running.api("status")))["in_flight"] == 1
    call.addErrback(lambda failure: failure.trap(ApplicationError))
    await leaving.vanish()
    assert await touched_by(staying, running, touched) == ran


@pytest_twisted.ensureDeferred
async def test_a_cancel_is_no_caller_who_leaves(touched, router, bridge, client):
    """Where tasks are kept when callers leave, one who stays and cancels still revokes."""
    running, caller = await bridge(router.url, on_caller_gone="keep"), await client(router.url)
    call = caller.call(running.uri("taskapp.touch"), str(touched), celery_options={"countdown": 1})
    assert (await caller.call(running.api("status")))["in_flight"] == 1
    caller.cancel_call(call, "killnowait")
    await refusal(call)
    assert await touched_by(caller, running, touched) == ""


@pytest_twisted.ensureDeferred
async def test_a_failing_task(router, bridge, client):
    """A task's exception becomes an error that says what it was, without its traceback."""
    running, caller = await bridge(router.url), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.fail"), "no luck"))
    assert error.error == running.uri("error.task_failed")
    assert error.args == ("ValueError: no luck",)
    assert error.kwargs.pop("task_id")
    assert error.kwargs == {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": "no luck"}


@pytest_twisted.ensureDeferred
async def test_a_traceback_travels_where_it_may(router, bridge, client):
    """The remote traceback is in the error when the configuration says so."""
    running, caller = await bridge(router.url, tracebacks=True), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.fail"), "no luck"))
    assert "taskapp.py" in error.kwargs["traceback"]


@pytest_twisted.ensureDeferred
async def test_an_exception_that_cannot_be_rebuilt(router, bridge, client):
    """An exception class whose constructor fails here is described as what it was there."""
    running, caller = await bridge(router.url), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.fail_unrebuildable")))
    assert error.error == running.uri("error.task_failed")
    assert error.kwargs["exc_type"] == "Unrebuildable"
    assert "this and that" in error.kwargs["exc_message"]


@pytest_twisted.ensureDeferred
async def test_a_task_that_no_worker_knows(app, router, bridge, client):
    """A task that the bridge has and the worker has not is unknown, not failed."""

    @app.task(name="taskapp.only_here", shared=False)
    def only_here() -> None:
        pass

    running, caller = await bridge(router.url), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.only_here")))
    assert error.error == running.uri("error.unknown_task")


@pytest_twisted.ensureDeferred
async def test_a_name_that_nobody_knows(router, bridge, client):
    """A procedure that nobody registered is the router's to refuse; a submitted name the bridge's."""
    running, caller = await bridge(router.url), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.nothing")))
    assert error.error == "wamp.error.no_such_procedure"
    error = await refusal(caller.call(running.api("submit"), "taskapp.nothing"))
    assert error.error == running.uri("error.unknown_task")


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        ([1], {}, "invalid_arguments"),
        ([1, 2, 3], {}, "invalid_arguments"),
        ([1, 2], {"z": 3}, "invalid_arguments"),
        ([1, 2], {"celery_options": ["countdown"]}, "invalid_arguments"),
        ([1, 2], {"celery_options": {"countdown": "soon"}}, "invalid_arguments"),
        ([1, 2], {"celery_options": {"eta": "tomorrow"}}, "invalid_arguments"),
        ([1, 2], {"celery_options": {"queue": "elsewhere"}}, "not_allowed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_calls_that_are_refused(args, kwargs, error, router, bridge, client):
    """What is wrong with a call is said before anything is sent."""
    running, caller = await bridge(router.url), await client(router.url)
    refused = await refusal(caller.call(running.uri("taskapp.add"), *args, **kwargs))
    assert refused.error == running.uri(f"error.{error}")
    assert (await caller.call(running.api("status")))["totals"].get("sent", 0) == 0


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nan", "value is nan"),
        ("infinity", "value is inf"),
        ("huge", "past 64 bits"),
        ("nul string", "starts with \\0"),
        ("17 MiB", "more than"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_results_that_wamp_cannot_carry(kind, says, router, bridge, client):
    """The caller is told, and other calls in flight are not disturbed."""
    running = await bridge(router.url, max_reply_bytes=2**26)
    caller = await client(router.url, "cbor")
    other = caller.call(running.uri("taskapp.sleep"), 0.2)
    error = await refusal(caller.call(running.uri("taskapp.odd"), kind))
    assert error.error == running.uri("error.result_unencodable")
    assert says in error.args[0]
    assert await other == 0.2


@pytest_twisted.ensureDeferred
async def test_results_that_wamp_carries_in_another_form(router, bridge, client):
    """What has a text of its own arrives as that text."""
    running, caller = await bridge(router.url), await client(router.url)
    uri = running.uri("taskapp.odd")
    assert dt.datetime.fromisoformat(await caller.call(uri, "datetime")).year == 2024
    assert await caller.call(uri, "integer keys") == {"1": "one", "2": "two"}


@pytest_twisted.ensureDeferred
async def test_a_result_that_celery_cannot_carry(router, bridge, client):
    """What the worker itself cannot serialise is a failure of the task."""
    running, caller = await bridge(router.url), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.odd"), "object"))
    assert error.error == running.uri("error.task_failed")
    assert error.kwargs["exc_type"] == "EncodeError"


@pytest_twisted.ensureDeferred
async def test_a_call_that_takes_too_long(router, bridge, client):
    """Past ``call_timeout`` the caller is told, and the task is revoked."""
    running, caller = await bridge(router.url, call_timeout=0.3), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.sleep"), 1))
    assert error.error == running.uri("error.timeout")
    status = await caller.call(running.api("status"))
    assert status["in_flight"] == 0
    assert status["totals"] == {"sent": 1, "revoked": 1}


@pytest_twisted.ensureDeferred
async def test_too_many_calls(router, bridge, client):
    """Past ``max_in_flight`` a call is refused at once, and accepted again once there is room."""
    running, caller = await bridge(router.url, max_in_flight=2), await client(router.url)
    uri = running.uri("taskapp.sleep")
    accepted = [caller.call(uri, 0.3), caller.call(uri, 0.3)]
    assert (await refusal(caller.call(uri, 0))).error == running.uri("error.overloaded")
    assert await gatherResults(accepted) == [0.3, 0.3]
    assert await caller.call(uri, 0) == 0


@pytest_twisted.ensureDeferred
async def test_a_broker_that_is_not_there(app, router, bridge, client):
    """A call that reaches no broker is refused within ``publish_timeout``."""
    app.conf.broker_url = f"amqp://127.0.0.1:{free_port()}//"
    running, caller = await bridge(router.url, publish_timeout=0.5), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.add"), 1, 2))
    assert error.error == running.uri("error.broker_unavailable")


@pytest_twisted.ensureDeferred
async def test_a_wrong_broker_password(app, rabbitmq, router, bridge, client):
    """A broker that refuses the bridge is named as the reason, without its password."""
    app.conf.broker_url = rabbitmq.vhost_url("%2F", "guest", "a wrong password")
    running, caller = await bridge(router.url, publish_timeout=3), await client(router.url)
    error = await refusal(caller.call(running.uri("taskapp.add"), 1, 2))
    assert error.error == running.uri("error.broker_unavailable")
    assert "wrong" not in str(error)


@pytest_twisted.ensureDeferred
async def test_a_task_without_results(router, bridge, client):
    """A task that stores no result is answered with nothing, once the broker has it."""
    running, caller = await bridge(router.url), await client(router.url)
    assert await caller.call(running.uri("taskapp.ignored"), 1) is None


@pytest_twisted.ensureDeferred
async def test_a_call_to_a_queue_that_is_not_there(router, bridge, client):
    """A task that the broker can put nowhere is refused, and does not wait."""
    running, caller = (
        await bridge(router.url, allow_options=["exchange", "routing_key"]),
        await client(router.url),
    )
    options = {"exchange": "amq.direct", "routing_key": "nobody"}
    error = await refusal(caller.call(running.uri("taskapp.add"), 1, 2, celery_options=options))
    assert error.error == running.uri("error.broker_unavailable")
