"""The procedures for callers, ``celery_api.*``."""

from __future__ import annotations

import uuid
from importlib.metadata import version
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from tests.real.wamp import apps
from tests.real.wamp.client import wait_for_procedure
from tests.real.wamp.test_calls import refusal
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery

pytestmark = pytest.mark.usefixtures("worker_process")


@pytest_twisted.ensureDeferred
async def test_tasks_are_listed(app, router, bridge, client):
    """Each exposed task has its name, procedure, signature and doc; one without a URI its reason."""

    @app.task(name="not a uri", shared=False)
    def not_a_uri(x: int = 1) -> None:
        """Names may hold anything."""

    running, caller = await bridge(router.url), await client(router.url)
    tasks = {task["name"]: task for task in await caller.call(running.api("tasks"))}
    assert tasks["taskapp.countdown"] == {
        "name": "taskapp.countdown",
        "uri": running.uri("taskapp.countdown"),
        "signature": "(n: 'int', delay: 'float' = 0.05) -> 'int'",
        "doc": "``n`` steps of ``delay`` seconds, each with a PROGRESS state.",
    }
    assert tasks["not a uri"]["uri"] is None
    assert tasks["not a uri"]["reason"] == "it contains white space"
    assert tasks["not a uri"]["doc"] == "Names may hold anything."
    assert not [name for name in tasks if name.startswith("celery.")]


@pytest_twisted.ensureDeferred
async def test_tasks_can_be_hidden(router, bridge, client):
    """What ``include`` and ``exclude`` leave out is neither listed nor callable."""
    extra = {"include": ["taskapp.*"], "exclude": ["*.fail*"]}
    running, caller = await bridge(router.url, **extra), await client(router.url)
    names = [task["name"] for task in await caller.call(running.api("tasks"))]
    assert "taskapp.add" in names
    assert "taskapp.fail" not in names
    error = await refusal(caller.call(running.api("submit"), "taskapp.fail", ["x"]))
    assert error.error == running.uri("error.unknown_task")
    assert (
        await refusal(caller.call(running.uri("taskapp.fail"), "x"))
    ).error == "wamp.error.no_such_procedure"


@pytest_twisted.ensureDeferred
async def test_a_submitted_task(router, bridge, client):
    """Submitting returns an id, under which its state and its result can be had, early and late."""
    running, caller = await bridge(router.url), await client(router.url)
    task_id = await caller.call(running.api("submit"), "taskapp.countdown", kwargs={"n": 3, "delay": 0.1})
    assert uuid.UUID(task_id)
    assert await caller.call(running.api("state"), task_id) in {"PENDING", "PROGRESS"}
    assert await caller.call(running.api("result"), task_id) == 3
    assert await caller.call(running.api("state"), uuid.UUID(task_id).hex) == "SUCCESS"
    assert await caller.call(running.api("result"), uuid.UUID(task_id).hex) == 3
    failing = await caller.call(running.api("submit"), "taskapp.fail", ["no luck"])
    for _ in range(2):
        error = await refusal(caller.call(running.api("result"), failing))
        assert (error.error, error.kwargs["exc_message"]) == (running.uri("error.task_failed"), "no luck")
    assert await caller.call(running.api("state"), failing) == "FAILURE"


@pytest_twisted.ensureDeferred
async def test_revoking(touched, router, bridge, client):
    """A task revoked by one caller fails the other's call as revoked, and never runs."""
    running, caller, other = await bridge(router.url), await client(router.url), await client(router.url)
    options = {"countdown": 1}
    task_id = await caller.call(running.api("submit"), "taskapp.touch", [str(touched)], {}, options)
    result = caller.call(running.api("result"), task_id)
    await other.call(running.api("revoke"), task_id)
    assert (await refusal(result)).error == running.uri("error.revoked")
    assert not touched.exists()


@pytest_twisted.ensureDeferred
async def test_status(router, bridge, client):
    """It says whether the broker is there, what is in flight and what has been."""
    running, caller = await bridge(router.url, max_in_flight=7), await client(router.url)
    await caller.call(running.uri("taskapp.add"), 1, 2)
    await refusal(caller.call(running.uri("taskapp.fail"), "x"))
    status = await caller.call(running.api("status"))
    assert status.pop("tasks") > 10
    # It leads a little later, if nobody else does.
    assert status.pop("leader") in {True, False}
    assert status == {
        "connected": True,
        "broker_connected": True,
        "backend_connected": True,
        "router_connected": True,
        "in_flight": 0,
        "max_in_flight": 7,
        "scheduled": 0,
        "waiting_for_worker": 0,
        "waiting": 0,
        "workers": None,
        "totals": {"sent": 2, "succeeded": 1, "failed": 1},
        "version": version("twistedcelery"),
    }


