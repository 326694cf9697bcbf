"""Sessions come and go; what the bridge is doing stays."""

from __future__ import annotations

import functools

import psutil
import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.threads import deferToThread

from tests.real.wamp.client import wait_for_procedure
from tests.real.wamp.nodes import TICKET, TICKET_VARIABLE, node_config
from tests.support.node import CrossbarNode
from tests.support.ports import free_port


def connections_to(port):
    """The local ports of this process's connections to a port."""
    sockets = psutil.Process().net_connections("tcp4")
    return {socket.laddr.port for socket in sockets if socket.raddr and socket.raddr.port == port}


@pytest.mark.timeout(180)
@pytest_twisted.ensureDeferred
async def test_the_router_dies(worker_process, rabbitmq, crossbar_node, bridge, bridge_process, client):
    """When it is back so are the procedures, over the same broker connection, and events kept meanwhile.

    So is a bridge in a process of its own, which was there before the router, and says little.
    """
    port = free_port()
    process = bridge_process(f"ws://127.0.0.1:{port}/ws", prefix="alone")
    await deferToThread(process.wait_for_output, "no router at")
    node = await deferToThread(crossbar_node, node_config(port), port=port, env={TICKET_VARIABLE: TICKET})
    running, caller = await bridge(node.url), await client(node.url)
    await caller.call(running.uri("taskapp.add"), 1, 1)
    await wait_for_procedure(caller, "alone.taskapp.add")
    connections = connections_to(rabbitmq.port)
    lost = caller.call(running.uri("taskapp.sleep"), 2)
    lost.addErrback(lambda failure: failure.trap(ApplicationError))
    await caller.call(running.api("status"))
    back = running.ready()
    await deferToThread(node.kill)
    await deferToThread(node.start)
    caller = await client(node.url)
    queue = await caller.events(running.uri("taskapp.sleep"), match="prefix")
    await back
    assert await caller.call(running.uri("taskapp.add"), 2, 3) == 5
    topic, _ = await queue.get()
    assert topic == running.uri("taskapp.sleep.succeeded")
    assert connections_to(rabbitmq.port) == connections != set()
    assert (await caller.call(running.api("status")))["totals"] == {"sent": 3, "succeeded": 3}
    await wait_for_procedure(caller, "alone.taskapp.add")
    assert await caller.call("alone.taskapp.add", 2, 3) == 5
    assert "Traceback" not in process.output()
    assert len(process.output().splitlines()) < 30
    await deferToThread(process.stop)
    assert process.returncode == 0


@pytest_twisted.ensureDeferred
async def test_a_bridge_in_a_container(broker, worker_process, start_node, client):
    """Crossbar starts the bridge from its configuration alone, and stops it with the node."""
    node = await start_node(broker, {"app": "tests.support.taskapp"})
    caller = await client(node.url)
    await wait_for_procedure(caller, "celery.taskapp.add")
    assert await caller.call("celery.taskapp.add", 2, 3) == 5
    await deferToThread(node.stop)
    assert node.process.left_behind == []
    assert TICKET not in node.process.output()


@pytest_twisted.ensureDeferred
async def test_nesting_in_a_container(broker, worker_process, start_node, client):
    """A container speaks CBOR, which reads fewer levels than the router. The bridge's session survives.

    Each caller gets an error of its own; a call of somebody else goes on.
    """
    node = await start_node(broker, {"app": "tests.support.taskapp"})
    caller, hostile = await client(node.url), await client(node.url, "msgpack")
    await wait_for_procedure(caller, "celery.taskapp.add")
    lost = await caller.events("celery_admin.bridge.offline")
    other = caller.call("celery.taskapp.sleep", 0.5)
    ended = set()
    for depth in (101, 400, 900):
        value = functools.reduce(lambda inner, _: [inner], range(depth), 1)
        for call in (
            hostile.call("celery.taskapp.echo", value),
            hostile.call("celery_api.submit", "taskapp.echo", [], {"x": value}),
            hostile.call("celery_api.state", value),
        ):
            with pytest.raises(ApplicationError) as refused:
                await call
            ended.add(refused.value.error)
    assert ended == {"celery.error.invalid_arguments"}
    assert await other == 0.5
    assert not lost.pending


@pytest.mark.parametrize(
    ("extra", "ticket", "says"),
    [
        pytest.param(
            *(
                {"app": "tests.support.taskapp", "publsh_timeout": 1},
                TICKET,
                "did you mean 'publish_timeout'?",
            ),
            marks=pytest.mark.soak,
        ),
        ({"app": "tests.support.taskapp"}, "a wrong one", "the router refused the bridge"),
        ({"app": "tests.support.taskapp"}, "", "as role 'caller', which may not register its procedures"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_bridge_that_cannot_start(extra, ticket, says, tmp_path):
    """The node says why, and ends instead of trying again and again."""
    port = free_port()
    env = {TICKET_VARIABLE: TICKET, "TWISTEDCELERY_TICKET": ticket}
    node = CrossbarNode(tmp_path / "node", node_config(port, extra), port=port, env=env)
    try:
        await deferToThread(node.process.start)
        await deferToThread(node.process.wait, 90)
    finally:
        await deferToThread(node.kill)
    output = node.process.output()
    assert says in output
    # While the node ends, its container may start the component once more.
    assert 1 <= output.count(says) <= 2
    assert "a wrong one" not in output
