"""A user's program: it uses all of the client, and says what types it expects.

``python program.py BROKER BACKEND`` runs it, beside a worker of `tests.support.taskapp`.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from typing import Any, assert_type

from celery import Celery, chord, group, signature
from twisted.internet import defer, task
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorTime

import twistedcelery
from twistedcelery import (
    Control,
    EventStream,
    GroupDeferred,
    GroupResult,
    Inspect,
    TaskDeferred,
    TaskResult,
    TwistedCelery,
    TwistedTask,
)

app = Celery("program", set_as_current=False)


@app.task(name="taskapp.add")  # type: ignore[untyped-decorator]  # Celery has no type information
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


def told(state: str, meta: Any) -> None:
    """Hear of a task's progress."""
    print(state, meta)


def happened(event: dict[str, Any]) -> None:
    """Hear of an event."""
    print(event["type"])


def replied(reply: dict[str, Any]) -> None:
    """Hear of a worker's reply."""
    print(reply)


async def happens(event: dict[str, Any]) -> None:
    """Take an event, and some time."""
    await task.deferLater(clock(), 0, happened, event)


def clock() -> IReactorTime:
    """The reactor that runs."""
    from twisted.internet import reactor

    return IReactorTime(reactor)


async def call_tasks(tx_app: TwistedCelery) -> None:
    """Call tasks by name."""
    call = tx_app.send_task("taskapp.countdown", args=(2,), kwargs={"delay": 0.01}, priority=3)
    assert_type(call, TaskDeferred)
    assert_type(call.task_id, str)
    assert_type(call.task_name, str)
    assert_type(call.published, Deferred[None])
    assert_type(call.on_update(told), TaskDeferred)
    call.on_update(lambda state, meta: print(state, type(meta)))
    assert_type(await call.published, None)
    assert_type(tx_app.connected, bool)
    assert_type(tx_app.in_flight, int)
    assert_type(await call, Any)
    assert_type(call.meta, Mapping[str, Any] | None)
    assert_type(call.traceback, str | None)
    try:
        await tx_app.send_task("taskapp.add", args=(1, 2), countdown=60).addTimeout(0.01, clock())
    except defer.TimeoutError as error:
        print(error)
    cancelled = tx_app.send_task("taskapp.add", args=(1, 2), countdown=60)
    assert_type(cancelled.revoke(terminate=False), Deferred[None])
    cancelled.cancel()
    try:
        await cancelled
    except twistedcelery.CallCancelled as error:
        assert_type(error, twistedcelery.CallCancelled)
    assert_type(await tx_app.revoke(call.task_id, terminate=True, signal="SIGKILL"), None)


@inlineCallbacks
def call_tasks_the_old_way(tx_app: TwistedCelery) -> Generator[Deferred[Any], Any, int]:
    """Yield instead of awaiting."""
    total: int = yield tx_app.send_task("taskapp.add", (2, 3))
    return total


async def call_canvases(tx_app: TwistedCelery) -> None:
    """Call signatures, canvases and tasks."""
    call = tx_app.apply_async(add.s(2, 2) | add.s(4), countdown=0)
    assert_type(call, TaskDeferred)
    parent = call.parent
    assert_type(parent, TaskResult | GroupResult | None)
    if parent is not None:
        assert_type(await parent.get(timeout=10), Any)
    assert_type(await call, Any)
    assert_type(call.children, list[TaskResult | GroupResult] | None)
    several = tx_app.apply_async(group(add.s(n, n) for n in range(3)))
    if isinstance(several, GroupDeferred):
        assert_type(several.results, list[TaskResult | GroupResult])
    await several
    await tx_app.apply_async(chord([add.s(1, 1), add.s(2, 2)], signature("taskapp.echo")))
    await tx_app.apply_async({"task": "taskapp.add", "args": (1, 2), "kwargs": {}, "options": {}})
    bound = tx_app.task(add)
    assert_type(bound, TwistedTask)
    assert_type(bound.name, str)
    assert_type(bound.delay(1, y=2), TaskDeferred)
    assert_type(bound.apply_async((1, 2), {}, countdown=0), TaskDeferred)
    for one in (bound.s(1, 2), bound.si(1, 2), bound.signature((1, 2)), bound.starmap([(1, 2)])):
        await tx_app.apply_async(one)
    await tx_app.apply_async(bound.chunks([(1, 2), (3, 4)], 1))