@pytest.mark.parametrize(
    ("procedure", "args", "error"),
    [
        ("submit", [], "invalid_arguments"),
        ("submit", ["taskapp.add", 7], "invalid_arguments"),
        ("submit", ["taskapp.add", [1]], "invalid_arguments"),
        ("submit", [None], "unknown_task"),
        ("submit", ["taskapp.add", [1, 2], {}, {"queue": "x"}], "not_allowed"),
        ("result", [7], "invalid_arguments"),
        ("result", ["nobody's"], "unknown_task"),
        ("state", [], "invalid_arguments"),
        ("revoke", ["x" * 256], "invalid_arguments"),
        ("status", [1], "invalid_arguments"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_wrong_arguments(procedure, args, error, router, bridge, client):
    """What cannot be asked is refused by name."""
    running, caller = await bridge(router.url), await client(router.url)
    refused = await refusal(caller.call(running.api(procedure), *args))
    assert refused.error == running.uri(f"error.{error}")


@pytest_twisted.ensureDeferred
async def test_tasks_of_others(touched, router, bridge, client):
    """Where callers have access to their own tasks only, those of others are as unknown as none at all."""
    running = await bridge(router.url, task_access="caller")
    caller, other = await client(router.url), await client(router.url)
    ended = await caller.call(running.api("submit"), "taskapp.add", [1, 2])
    assert await caller.call(running.api("result"), ended) == 3
    waiting = await caller.call(running.api("submit"), "taskapp.touch", [str(touched)], {}, {"countdown": 1})
    nobodys = str(uuid.uuid4())
    for task_id in (ended, waiting, nobodys):
        for procedure in ("result", "revoke"):
            error = await refusal(other.call(running.api(procedure), task_id))
            assert error.error == running.uri("error.unknown_task")
            assert error.args == (f"no bridge knows the task {task_id}",)
        assert await other.call(running.api("state"), task_id) == "PENDING"
    assert await caller.call(running.api("result"), waiting) == str(touched)
    assert await caller.call(running.api("state"), waiting) == "SUCCESS"
    third = await caller.call(running.api("submit"), "taskapp.touch", [str(touched)], {}, {"countdown": 60})
    await caller.call(running.api("revoke"), third)


@pytest_twisted.ensureDeferred
async def test_a_task_learns_who_called(router, bridge, client):
    """The caller's session, authid and role are headers of the task, and no caller can pretend otherwise."""
    running, caller = await bridge(router.url, allow_options=["headers"]), await client(router.url)
    uri = running.uri("taskapp.request_info")
    headers = (await caller.call(uri, celery_options={"headers": {"x": "y"}}))["headers"]
    details = caller.session_details
    assert headers["x"] == "y"
    assert {name: value for name, value in headers.items() if name.startswith("wamp_")} == {
        "wamp_session": details.session,
        "wamp_authid": details.authid,
        "wamp_authrole": "caller",
    }
    forged = {"headers": {"wamp_authrole": "operator"}}
    error = await refusal(caller.call(uri, celery_options=forged))
    assert error.error == running.uri("error.not_allowed")


@pytest_twisted.ensureDeferred
async def test_too_many_calls_of_one_caller(router, bridge, client):
    """Past ``max_in_flight_per_caller`` one caller is refused, and others are not."""
    running = await bridge(router.url, max_in_flight_per_caller=2)
    caller, other = await client(router.url), await client(router.url)
    uri = running.uri("taskapp.sleep")
    accepted = [caller.call(uri, 0.5), caller.call(uri, 0.5)]
    error = await refusal(caller.call(uri, 0))
    assert error.error == running.uri("error.overloaded")
    assert error.args == ("2 of your tasks are in flight already; try again later",)
    assert await other.call(uri, 0) == 0
    for call in accepted:
        assert await call == 0.5
    assert await caller.call(uri, 0) == 0


@pytest_twisted.ensureDeferred
async def test_slots_of_a_caller_who_has_left(router, bridge, client):
    """What nobody waits for locks nobody out: tasks that are not due, or that were revoked."""
    running = await bridge(router.url, max_in_flight=10, max_in_flight_per_caller=None)
    hostile, caller = await client(router.url), await client(router.url)

    async def submit(*args: Any, **options: Any) -> str:
        return await hostile.call(running.api("submit"), "taskapp.sleep", args, {}, options)

    far = hostile.call(running.uri("taskapp.add"), 2, 3, celery_options={"countdown": 3e8})
    assert (await refusal(far)).error == running.uri("error.not_allowed")
    scheduled = [await submit(0, countdown=600) for _ in range(10)]
    assert await caller.call(running.uri("taskapp.add"), 2, 3) == 5
    long = [await submit(2) for _ in range(10)]
    assert (await refusal(caller.call(running.uri("taskapp.add"), 2, 3))).error == running.uri(
        "error.overloaded"
    )
    for task_id in (*scheduled, *long):
        await hostile.call(running.api("revoke"), task_id)
    await hostile.close()
    assert await caller.call(running.uri("taskapp.add"), 2, 3) == 5
    status = await caller.call(running.api("status"))
    assert status["scheduled"] == 0


@pytest.mark.parametrize("access", ["all", "caller"])
@pytest_twisted.ensureDeferred
async def test_tasks_of_another_bridge(access, touched, router, bridge, client):
    """Of two bridges, each answers for the other's tasks, to those who may know of them, and revokes them."""
    extra = {"prefix": f"two{access}", "task_access": access}
    for timeout in (8, 9):
        running = await bridge(router.url, **extra, publish_timeout=timeout)
    caller, other = await client(router.url), await client(router.url)
    ids = [await caller.call(running.api("submit"), "taskapp.add", [number, 1]) for number in range(4)]
    assert len({task_id[:6] for task_id in ids}) == 2
    for _ in range(3):
        # An odd number of calls, so that each task is asked for at each bridge.
        assert [await caller.call(running.api("result"), task_id) for task_id in ids] == [1, 2, 3, 4]
        assert await caller.call(running.api("state"), ids[0]) == "SUCCESS"
    failing = await caller.call(running.api("submit"), "taskapp.fail", ["no luck"])
    for _ in range(2):
        error = await refusal(caller.call(running.api("result"), failing))
        assert (error.error, error.kwargs["exc_message"]) == (running.uri("error.task_failed"), "no luck")
        if access == "caller":
            error = await refusal(other.call(running.api("result"), failing))
            assert error.error == running.uri("error.unknown_task")
    for _ in range(2):
        later = {"countdown": 1}
        task_id = await caller.call(running.api("submit"), "taskapp.touch", [str(touched)], {}, later)
        waiting = [caller.call(running.api("result"), task_id) for _ in range(2)]
        if access == "caller":
            for _ in range(2):
                error = await refusal(other.call(running.api("revoke"), task_id))
                assert error.error == running.uri("error.unknown_task")
        await caller.call(running.api("revoke"), task_id)
        for result in waiting:
            assert (await refusal(result)).error == running.uri("error.revoked")
    assert not touched.exists()


@pytest_twisted.ensureDeferred
async def test_tasks_of_anybody(redis_server, worker, router, bridge, client, monkeypatch):
    """Where the result backend keeps results, a bridge answers also for tasks that no bridge has sent."""
    broker, backend = redis_server.url(0), redis_server.url(1)
    await deferToThread(worker, broker=broker, backend=backend)
    app = create_app(broker, backend)
    monkeypatch.setattr(apps, "current", app)
    running, caller = await bridge(router.url, call_timeout=3), await client(router.url)
    sender = TwistedCelery(create_app(broker, backend))
    try:
        calls = [sender.send_task("taskapp.add", (2, 3)), sender.send_task("taskapp.fail", ("no luck",))]
        for call in calls:
            call.addErrback(lambda failure: failure.trap(ValueError))
            await call.published
        added, failed = (call.task_id for call in calls)
        assert await caller.call(running.api("result"), added) == 5
        assert await caller.call(running.api("state"), added) == "SUCCESS"
        error = await refusal(caller.call(running.api("result"), failed))
        assert (error.error, error.kwargs["exc_message"]) == (running.uri("error.task_failed"), "no luck")
        assert error.kwargs["task_id"] == failed
        assert await caller.call(running.api("state"), failed) == "FAILURE"
        # One that nobody has sent cannot be told from one that nobody has begun.
        nobodys = str(uuid.uuid4())
        assert await caller.call(running.api("state"), nobodys) == "PENDING"
        assert (await refusal(caller.call(running.api("result"), nobodys))).error == running.uri(
            "error.timeout"
        )
        await gatherResults(calls)
    finally:
        await sender.disconnect()


@pytest_twisted.ensureDeferred
async def test_a_bridge_dies_with_what_it_knows(router, bridge_process, client):
    """Whoever waits at it, or through another bridge, is told; what the other one sent goes on."""
    processes = [
        await deferToThread(bridge_process, router.url, prefix="mortal", publish_timeout=timeout)
        for timeout in (8, 9)
    ]
    caller = await client(router.url)
    await wait_for_procedure(caller, "mortal_api.submit")
    registration = await caller.call("wamp.registration.match", "mortal_api.submit")
    while await caller.call("wamp.registration.count_callees", registration) < 2:
        pass
    ids = [await caller.call("mortal_api.submit", "taskapp.sleep", [2]) for _ in range(4)]
    waiting = [(task_id, caller.call("mortal_api.result", task_id)) for task_id in ids for _ in range(2)]
    await caller.call("mortal_api.status")
    await deferToThread(processes[0].kill)
    ends: dict[str, set[Any]] = {}
    for task_id, call in waiting:
        end = await call.addErrback(lambda failure: failure.value.error)
        ends.setdefault(task_id[:6], set()).add(end)
    unknown, cancelled = "mortal.error.unknown_task", "wamp.error.canceled"
    # Calls that had gone to the bridge that is dead end so, whichever bridge has sent their task.
    dead, alive = sorted(ends.values(), key=lambda ended: 2 in ended)
    assert (dead, alive | {cancelled}) == ({unknown, cancelled}, {2, cancelled})
    for task_id in ids:
        call = caller.call("mortal_api.result", task_id)
        end = await call.addErrback(lambda failure: failure.value.error)
        assert end == (2 if 2 in ends[task_id[:6]] else unknown)
