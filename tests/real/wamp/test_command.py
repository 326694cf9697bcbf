"""``twistedcelery bridge``: the bridge as a process of its own, through trouble of every kind."""

from __future__ import annotations

import os
import signal

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import DeferredQueue
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyFactory

from tests.real.wamp.client import wait_for_procedure
from tests.real.wamp.nodes import TICKET, node_config
from tests.real.wamp.test_calls import refusal
from tests.real.wamp.test_triggers import until_led
from tests.support.node import CrossbarNode
from tests.support.ports import free_port
from tests.support.process import ROOT, SOURCES
from tests.support.taskapp import BACKEND, BROKER

pytestmark = pytest.mark.usefixtures("worker_process")


@pytest_twisted.ensureDeferred
async def test_calls_in_flight_may_end(router, bridge_process, client):
    """On SIGTERM the bridge takes no more calls, answers those it has, and ends."""
    process, caller = bridge_process(router.url, prefix="stopping"), await client(router.url)
    await wait_for_procedure(caller, "stopping_api.status")
    call = caller.call("stopping.taskapp.sleep", 1.5)
    assert (await caller.call("stopping_api.status"))["in_flight"] == 1
    process.signal(signal.SIGTERM)
    while await caller.call("wamp.registration.match", "stopping.taskapp.add") is not None:
        pass
    assert (await refusal(caller.call("stopping.taskapp.add", 1, 2))).error == "wamp.error.no_such_procedure"
    assert await call == 1.5
    assert await deferToThread(process.wait) == 0
    assert "have not ended" not in process.output()
    assert "Traceback" not in process.output()
    assert "waits for 1 call in flight. A second Ctrl-C leaves now." in process.output()


@pytest_twisted.ensureDeferred
async def test_a_second_ctrl_c(router, bridge_process, client):
    """It leaves without the calls in flight, whose callers are told."""
    process, caller = bridge_process(router.url, prefix="hurried"), await client(router.url)
    await wait_for_procedure(caller, "hurried_api.status")
    call = caller.call("hurried.taskapp.touch", "/nowhere", celery_options={"countdown": 60})
    assert (await caller.call("hurried_api.status"))["in_flight"] == 1
    process.signal(signal.SIGINT)
    await deferToThread(process.wait_for_output, "waits for 1 call in flight")
    process.signal(signal.SIGINT)
    assert isinstance(await refusal(call), ApplicationError)
    assert await deferToThread(process.wait) == 0
    assert "1 call(s) have not ended\n" in process.output()


