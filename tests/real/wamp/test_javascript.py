"""WAMP clients that are not ours, in another language: npm's ``autobahn`` and ``wampy``, in Node.js."""

from __future__ import annotations

import json

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.nodejs import FOLDER, node_program
from tests.support.process import Process

pytestmark = pytest.mark.usefixtures("worker_process")


@pytest_twisted.ensureDeferred
async def test_autobahn_in_node(router, bridge, touched, tmp_path):
    """It calls, follows, cancels and subscribes, and gets the documented errors."""
    running = await bridge(router.url, retain_events=True)
    command = [node_program(), str(FOLDER / "client.js"), router.url, running.prefix, str(touched)]
    program = Process(command, directory=tmp_path, name="client")
    await deferToThread(program.start)
    assert await deferToThread(program.wait) == 0, program.output()
    # Autobahn says more when it closes.
    seen = json.loads(program.output().splitlines()[0])
    assert seen["add"] == 5
    assert seen["keywords"] == {
        "args": [],
        "kwargs": {"fun": 1, "f": 2, "options": 3, "details": 4, "keywords": 5},
    }
    progress = [["PROGRESS", {"current": step, "total": 3}] for step in (1, 2, 3)]
    assert (seen["progress"], seen["countdown"]) == (progress, 3)
    assert {topic for topic, _ in seen["events"][:-1]} == {running.uri("taskapp.countdown.progress")}
    assert seen["events"][-1] == [running.uri("taskapp.countdown.succeeded"), "SUCCESS"]
    assert seen["fail"]["error"] == running.uri("error.task_failed")
    assert seen["fail"]["kwargs"]["exc_message"] == "no luck"
    assert seen["arguments"]["error"] == running.uri("error.invalid_arguments")
    assert seen["unencodable"]["error"] == running.uri("error.result_unencodable")
    assert (seen["inFlight"], seen["cancelled"]["error"]) == (1, "wamp.error.canceled")
    assert not touched.exists()
    assert (seen["submitted"], seen["late"]) == (9, "SUCCESS")


@pytest_twisted.ensureDeferred
async def test_wampy_in_node(router, bridge, touched, tmp_path):
    """A client by others calls, follows, cancels, subscribes early and late, and gets the errors."""
    running = await bridge(router.url, retain_events=True)
    command = [node_program(), str(FOLDER / "wampy.js"), router.url, running.prefix, str(touched)]
    program = Process(command, directory=tmp_path, name="client")
    await deferToThread(program.start)
    assert await deferToThread(program.wait) == 0, program.output()
    seen = json.loads(program.output().splitlines()[0])
    progress = [["PROGRESS", {"current": step, "total": 3}] for step in (1, 2, 3)]
    assert (seen["add"], seen["progress"], seen["countdown"]) == (5, progress, 3)
    assert {topic for topic, _ in seen["events"][:-1]} == {running.uri("taskapp.countdown.progress")}
    assert seen["events"][-1] == [running.uri("taskapp.countdown.succeeded"), "SUCCESS"]
    assert seen["fail"]["error"] == running.uri("error.task_failed")
    assert seen["fail"]["kwargs"]["exc_message"] == "no luck"
    assert (seen["inFlight"], seen["cancelled"]["error"]) == (1, "wamp.error.canceled")
    assert not touched.exists()
    assert (seen["submitted"], seen["late"]) == (9, "SUCCESS")
