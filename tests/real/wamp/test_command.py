"""``twistedcelery bridge``: the bridge as a process of its own, through trouble of every kind."""

from __future__ import annotations

import re
import signal

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.threads import deferToThread

from tests.real.wamp.client import wait_for_procedure
from tests.real.wamp.nodes import TICKET, node_config
from tests.real.wamp.test_calls import refusal
from tests.real.wamp.test_triggers import until_led
from tests.support.node import CrossbarNode
from tests.support.taskapp import BACKEND, BROKER
from twistedcelery.wamp.session import REFUSED_DELAY

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
    # Impatience changes nothing.
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGINT)
    assert (await refusal(caller.call("stopping.taskapp.add", 1, 2))).error == "wamp.error.no_such_procedure"
    assert await call == 1.5
    assert await deferToThread(process.wait) == 0
    assert "have not ended" not in process.output()
    assert "Traceback" not in process.output()


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


@pytest_twisted.ensureDeferred
async def test_a_wrong_ticket(router, bridge_process):
    """It is refused, said, and tried again after a while; the ticket is not shown.

    That the intervals grow is tested in ``tests/unit/wamp/test_reconnect.py``.
    """
    process = bridge_process(router.url, ticket="a wrong one")

    def refused() -> bool:
        return process.output().count("refused the bridge") == 2

    await deferToThread(process.wait_until, refused, timeout=30, what="it was refused twice")
    times = re.findall(r":(\d\d)\+\d+ .*refused the bridge", process.output())
    assert (int(times[1]) - int(times[0])) % 60 >= REFUSED_DELAY
    assert "a wrong one" not in process.output()
    assert "Traceback" not in process.output()
    await deferToThread(process.stop)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"publsh_timeout": 1}, "did you mean 'publish_timeout'?"),
        ({"triggers": [{"topic": "com.x", "task": "taskapp.ad"}]}, "did you mean 'taskapp.add'?"),
    ],
)
def test_a_wrong_configuration(extra, says, bridge_process):
    """One line says what is wrong, and the command fails."""
    process = bridge_process("ws://127.0.0.1:1/ws", **extra)
    assert process.wait() == 1
    (line,) = process.output().splitlines()
    assert line.startswith("twistedcelery bridge: configuration key") or "unknown configuration key" in line
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