def test_ctrl_c_in_the_first_seconds(bridge_process, tmp_path):
    """While the bridge still imports, it ends without a word."""
    (tmp_path / "slow_app.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([*SOURCES, str(tmp_path)])
    process = bridge_process("ws://127.0.0.1:1/ws", app="slow_app", env={"PYTHONPATH": path})
    process.wait_for_output("importing")
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.output() == "importing\n"


@pytest_twisted.ensureDeferred
async def test_crossbar_stops_the_container(broker, router, client, tmp_path):
    """A bridge in a container of Crossbar's ends its calls, too, before it goes."""
    config = node_config(router.port, {"app": "tests.support.taskapp", "prefix": "contained"})
    config["workers"] = [worker for worker in config["workers"] if worker["type"] == "container"]
    env = {BROKER: broker, BACKEND: "rpc://", "TWISTEDCELERY_TICKET": TICKET}
    node = CrossbarNode(tmp_path / "node", config, port=router.port, env=env)
    caller = await client(router.url)
    try:
        await deferToThread(node.start)
        await wait_for_procedure(caller, "contained_api.status")
        call = caller.call("contained.taskapp.sleep", 1.5)
        assert (await caller.call("contained_api.status"))["in_flight"] == 1
        stopped = deferToThread(node.stop)
        assert await call == 1.5
        await stopped
        assert node.process.left_behind == []
    finally:
        await deferToThread(node.kill)


@pytest_twisted.ensureDeferred
async def test_calls_that_do_not_end(router, bridge_process, client):
    """Past ``drain_timeout`` the bridge ends all the same, and its callers are told."""
    process = bridge_process(router.url, prefix="draining", drain_timeout=0.5)
    caller = await client(router.url)
    await wait_for_procedure(caller, "draining_api.status")
    call = caller.call("draining.taskapp.touch", "/nowhere", celery_options={"countdown": 60})
    assert (await caller.call("draining_api.status"))["in_flight"] == 1
    process.signal(signal.SIGTERM)
    assert isinstance(await refusal(call), ApplicationError)
    assert await deferToThread(process.wait) == 0
    assert "1 call(s) have not ended within 0.5 s" in process.output()


class Port:
    """A port that forwards to a router, or accepts connections and never answers.

    :ivar number: on 127.0.0.1
    """

    def __init__(self, target: int | None) -> None:
        from twisted.internet import reactor

        factory = Factory.forProtocol(Protocol) if target is None else ProxyFactory("127.0.0.1", target)
        build = factory.buildProtocol

        def count(address):
            self._connections.put(address)
            return build(address)

        factory.buildProtocol = count
        self._connections = DeferredQueue()
        self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.number = self._listening.getHost().port

    async def accepted(self, count: int) -> None:
        """Wait for connections."""
        for _ in range(count):
            await self._connections.get()

    async def close(self) -> None:
        await self._listening.stopListening()


CHECK_URL = "Check the host, the port and the path of the URL. The bridge keeps trying."
#: How a bridge is started wrongly, and what its log says of it.
REASONS = {
    "a wrong ticket": (
        {"ticket": "a wrong one"},
        "the router refused the bridge: wamp.error.not_authorized: ",
        "ticket in static WAMP-Ticket authentication is invalid. ",
        "Check TWISTEDCELERY_TICKET and TWISTEDCELERY_AUTHID.",
    ),
    "no ticket": (
        {"ticket": ""},
        "the router accepted the bridge in realm1 as role 'caller', which may not register its procedures. ",
        "Is TWISTEDCELERY_TICKET set?",
    ),
    "a wrong realm": (
        {"realm": "realm2"},
        "the router refused the bridge: wamp.error.no_such_realm: ",
        'no realm "realm2" exists on this router. Check the name of the realm.',
    ),
    "a wrong path": (
        {"path": "/wss"},
        "no router at ws://127.0.0.1:{port}/wss: ",
        f"WebSocket connection upgrade failed [404]: Not Found. {CHECK_URL}",
    ),
    "a port of something else": (
        {"port": "silent"},
        "no router at ws://127.0.0.1:{port}/ws: WebSocket opening handshake timeout ",
        f"(peer did not finish the opening handshake in time). {CHECK_URL}",
    ),
}


@pytest.mark.parametrize("reason", REASONS)
@pytest_twisted.ensureDeferred
async def test_a_bridge_that_cannot_serve(reason, router, bridge_process):
    """It tries again and again, and its log is one line, with what to check; the ticket is not shown.

    That the intervals grow and the line is repeated once a minute is tested in
    ``tests/unit/wamp/test_reconnect.py``.
    """
    wrong, *line = REASONS[reason]
    port = Port(None if "port" in wrong else router.port)
    try:
        url = f"ws://127.0.0.1:{port.number}{wrong.get('path', '/ws')}"
        process = bridge_process(url, ticket=wrong.get("ticket", TICKET), realm=wrong.get("realm", "realm1"))
        # The first attempt has ended by then.
        await port.accepted(2)
        process.signal(signal.SIGINT)
        assert await deferToThread(process.wait) == 0
    finally:
        await port.close()
    (logged,) = process.output().splitlines()
    assert logged.partition("] ")[2] == "".join(line).format(port=port.number)


@pytest_twisted.ensureDeferred
async def test_no_broker(router, bridge_process, client):
    """Each bridge says so, whether it leads or not, in a line that names the connection."""
    env = {BROKER: f"amqp://127.0.0.1:{free_port()}//"}
    leading, other = (bridge_process(router.url, env=env, prefix="brokerless") for _ in range(2))
    for process in (leading, other):
        await deferToThread(process.wait_for_output, "as bridge@realm1; the broker has not answered yet")
    for process in (leading, other):
        process.signal(signal.SIGTERM)
        assert await deferToThread(process.wait) == 0
        lines = process.output().splitlines()
        (line,) = [line for line in lines if "no connection for events and replies: amqp://" in line]
        assert line.endswith("Connection refused. The client keeps trying.")
        # joined, serves, leads or not
        assert len(lines) <= 5


@pytest_twisted.ensureDeferred
async def test_what_the_log_has_of_workers(router, bridge_process, client):
    """At the start, what is served and how many workers are online; then each one that comes."""
    process = bridge_process(router.url, prefix="greeting", include=["taskapp.add", "taskapp.sleep"])
    await deferToThread(
        process.wait_for_output,
        "the bridge serves 2 tasks of 'taskapp' (prefix greeting) as bridge@realm1; 1 worker online",
    )
    await deferToThread(process.wait_for_output, "is online; 1 online")
    await deferToThread(process.stop)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"publsh_timeout": 1}, "did you mean 'publish_timeout'?"),
        ({"triggers": [{"topic": "com.x", "task": "taskapp.ad"}]}, "did you mean 'taskapp.add'?"),
        ({"app": "tests.support.nothing"}, f"it was looked for in {ROOT}, "),
        ({"env": {BROKER: "ampq://"}}, "broker_url has the unknown scheme 'ampq'; did you mean 'amqp'?"),
    ],
)
def test_a_wrong_configuration(extra, says, bridge_process):
    """One line says what is wrong, and the command fails."""
    process = bridge_process("ws://127.0.0.1:1/ws", **extra)
    assert process.wait() == 1
    (line,) = process.output().splitlines()
    assert line.startswith("twistedcelery bridge: ")
    assert says in line


@pytest_twisted.ensureDeferred
async def test_the_leader_is_killed(router, bridge_process, client, tmp_path):
    """Another bridge takes over within 5 s, and in between no event runs its task twice."""
    from twisted.internet import reactor

    extra = {"prefix": "killed", "triggers": [{"topic": "com.example.killed", "task": "taskapp.touch"}]}
    processes = [bridge_process(router.url, **extra) for _ in range(2)]
    caller = await client(router.url)
    leader = await until_led(caller, "killed", "com.example.killed")
    for process in processes:
        await deferToThread(process.wait_for_output, "the bridge serves")
    pid = (await caller.call("killed_admin.leader"))["pid"]
    (killed,) = [process for process in processes if process.pid == pid]
    ended = await caller.events("killed.taskapp.touch.succeeded")
    files = [tmp_path / f"touched{number}" for number in range(400)]
    for file in files[:200]:
        caller.publish("com.example.killed", str(file))
    killed.signal(signal.SIGKILL)
    since = reactor.seconds()
    for file in files[200:-1]:
        caller.publish("com.example.killed", str(file))
    await until_led(caller, "killed", "com.example.killed", earlier=leader)
    assert reactor.seconds() - since < 5
    assert (await caller.call("killed_admin.leader"))["pid"] != pid
    caller.publish("com.example.killed", str(files[-1]))
    while not files[-1].exists():
        await ended.get()
    assert {file.read_text() for file in files if file.exists()} == {"ran\n"}