async def ask_for_results(tx_app: TwistedCelery) -> None:
    """Ask the result backend."""
    call = tx_app.task(add).delay(2, 3)
    await call
    result = tx_app.result(call.task_id)
    assert_type(result, TaskResult)
    assert_type(result.id, str)
    assert_type(result.state, Deferred[str])
    assert_type(await result.state, str)
    assert_type(await result.result, Any)
    assert_type(await result.traceback, str | None)
    assert_type(await result.children, list[TaskResult | GroupResult] | None)
    assert_type(await result.name, str | None)
    assert_type(await result.retries, int | None)
    assert_type(await result.ready(), bool)
    assert_type(await result.successful(), bool)
    assert_type(await result.failed(), bool)
    assert_type(await result.exists(), bool)
    assert_type(await result.get(timeout=1.5, propagate=False), Any)
    assert_type(await result.collect(), list[tuple[TaskResult | GroupResult, Any]])
    assert_type(await result, Any)
    assert_type(await result.revoke(), None)
    members = tx_app.group_result("members", [result])
    assert_type(members, GroupResult)
    assert_type(members.results, list[TaskResult | GroupResult])
    assert_type(await members.completed_count(), int)
    assert_type(await members.join(timeout=10), Any)
    assert_type(await members.save(), None)
    assert_type(await tx_app.group_result("members").restore(), GroupResult | None)
    assert_type(await members.delete(), None)
    assert_type(await result.forget(), None)


async def command_workers(tx_app: TwistedCelery) -> None:
    """Command and inspect workers, and listen to them."""
    control = tx_app.control
    assert_type(control, Control)
    assert_type(await control.ping(timeout=0.5), list[dict[str, dict[str, str]]])
    assert_type(await control.revoke("id", terminate=True), list[dict[str, Any]] | None)
    await control.revoke(["one", "two"], reply=True, timeout=0.5)
    await control.rate_limit("taskapp.add", "1000/s", destination=["celery@nowhere"])
    await control.time_limit("taskapp.add", soft=10, hard=20.5)
    await control.enable_events()
    assert_type(
        await control.broadcast("ping", reply=True, limit=1, callback=replied), list[dict[str, Any]] | None
    )
    assert_type(await control.purge(), int)
    inspect = control.inspect(timeout=0.5, limit=1)
    assert_type(inspect, Inspect)
    assert_type(await inspect.active(), dict[str, list[dict[str, Any]]] | None)
    assert_type(await inspect.registered("rate_limit"), dict[str, list[str]] | None)
    assert_type(await inspect.stats(), dict[str, dict[str, Any]] | None)
    assert_type(await inspect.query_task("one", "two"), dict[str, dict[str, Any]] | None)
    ended: Deferred[dict[str, Any]] = Deferred()
    stream = tx_app.events({"task-succeeded": ended.callback, "*": happens}, state=True, routing_key="#")
    assert_type(stream, EventStream)
    assert_type(await stream.ready, None)
    await tx_app.send_task("taskapp.add", args=(1, 2))
    happened(await ended)
    assert_type(stream.connected, bool)
    assert_type(await stream.close(), None)


async def fail(tx_app: TwistedCelery) -> None:
    """Meet errors."""
    try:
        await tx_app.send_task("taskapp.fail", args=("as asked",))
    except ValueError as error:
        print(error)
    try:
        await tx_app.send_task("taskapp.add", args=(object(), 1))
    except twistedcelery.PublishError as error:
        base: twistedcelery.TwistedCeleryError = error
        print(base)


async def main(reactor: Any, broker: str, backend: str) -> None:
    """Do all of it."""
    app.conf.update(broker_url=broker, result_backend=backend)
    tx_app = TwistedCelery(app, reactor, publish_timeout=10, terminate=False, transport="auto")
    assert_type(tx_app, TwistedCelery)
    await call_tasks(tx_app)
    assert_type(await call_tasks_the_old_way(tx_app), int)
    await call_canvases(tx_app)
    await ask_for_results(tx_app)
    await command_workers(tx_app)
    await fail(tx_app)
    assert_type(await tx_app.disconnect(), None)


if __name__ == "__main__":
    task.react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
