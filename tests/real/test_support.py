"""The machinery of the tests itself, each part once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid

import kombu
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThread

from tests.support import taskapp
from tests.support.ports import free_port
from tests.support.process import ROOT, Process, wait_until

# Starts a child that detaches itself from session and process group, and prints the child's id.
DETACHING = """
import subprocess, time
print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def start_detaching(directory, **options):
    process = Process([sys.executable, "-c", DETACHING], directory=directory, name="detaching", **options)
    process.start()
    process.wait_until(lambda: process.output().strip().isdigit(), timeout=10, what="it prints the id")
    return process, int(process.output())


@pytest.mark.xdist_group("together")
def test_tests_of_one_group_are_kept_together(request):
    """pytest-xdist takes note of groups, without which each process would start the shared servers anew."""
    assert request.node.nodeid.endswith("@together") == ("PYTEST_XDIST_WORKER" in os.environ)


def test_stopping_a_process_also_kills_what_it_detached(tmp_path):
    """``stop`` kills detached children and tells what the command had left behind."""
    process, child = start_detaching(tmp_path)
    assert alive(child)
    process.stop()
    assert not alive(child)
    assert process.left_behind == ["sleep 600"]


def test_a_process_does_not_outlive_its_owner(tmp_path):
    """When the owner is killed with SIGKILL, the process and its detached children die."""
    owner = subprocess.Popen(["sleep", "600"])
    process, child = start_detaching(tmp_path, owner=owner.pid)
    owner.kill()
    owner.wait()
    wait_until(lambda: not process.running and not alive(child), timeout=10, what="it is gone")


def test_waiting_for_a_process_that_ends_fails_with_its_output(tmp_path):
    """A process that ends too early fails the wait at once, and its last words are shown."""
    process = Process([sys.executable, "-c", "raise SystemExit('no luck')"], directory=tmp_path, name="ends")
    process.start()
    with pytest.raises(AssertionError, match=r"ended with 1 before it prints 'ready':\nno luck"):
        process.wait_for_output("ready", timeout=20)


def test_a_virtual_host_is_empty_and_goes_away(rabbitmq):
    """Each virtual host is a new one, and is gone afterwards."""
    with rabbitmq.vhost() as url, kombu.Connection(url) as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        exists = f'lists:member(<<"{url.rpartition("/")[2]}">>, rabbit_vhost:list_names()).'
        assert rabbitmq.eval(exists) == "true"
    assert rabbitmq.eval(exists) == "false"


@pytest.mark.timeout(90)
def test_a_killed_node_keeps_durable_queues(rabbitmq_node):
    """A node killed with SIGKILL comes back on the same port with its persistent messages."""
    url = rabbitmq_node.broker.url
    queue = kombu.Queue("durable", durable=True)
    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer()
        producer.publish("kept", routing_key="durable", declare=[queue], delivery_mode=2)
        rabbitmq_node.broker.sync()
        rabbitmq_node.kill()
        with pytest.raises(ConnectionError):
            connection.drain_events(timeout=5)
    assert not rabbitmq_node.broker.ready
    rabbitmq_node.start()
    with kombu.Connection(url) as connection:
        message = queue.bind(connection.channel()).get(no_ack=True)
    assert message.payload == "kept"


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_answers_celerys_own_client(broker_url, worker, pool):
    """A worker process runs a task and its result comes back over rpc."""
    worker(pool=pool)
    app = taskapp.create_app(broker_url, "rpc://")
    try:
        assert app.send_task("taskapp.add", args=(2, 3)).get(timeout=20) == 5
    finally:
        app.close()


def test_redis_stores_a_result(redis_server, worker):
    """Redis serves as broker and as result backend."""
    worker(broker=redis_server.url(0), backend=redis_server.url(1))
    app = taskapp.create_app(redis_server.url(0), redis_server.url(1))
    try:
        assert app.send_task("taskapp.add", args=(2, 3)).get(timeout=20) == 5
    finally:
        app.close()


# Most tests of the bridge do so, too.
@pytest.mark.soak
@pytest_twisted.inlineCallbacks
def test_a_crossbar_node_routes_calls(crossbar_node):
    """An Autobahn client joins the node and calls one of its procedures."""
    from autobahn.twisted.component import Component
    from twisted.internet import reactor

    port = free_port()
    config = {
        "version": 2,
        "controller": {},
        "workers": [
            {
                "type": "router",
                "realms": [
                    {
                        "name": "realm1",
                        "roles": [
                            {
                                "name": "anonymous",
                                "permissions": [{"uri": "", "match": "prefix", "allow": {"call": True}}],
                            }
                        ],
                    }
                ],
                "transports": [
                    {
                        "type": "websocket",
                        "endpoint": {"type": "tcp", "port": port, "interface": "127.0.0.1"},
                        "url": f"ws://127.0.0.1:{port}/ws",
                    }
                ],
            }
        ],
    }
    node = yield deferToThread(crossbar_node, config, port=port)
    answered = Deferred()
    component = Component(transports=node.url, realm="realm1")

    @component.on_join
    async def joined(session, details):
        answered.callback(await session.call("wamp.session.count"))
        session.leave()

    component.start(reactor)
    assert (yield answered) == 1


STRICTLY_RUN = """
import time, pytest, pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import *

def test_dropped():
    fail(ValueError("unheard"))

@pytest.mark.timeout(0.5)
@pytest_twisted.ensureDeferred
async def test_endless():
    await Deferred()

@pytest.mark.timeout(0.5)
@pytest_twisted.ensureDeferred
async def test_blocking():
    time.sleep(60)

@pytest.mark.timeout(0.5)
@pytest_twisted.ensureDeferred
async def test_blocking_later():
    reactor.callLater(0, time.sleep, 60); await Deferred()
"""


@pytest.fixture(scope="module")
def strictly():
    """``strictly(name)``: pytest's report on one of the tests above, which all run once."""
    test = ROOT / "tests" / "real" / f"test_strictness_{uuid.uuid4().hex}.py"
    test.write_text(STRICTLY_RUN)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(test)]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    finally:
        test.unlink()
    # Of the last one the timeout is logged as well.
    assert "3 failed, 1 passed, 2 errors" in ran.stdout
    # A heading is a line of underscores around a name.
    reports = re.split(r"^_+ (?:ERROR at teardown of )?(\w+) _+$", ran.stdout, flags=re.MULTILINE)
    return dict(zip(reports[1::2], reports[2::2], strict=True)).__getitem__


class TestStrictness:
    """What `tests.support.strictness` makes of a test, seen from outside."""

    def test_a_dropped_failure_fails_the_test(self, strictly):
        """A Deferred dropped with an unhandled error fails the test that dropped it."""
        assert "ValueError: unheard" in strictly("test_dropped")

    def test_an_endless_wait_fails_the_test(self, strictly):
        """A test that waits for what never comes fails at its time limit, and shows where it stood."""
        report = strictly("test_endless")
        assert "await Deferred()" in report
        assert "TimeoutError" in report

    @pytest.mark.parametrize("blocks", ["test_blocking", "test_blocking_later"])
    def test_a_blocked_reactor_fails_the_test(self, strictly, blocks):
        """A test that blocks the reactor, itself or in a callback, fails at its time limit."""
        assert "Timeout (>0.5s)" in strictly(blocks)

    def test_a_flushed_failure_passes(self, logged_errors):
        """A test that expects a logged failure takes it away."""
        fail(ValueError("expected"))
        assert [failure.type for failure in logged_errors.flush(ValueError)] == [ValueError]
