"""Celery's commands and queries to workers, over WAMP."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from celery.app.control import Inspect
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.real.wamp.test_calls import refusal
from tests.support.worker import Worker

#: What a query cannot be asked without; all others are asked without arguments.
ARGUMENTS = {"hello": ["celery@somebody"], "query_task": [str(uuid.uuid4())]}

#: Queries that a worker has no answer to without a package, or that take long.
NOT_ASKED = {"memdump", "memsample", "objgraph"}


@pytest.fixture(scope="module")
def another(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with secrets in its settings, and a queue of its own."""
    worker = Worker(
        tmp_path_factory.mktemp("another"),
        broker=broker,
        backend="rpc://",
        queues="another",
        config={
            "my_api_key": "s3cret",
            "service": "http://joe:s3cret@host/",
            "nested": {"password": "s3cret"},
        },
    )
    worker.start()
    yield worker
    worker.stop()


class Operator:
    """Calls commands, addressed to one worker."""

    def __init__(self, caller: Any, prefix: str, worker: Worker) -> None:
        self._caller = caller
        self._prefix = prefix
        self.worker = worker.name

    def call(self, command: str, *args: Any, **kwargs: Any) -> Any:
        """Call a command as it is."""
        return self._caller.call(f"{self._prefix}_admin.{command}", *args, **kwargs)

    async def tell(self, command: str, *args: Any, **kwargs: Any) -> Any:
        """The worker's own answer."""
        answer = await self.call(command, *args, destination=[self.worker], timeout=10, **kwargs)
        assert list(answer) == [self.worker]
        return answer[self.worker]


@pytest.fixture
def operator(router, bridge, client, worker_process):
    """``await operator()``: a bridge, and who gives its commands to the shared worker."""

    async def start(worker: Worker = worker_process) -> Operator:
        running, caller = await bridge(router.url), await client(router.url)
        return Operator(caller, running.prefix, worker)

    return start


@pytest_twisted.ensureDeferred
async def test_every_query_is_answered(another, operator):
    """Each query of the installed Celery has an answer by worker, of the form that Celery documents."""
    # Other tests have tasks on the shared worker.
    one = await operator(another)
    queries = [name for name, _ in inspect.getmembers(Inspect, inspect.isfunction) if name[0] != "_"]
    asked = [name for name in queries if name not in NOT_ASKED]
    calls = [Deferred.fromCoroutine(one.tell(name, *ARGUMENTS.get(name, ()))) for name in asked]
    answers = await gatherResults(calls)
    answered = dict(zip(asked, answers, strict=True))
    assert answered["ping"] == {"ok": "pong"}
    assert "taskapp.add" in answered["registered"]
    assert answered["active"] == answered["scheduled"] == answered["reserved"] == []
    assert answered["stats"]["pid"] > 0
    assert "broker_url" in answered["conf"]
    assert answered["query_task"] == {}
    assert [queue["name"] for queue in answered["active_queues"]] == ["another"]
    assert len(asked) >= 14
    listed = [each["name"] for each in await one.call("commands")]
    assert set(queries) < set(listed)


@pytest_twisted.ensureDeferred
async def test_who_is_asked(another, operator):
    """By name, by pattern, by number, or everybody; nobody's answer is ``null``."""
    one = await operator()
    everybody = await one.call("ping", limit=2, timeout=10)
    assert everybody == {one.worker: {"ok": "pong"}, another.name: {"ok": "pong"}}
    assert list(await one.call("ping", pattern=f"{another.name[:12]}*", limit=1, timeout=10)) == [
        another.name
    ]
    matched = await one.call("ping", pattern=f"^{one.worker[:12]}", matcher="pcre", limit=1, timeout=10)
    assert list(matched) == [one.worker]
    assert len(await one.call("ping", limit=1, timeout=10)) == 1
    assert await one.call("ping", destination=["nobody@nowhere"], timeout=0.2) is None


@pytest_twisted.ensureDeferred
async def test_commands_change_what_a_worker_does(operator):
    """Limits, queues and events are changed, what was asked for is to be seen, and mistakes are answered."""
    one = await operator()
    assert await one.tell("rate_limit", "taskapp.touch", "10/m") == {"ok": "new rate limit set successfully"}
    assert "taskapp.touch [rate_limit=10/m]" in await one.tell("registered", "rate_limit")
    await one.tell("rate_limit", task_name="taskapp.touch", rate_limit=0)
    assert await one.tell("rate_limit", "taskapp.unknown", 1) == {"error": "unknown task"}
    # Autobahn takes a keyword of the name "options" for its own.
    await one.tell("add_consumer", "wanted", None, "direct", None, {"auto_delete": True, "durable": False})
    while "wanted" not in [queue["name"] for queue in await one.tell("active_queues")]:
        pass
    await one.tell("cancel_consumer", queue="wanted")
    while "wanted" in [queue["name"] for queue in await one.tell("active_queues")]:
        pass
    assert await one.tell("enable_events") == {"ok": "task events enabled"}
    assert await one.tell("disable_events") == {"ok": "task events disabled"}
    assert await one.call("heartbeat", reply=False) is None
    assert await one.call("purge") == 0
    revoked = str(uuid.uuid4())
    assert "flagged as revoked" in (await one.tell("revoke", revoked))["ok"]
    assert revoked in await one.tell("revoked")
    assert "autoscale" in str(await one.tell("autoscale", 2, 1)).lower()


@pytest_twisted.ensureDeferred
async def test_secrets_stay_inside(another, operator):
    """No query tells a password, be it in a URL, under a secret's name or nested."""
    one = await operator(another)
    for query in ("conf", "report", "stats"):
        assert "s3cret" not in repr(await one.tell(query))
    conf = await one.tell("conf")
    assert conf["service"] == "http://joe:********@host/"
    assert conf["my_api_key"] == conf["nested"]["password"] == "********"
    # An older name of the same query, which only a broadcast reaches.
    assert "s3cret" not in repr(await one.tell("broadcast", "dump_conf"))


@pytest_twisted.ensureDeferred
async def test_malformed_arguments_disturb_nobody(operator):
    """Whatever is refused, the worker and the bridge go on, and so do other callers."""
    one = await operator()
    for command, args, kwargs in [
        ("ping", [], {"timeout": 1e9}),
        ("ping", [], {"destination": {"a": 1}}),
        ("ping", [], {"pattern": "(", "matcher": "pcre"}),
        ("rate_limit", ["taskapp.add", "inf"], {}),
        ("time_limit", ["taskapp.add"], {"soft": [], "hard": {}}),
        ("add_consumer", ["x", "x", "no such type"], {}),
        ("pool_grow", [10**12], {}),
        ("revoke", [{"deep": [[[[]]]]}], {}),
        ("query_task", [None], {}),
        ("ping", [], {"callback": "x", "connection": "amqp://", "channel": 1}),
    ]:
        error = await refusal(one.call(command, *args, **kwargs))
        assert error.error.endswith(".error.invalid_arguments"), (command, error)
    assert await one.tell("ping") == {"ok": "pong"}


@pytest_twisted.ensureDeferred
async def test_a_worker_is_shut_down(broker, operator, tmp_path):
    """The worker that is named ends, and the others go on."""
    worker = Worker(tmp_path, broker=broker, backend="rpc://", queues="third")
    await deferToThread(worker.start)
    try:
        one = await operator()
        assert await one.call("shutdown", destination=[worker.name], reply=False) is None
        await deferToThread(worker.process.wait, 30)
        assert await one.tell("ping") == {"ok": "pong"}
    finally:
        await deferToThread(worker.stop)
