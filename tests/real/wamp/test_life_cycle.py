"""Router, broker and bridge are killed and started again, in any order: they find each other with no help."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from autobahn.exception import Disconnected
from autobahn.wamp.exception import ApplicationError
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.real.wamp.client import connect
from tests.real.wamp.nodes import TICKET, TICKET_VARIABLE, node_config
from tests.support.node import CrossbarNode
from tests.support.ports import free_port
from tests.support.process import SOURCES, Process
from tests.support.rabbitmq import RabbitMQNode
from tests.support.taskapp import BACKEND, BROKER
from tests.support.worker import Worker

pytestmark = pytest.mark.xdist_group("life cycle")

#: Two that are down at once, in the order in which they are started again. Read one after the other, they
#: are started in each of the six orders of the three.
ROUNDS = [
    ("router", "broker"),
    *(
        pytest.param(*two, marks=pytest.mark.soak)
        for two in (
            ("bridge", "router"),
            ("broker", "bridge"),
            ("broker", "router"),
            ("bridge", "broker"),
            ("router", "bridge"),
        )
    ),
]


class System:
    """One of each, and two bridges: a process of its own, and one in a container of Crossbar's."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.broker = RabbitMQNode(directory / "rabbitmq")
        url = self.broker.broker.url
        env = {BROKER: url, BACKEND: "rpc://", TICKET_VARIABLE: TICKET, "TWISTEDCELERY_TICKET": TICKET}
        self.router = CrossbarNode(directory / "router", node_config(port), port=port, env=env)
        config = node_config(port, {"app": "tests.support.taskapp", "prefix": "contained"})
        config["workers"] = [worker for worker in config["workers"] if worker["type"] == "container"]
        self.container = CrossbarNode(directory / "container", config, port=port, env=env)
        command = [*(sys.executable, "-m", "twistedcelery.cli", "bridge", "--url", self.router.url)]
        command += ["-A", "tests.support.taskapp", "--set", "prefix=alone"]
        env = {**env, "PYTHONPATH": os.pathsep.join(SOURCES)}
        self.alone = Process(command, directory=directory, name="bridge", env=env)
        self.worker = Worker(directory, broker=url, backend="rpc://", pool="threads")

    def kill(self, part: str) -> None:
        """Kill it (SIGKILL)."""
        if part == "broker":
            self.broker.broker.sync()
            self.broker.kill()
        elif part == "router":
            self.router.kill()
        else:
            self.alone.kill()
            self.container.kill()

    def start(self, part: str) -> None:
        """Start it again, and do not wait for what it needs."""
        if part == "broker":
            self.broker.start()
        elif part == "router":
            self.router.start()
        else:
            self.alone.start()
            self.container.process.start()

    def supervise(self) -> None:
        """Crossbar ends a node that cannot connect when it starts: do what systemd does then."""
        if not self.container.process.running:
            self.container.process.start()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Everything, running."""
    new = System(tmp_path_factory.mktemp("system"))
    try:
        for part in ("broker", "router", "bridge"):
            new.start(part)
        new.worker.start()
        yield new
    finally:
        for each in (new.alone, new.container, new.worker, new.router, new.broker):
            each.kill()
        new.broker.stop()


async def answer(system: System, prefix: str, seconds: float = 40) -> Any:
    """What a task returns, as soon as a call of it gets through."""
    from twisted.internet import reactor

    deadline = reactor.seconds() + seconds
    while True:
        try:
            client = await connect(system.router.url)
            try:
                return await client.call(f"{prefix}.taskapp.add", 2, 3)
            finally:
                await client.close()
        except (ConnectError, Disconnected, ApplicationError) as error:
            reason = str(error)
        assert reactor.seconds() < deadline, f"{prefix} does not come back: {reason}"
        system.supervise()
        await deferLater(reactor, 0.1, lambda: None)


@pytest.mark.parametrize(("first", "second"), ROUNDS)
@pytest_twisted.ensureDeferred
async def test_two_that_are_down_at_once(first, second, system):
    """Whatever comes back first, calls get through to the worker again, over both kinds of bridges."""
    for prefix in ("alone", "contained"):
        assert await answer(system, prefix) == 5
    await deferToThread(system.kill, second)
    await deferToThread(system.kill, first)
    await deferToThread(system.start, first)
    await deferToThread(system.start, second)
    for prefix in ("alone", "contained"):
        assert await answer(system, prefix) == 5
    assert "Traceback" not in system.alone.output()
