"""The demo as its user runs it: one command, a result, a page, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import debian, guardian
from tests.support.nodejs import FOLDER, node_program
from tests.support.ports import free_port
from tests.support.process import ROOT, Process, wait_until

#: Each test starts a router, a bridge and a worker: one after the other leaves the machine some room.
pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.timeout(180)]

FIRST_RESULT = "celery.my_app.tasks.add(2, 3) = 5"
STARTING = "Starting router, bridge and worker"


class Demo(Process):
    """``twistedcelery demo`` with a directory of its own for all that it leaves lying about."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        super().__init__(
            [sys.executable, "-m", "twistedcelery.cli", "demo", "--port", str(self.port), *options],
            directory=directory,
            name="demo",
            env={"PYTHONPATH": str(ROOT / "component"), "TMPDIR": str(self.temporary)},
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """``start(*options)`` runs the demo for the test."""
    started: list[Demo] = []

    def start_demo(*options: str) -> Demo:
        demo = Demo(tmp_path, *options)
        started.append(demo)
        demo.start()
        return demo

    yield start_demo
    for demo in started:
        demo.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo that has printed its first result, for tests that leave it alone."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    try:
        demo.start()
        demo.wait_for_output(FIRST_RESULT, timeout=60)
        yield demo
    finally:
        demo.stop()


def test_prints_the_address_of_the_page(running: Demo) -> None:
    """The demo prints where its page is, and the page is there."""
    running.wait_for_output(f"Dashboard: {running.address}")
    with urllib.request.urlopen(running.address, timeout=10) as page:
        assert page.status == 200
        assert "<title>Celery tasks</title>" in page.read().decode()


def test_serves_nothing_but_the_page_and_its_library(running: Demo) -> None:
    """The files beside the page cannot be fetched."""
    for path in ("../files.py", "%2e%2e/files.py", "vendor/../../files.py", "../../py.typed", "vendor/"):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
            assert connection.recv(4096).split()[1] == b"404", path


def test_page(running: Demo, tmp_path: Path) -> None:
    """In a browser, the page lists the tasks, calls them, and shows progress, results and errors."""
    browser = debian.require("chromium")
    visited = subprocess.run(
        [node_program(), str(FOLDER / "page.js"), running.address, str(browser), str(tmp_path / "page.png")],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert visited.returncode == 0, visited.stderr
    seen = json.loads(visited.stdout)
    assert seen["problems"] == []
    assert seen["connection"] == "Connected"
    assert seen["tasks"] == [f"my_app.tasks.{name}" for name in ("add", "countdown", "fail", "mandelbrot")]
    assert seen["add"] == {"state": "done", "text": "42"}
    assert seen["fail"]["state"] == "failed"
    assert seen["fail"]["text"].split("\n", 1)[0] == "celery.error.task_failed"
    assert "ValueError: on purpose" in seen["fail"]["text"]
    assert seen["countdown"] == {"state": "done", "text": "10"}
    assert any(0 < share < 1 for share in seen["progress"])
    assert seen["progress"] == sorted(seen["progress"])
    assert seen["picture"] == [120, 90]
    assert seen["cancelled"]["state"] == "cancelled"
    assert seen["mistake"] == "Arguments take a JSON list, such as [2, 3]."
    asked = {urllib.parse.urlsplit(url)[:2] for url in seen["requests"]}
    assert asked - {("data", ""), ("blob", "")} == {("http", f"127.0.0.1:{running.port}")}


def test_a_real_broker_and_ctrl_c(start: Callable[..., Demo], broker_url: str) -> None:
    """With --broker and --backend it works on servers of the user's; Ctrl-C ends it, and nothing is left."""
    demo = start("--broker", broker_url, "--backend", "rpc://")
    demo.wait_for_output(FIRST_RESULT, timeout=60)
    assert list(demo.temporary.glob("twistedcelery-demo-*/data")) == [], "nothing goes through files"
    assert len(demo.descendants) >= 4, "the node, its router, its bridge, and the worker"
    demo.interrupt()
    assert demo.wait() == 0
    assert demo.left_behind == []
    assert list(demo.temporary.iterdir()) == []
    assert "Traceback" not in demo.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.soak)])
def test_told_to_stop_while_it_starts(start: Callable[..., Demo], number: signal.Signals) -> None:
    """It can be stopped before it is up, also by a terminal that closes."""
    demo = start()
    demo.wait_for_output(STARTING)
    demo.signal(number)
    assert demo.wait() == 0
    assert demo.left_behind == []
    assert list(demo.temporary.iterdir()) == []
    assert "Traceback" not in demo.output()


def test_killed(tmp_path: Path) -> None:
    """Even when the demo itself is killed, what it started ends."""
    log = tmp_path / "demo.log"
    # Not a Process, which would kill what is left before this test can see it.
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "twistedcelery.cli", "demo", "--port", str(free_port())],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "component"), "TMPDIR": str(tmp_path)},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: FIRST_RESULT in log.read_text(), timeout=60, what="it works")
        started = guardian.descendants(demo.pid)
    finally:
        demo.kill()
        demo.wait()
    assert len(started) >= 4
    try:
        wait_until(lambda: not any(map(alive, started)), timeout=30, what="all of it has ended")
    finally:
        for pid in filter(alive, started):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_worker_that_cannot_start(start: Callable[..., Demo]) -> None:
    """When a part of the demo ends, the demo says which, shows its last words, and ends too."""
    demo = start("--broker", "nonsense://")
    assert demo.wait() == 1
    assert "twistedcelery demo: the worker ended unexpectedly" in demo.output()
    assert "No such transport: nonsense" in demo.output()
    assert demo.left_behind == []


def test_port_in_use(start: Callable[..., Demo]) -> None:
    """A port that somebody else has is named, with the way to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        demo = start("--port", str(port))
        assert demo.wait() == 1
    assert f"port {port} on 127.0.0.1 is in use: choose another with --port N" in demo.output()
