"""The same canvases through Celery's own blocking client and through this one: the same outcome."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from tests.real.canvas.cases import FROZEN, KEPT, PLAIN, PROCESSES, REFUSED, REPLACED, Case
from tests.real.canvas.reference import LIMIT, described, shape_of
from tests.support import taskapp
from tests.support.canvasapp import create_app
from tests.support.process import SOURCES
from twistedcelery import EncodeError, InvalidCall, TwistedCelery, UnsupportedByBackend

# One after another: each keeps a worker and two clients busy.
pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("canvas")]


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.soak)], ids=["some", "all"])
def chosen(request):
    """``chosen(cases, first, step)``: all of the cases, or each that is so many further than the last one."""
    return lambda cases, first, step: cases if request.param else cases[first::step]


async def theirs(
    cases: list[Case], broker: str, backend: str, config: dict[str, Any]
) -> dict[str, list[Any]]:
    """The outcomes of Celery's client."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(SOURCES),
        taskapp.BROKER: broker,
        taskapp.BACKEND: backend,
        taskapp.CONFIG: json.dumps(config),
    }
    arguments = ["-m", "tests.real.canvas.reference", *(case.name for case in cases)]
    output, errors, status = await getProcessOutputAndValue(sys.executable, arguments, env=env)
    assert status == 0, errors.decode()
    return json.loads(output)


async def ours(case: Case, tx_app: TwistedCelery) -> list[Any]:
    """The outcome of our client."""
    call = tx_app.apply_async(case.make(tx_app.app), case.args, **case.options)
    try:
        outcome = await call.addTimeout(LIMIT, reactor)
    except (InvalidCall, EncodeError, UnsupportedByBackend) as refused:
        # It tells what was refused, too; what Celery raised is its cause.
        return [described(refused.__cause__), None]
    except (Exception, SystemExit) as error:
        # A task may raise SystemExit.
        outcome = error
    assert call.async_result is not None
    return [described(outcome), shape_of(call.async_result.as_tuple())]


def with_its_class(outcome: list[Any]) -> list[Any]:
    """The outcome of Celery's client, with the stored class of an exception that it could not make again.

    There Celery's has a bare `Exception` with the class and the arguments as text.
    """
    described, shape = outcome
    found = re.fullmatch(r"<class '(.+)'>\((\[.*\])\)", described[1]) if len(described) > 1 else None
    if found is None or described[0] != "builtins.Exception":
        return outcome
    name = found[1] if "." in found[1] else f"builtins.{found[1]}"
    return [[name, str(Exception(*ast.literal_eval(found[2]))), described[2]], shape]


async def compare(worker, cases, *, broker, backend, transport="auto", pool="threads", **config):
    """Run all the cases through both clients."""
    options = {"app": "tests.support.canvasapp", "pool": pool, "concurrency": 4}
    # What it is by default, Celery announces to change.
    config["task_allow_error_cb_on_chord_header"] = True
    await deferToThread(worker, broker=broker, backend=backend, config=config, **options)
    tx_app = TwistedCelery(create_app(broker, backend, **config), transport=transport)
    try:
        expected = await theirs(cases, broker, backend, config)
        assert set(expected) == {case.name for case in cases}
        found = {case.name: await ours(case, tx_app) for case in cases}
        assert found == {name: with_its_class(outcome) for name, outcome in expected.items()}
        assert tx_app.in_flight == 0
    finally:
        await tx_app.disconnect()


@pytest_twisted.ensureDeferred
async def test_rpc(worker, broker_url, chosen):
    """Over RabbitMQ and ``rpc://``, natively. Chords are refused."""
    cases = chosen(PLAIN + KEPT, 0, 3) + FROZEN + REFUSED + PROCESSES
    await compare(worker, cases, broker=broker_url, backend="rpc://", pool="prefork")


@pytest_twisted.ensureDeferred
async def test_rpc_with_protocol_1(worker, broker_url, chosen):
    """With messages of task protocol 1, where chains are linked callbacks, and stamps unknown.

    There Celery's client waits for ever for a group whose member is a chain that fails.
    """
    left_out = {"stamps", "stamped chain", "stamped group", "visitor", "group with a failing chain"}
    # Such a message does not say that the task's own setting is overruled.
    left_out |= {"ignoring task whose result is wanted"}
    cases = chosen([case for case in PLAIN if case.name not in left_out], 1, 3)
    await compare(worker, cases, broker=broker_url, backend="rpc://", task_protocol=1)


@pytest_twisted.ensureDeferred
async def test_redis(worker, redis_server, chosen):
    """With Redis as broker and for results, natively. The next test has the other half of the cases."""
    cases = chosen(PLAIN + KEPT + REPLACED, 0, 2)
    await compare(worker, cases, broker=redis_server.url(0), backend=redis_server.url(1))


@pytest_twisted.ensureDeferred
async def test_redis_in_threads(worker, redis_server, chosen):
    """With one database for both, and Celery's own code in threads."""
    url = redis_server.url(0)
    cases = chosen(PLAIN + KEPT + REPLACED, 1, 2)
    await compare(worker, cases, broker=url, backend=url, transport="threads")


@pytest_twisted.ensureDeferred
async def test_sqlite(worker, broker_url, tmp_path, chosen):
    """With results in SQLite, whose chords Celery unlocks with a task that polls.

    Every third canvas, since each takes its time, and none with retries at once: there, Celery's
    database backend can mix what two threads store of one task.
    """
    composed = [case for case in PLAIN if {"chain", "group"} & set(case.name.split())]
    cases = [case for case in composed + KEPT + REPLACED if "retries" not in case.name][::3]
    cases = chosen(cases, 0, 3)
    await compare(worker, cases, broker=broker_url, backend=f"db+sqlite:///{tmp_path}/results.db")
