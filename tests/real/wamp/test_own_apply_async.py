"""Tasks whose class has an ``apply_async`` of its own, over WAMP."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import PublishOptions
from celery import Task

from tests.real.wamp.test_triggers import until_led

pytestmark = pytest.mark.usefixtures("worker_process")


class Tagging(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        return super().apply_async((*args, "tagged"), kwargs, headers={"tenant": "x"}, **options)


class Refusing(Task):
    def apply_async(self, args=None, kwargs=None, **options):
        raise RuntimeError("the lock is held")


class Single(Task):
    sent: str | None = None

    def apply_async(self, args=None, kwargs=None, **options):
        if self.sent is not None:
            return self.AsyncResult(self.sent)
        # Of the class: a copy of the task sends.
        result = super().apply_async(args, kwargs, **options)
        Single.sent = result.id
        return result


def replace(app, function, base):
    """The client's side of a task of the worker's gets another class."""
    name = f"taskapp.{function.__name__}"
    app.tasks.unregister(name)
    app.task(function, name=name, base=base, shared=False)


def echo(*args):
    """Runs in the worker."""


def sleep(seconds):
    """Runs in the worker."""


@pytest_twisted.ensureDeferred
async def test_calls_submit_and_triggers_use_it(app, router, bridge, client):
    """What it adds reaches the worker, whichever way the task is called."""
    replace(app, echo, Tagging)
    trigger = {"topic": "com.example.own", "match": "exact", "task": "taskapp.echo"}
    running = await bridge(router.url, triggers=[trigger], publish_results=True)
    caller = await client(router.url)
    expected = {"args": [1, "tagged"], "kwargs": {}}
    assert await caller.call(running.uri("taskapp.echo"), 1) == expected
    submitted = await caller.call(f"{running.prefix}_api.submit", "taskapp.echo", [1])
    assert await caller.call(f"{running.prefix}_api.result", submitted) == expected
    ended = await caller.events(running.uri("taskapp.echo.succeeded"))
    await until_led(caller, running.prefix, "com.example.own")
    caller.publish("com.example.own", 1, options=PublishOptions(acknowledge=True))
    _, payload = await ended.get()
    assert payload["result"] == expected


@pytest_twisted.ensureDeferred
async def test_its_refusal_reaches_the_caller(app, router, bridge, client):
    """The error has a name, and the words of what it raised."""
    replace(app, echo, Refusing)
    running = await bridge(router.url)
    caller = await client(router.url)
    for call in (
        caller.call(running.uri("taskapp.echo"), 1),
        caller.call(f"{running.prefix}_api.submit", "taskapp.echo", [1]),
    ):
        with pytest.raises(ApplicationError) as caught:
            await call
        assert caught.value.error.endswith(".error.not_allowed")
        assert (caught.value.kwargs["exc_type"], caught.value.kwargs["exc_message"]) == (
            "RuntimeError",
            "the lock is held",
        )


@pytest_twisted.ensureDeferred
async def test_a_call_that_joins_an_earlier_one(app, router, bridge, client):
    """Both get the value of the one task, which has one end."""
    Single.sent = None
    replace(app, sleep, Single)
    running = await bridge(router.url, events=["succeeded"])
    caller = await client(router.url)
    ended = await caller.events(running.uri("taskapp.sleep.succeeded"))
    first = caller.call(running.uri("taskapp.sleep"), 0.3)
    second = caller.call(running.uri("taskapp.sleep"), 0.3)
    assert (await first, await second) == (0.3, 0.3)
    await ended.get()
    assert await caller.call(running.uri("taskapp.sleep"), 0.3) == 0.3
    status = await caller.call(f"{running.prefix}_api.status")
    assert (status["in_flight"], status["totals"]["sent"], status["totals"]["succeeded"]) == (0, 1, 1)
    assert not ended.pending
