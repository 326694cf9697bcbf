"""Private servers, as the tests use them, and what a family of rows needs of them."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pytest

from bench.contender import child_environment
from bench.workload import Workload
from tests.real.wamp.nodes import TICKET, TICKET_VARIABLE, node_config
from tests.support import taskapp
from tests.support.node import CrossbarNode
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.rabbitmq import RabbitMQNode
from tests.support.redis import RedisServer
from tests.support.worker import Worker

__all__ = ["Scene", "ServerMissing", "Servers"]

#: With its usual prefetch of four, a worker whose pool is ``solo`` now and then sleeps for up to 2 s over
#: acknowledgements that it has not sent (kombu's event loop looks for them before it polls, not after),
#: while the broker waits for them. Without a limit, there is nothing to wait for.
_WORKER = {"worker_prefetch_multiplier": 0}


class ServerMissing(Exception):
    """A program that the bench needs is not installed."""


@dataclass(frozen=True)
class Scene:
    """What runs beside the contenders of one family.

    :ivar broker: ``"amqp"`` or ``"redis"``
    :ivar backend: ``"rpc"`` or ``"redis"``
    :ivar worker: ``"stub"``, which answers at once; ``"solo"``, Celery's with ``--pool=solo``
    :ivar bridges: how many there are; with none there is no router either
    :ivar bridge: the bridges' configuration, over the bench's own
    :ivar echo: whether there is a callee that answers at once, too
    :ivar flower: whether there is Flower
    """

    broker: str = "amqp"
    backend: str = "rpc"
    worker: str = "stub"
    bridges: int = 0
    bridge: Mapping[str, Any] = field(default_factory=dict, hash=False)
    echo: bool = False
    flower: bool = False


class Servers:
    """Servers that run from their first use until the end of ``with``.

    :raises ServerMissing: on first use, when there is none and it could not be installed
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self._directory = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="twistedcelery-bench-"))
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @cached_property
    def rabbitmq(self) -> RabbitMQNode:
        """The only RabbitMQ; each scene has a virtual host."""
        with _missing():
            node = RabbitMQNode(self._directory / "rabbitmq")
        self._stack.callback(node.stop)
        node.start()
        return node

    @contextmanager
    def scene(self, scene: Scene, calls: int) -> Iterator[Workload]:
        """Run what a family needs.

        :return: the workload of those contenders that want nothing else
        """
        number = next(self._numbers)
        directory = self._directory / f"scene-{number}"
        directory.mkdir()
        with ExitStack() as stack:
            processes: dict[str, int] = {}
            urls = {"rpc": "rpc://"}
            if "amqp" in {scene.broker, scene.backend}:
                processes["RabbitMQ"] = self.rabbitmq.pid
                urls["amqp"] = stack.enter_context(self.rabbitmq.broker.vhost())
            if "redis" in {scene.broker, scene.backend}:
                with _missing():
                    redis = RedisServer(directory)
                stack.callback(redis.stop)
                redis.start()
                processes["Redis"] = redis.process.pid
                urls["redis"] = redis.url()
            broker, backend = urls[scene.broker], urls[scene.backend]
            run = _Programs(stack, directory, broker, backend)
            processes["worker"] = run.stub() if scene.worker == "stub" else run.solo()
            router = ""
            if scene.bridges or scene.echo:
                node = run.router()
                processes["router"], router = node.process.pid, node.url
            for index in range(scene.bridges):
                # Several bridges are alike: one of them is measured.
                processes.setdefault("bridge", run.bridge(router, index, scene.bridge))
            if scene.echo:
                processes["echo"] = run.echo(router)
            options = {}
            if scene.flower:
                port = free_port()
                processes["Flower"] = run.flower(port)
                options["flower"] = port
            yield Workload(broker, backend, calls, router=router, processes=processes, options=options)


class _Programs:
    """Starts programs for one scene; they end with it."""

    def __init__(self, stack: ExitStack, directory: Path, broker: str, backend: str) -> None:
        self._stack, self._directory = stack, directory
        self._broker, self._backend = broker, backend

    def stub(self) -> int:
        """Start a stub worker; its process id."""
        return self._python("stub", ["bench.stub", self._broker, self._backend])

    def solo(self) -> int:
        """Start a worker of Celery's; its process id."""
        worker = Worker(self._directory, broker=self._broker, backend=self._backend, config=_WORKER)
        self._stack.callback(worker.stop)
        worker.start()
        return worker.process.pid

    def router(self) -> CrossbarNode:
        """Start a router."""
        port = free_port()
        environment = {TICKET_VARIABLE: TICKET}
        node = CrossbarNode(self._directory / "node", node_config(port), port=port, env=environment)
        self._stack.callback(node.stop)
        node.start()
        return node

    def bridge(self, router: str, index: int, settings: Mapping[str, Any]) -> int:
        """Start a bridge, which joins a little later; its process id."""
        config = self._directory / f"bridge-{index}.json"
        config.write_text(json.dumps({"app": "tests.support.taskapp", **settings}))
        environment = {
            taskapp.BROKER: self._broker,
            taskapp.BACKEND: self._backend,
            "TWISTEDCELERY_TICKET": TICKET,
        }
        command = ["twistedcelery.cli", "bridge", "--url", router, "--config", str(config)]
        return self._python(f"bridge-{index}", command, environment, ready="")

    def echo(self, router: str) -> int:
        """Start the callee that answers at once; its process id."""
        return self._python("echo", ["bench.echo", router])

    def flower(self, port: int) -> int:
        """Start Flower; its process id."""
        command = ["celery", "-A", "tests.support.taskapp", "flower", "--address=127.0.0.1", f"--port={port}"]
        environment = {
            taskapp.BROKER: self._broker,
            taskapp.BACKEND: self._backend,
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        return self._python("flower", command, environment, ready="Visit me at")

    def _python(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        ready: str = "ready",
    ) -> int:
        process = Process(
            [sys.executable, "-m", *command],
            directory=self._directory,
            name=name,
            env={**child_environment(), **(environment or {})},
        )
        self._stack.callback(process.kill)
        process.start()
        process.wait_for_output(ready, timeout=60)
        return process.pid


@contextmanager
def _missing() -> Iterator[None]:
    try:
        yield
    except (pytest.skip.Exception, pytest.fail.Exception) as outcome:
        # How the tests' support says that a part is missing.
        raise ServerMissing(str(outcome)) from outcome
