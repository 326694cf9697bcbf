"""Brokers and result backends that refuse, or accept and never answer: the reactor does not notice."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.support.ports import free_port
from tests.support.process import ROOT, SOURCES
from tests.support.taskapp import create_app
from tests.support.waiting import all_outcomes
from twistedcelery import ResultBackendUnavailable

#: Seconds that a 5 ms loop may be late while 100 calls are made and fail.
_LATE = 0.100

#: Seconds that a broker may take for a message.
_TIMEOUT = 0.5


@pytest.fixture(params=["refuses", "is silent"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port where nobody listens, or where somebody accepts and says nothing."""
    if request.param == "refuses":
        yield free_port()
        return
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        yield silent.getsockname()[1]


_AMQP = ("amqp://127.0.0.1:{}//", "rpc://")
_REDIS = ("redis://127.0.0.1:{}/0", "redis://127.0.0.1:{}/0")


CASES = pytest.mark.parametrize(
    ("broker", "backend", "options", "error"),
    [
        (*_AMQP, [], "BrokerUnavailable"),
        (*_AMQP, ["--signatures"], "BrokerUnavailable"),
        ("amqps://127.0.0.1:{}//", "rpc://", [], "BrokerUnavailable"),
        (*_AMQP, ["--transport=threads"], "ResultBackendUnavailable"),
        (*_REDIS, [], "ResultBackendUnavailable"),
        (*_REDIS, ["--signatures"], "ResultBackendUnavailable"),
        (*_REDIS, ["--transport=threads"], "ResultBackendUnavailable"),
        ("redis://127.0.0.1:{}/0", "cache+memory://", [], "BrokerUnavailable"),
    ],
    ids=[
        "amqp", "signatures over amqp", "amqps", "amqp in threads",
        "redis", "signatures over redis", "redis in threads", "redis without results",
    ],
)  # fmt: skip  # a name above its case


@CASES
@pytest_twisted.ensureDeferred
async def test_calls_fail_in_time(port, broker, backend, options, error, new_client):
    """Each of a burst fails with a named error within its time."""
    app = create_app(broker.format(port), backend.format(port), broker_connection_timeout=_TIMEOUT / 2)
    transport = "threads" if "--transport=threads" in options else "auto"
    tx_app = new_client(app, publish_timeout=_TIMEOUT, transport=transport)
    add = app.tasks["taskapp.add"]
    begun = reactor.seconds()
    if "--signatures" in options:
        calls = [tx_app.apply_async(add.s(1, 2)) for _ in range(20)]
    else:
        calls = [tx_app.send_task("taskapp.add", args=(1, 2)) for _ in range(20)]
    assert {type(outcome).__name__ for outcome in await all_outcomes(calls)} == {error}
    assert reactor.seconds() - begun < _TIMEOUT + 3


@pytest.mark.parametrize("transport", ["auto", "threads"])
@pytest_twisted.ensureDeferred
async def test_a_question_about_a_result_fails_in_time(port, transport, new_client):
    """The time that the client was given is the limit, natively and in a thread."""
    url = f"redis://127.0.0.1:{port}/0"
    tx_app = new_client(create_app(url, url), publish_timeout=_TIMEOUT, transport=transport)
    begun = reactor.seconds()
    with pytest.raises(ResultBackendUnavailable):
        await tx_app.result("some-id").state
    assert reactor.seconds() - begun < _TIMEOUT + 3


@pytest.mark.timing
@CASES
def test_the_first_100_calls_fail_in_time_and_hold_up_nothing(port, broker, backend, options, error):
    """Each fails with a named error within its time, and a 5 ms loop is never more than 100 ms late.

    It is a new process: whatever is imported or made for the first call counts.
    """
    program = [sys.executable, "-m", "tests.support.firstcalls"]
    finished = subprocess.run(
        [*program, broker.format(port), backend.format(port), f"--timeout={_TIMEOUT}", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert told["failed"] == 100
    assert {text.partition(":")[0] for text in told["errors"]} == {error}
    assert told["longest"] < _TIMEOUT + 1
    assert told["worst"] <= _LATE
