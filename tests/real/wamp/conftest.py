"""A router and a worker for many tests, and for each test bridges and clients of its own."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from celery import Celery
from twisted.internet.threads import deferToThread

from tests.real.wamp import apps
from tests.real.wamp.client import Client, RunningBridge, connect
from tests.real.wamp.nodes import TICKET, TICKET_VARIABLE, node_config
from tests.support.node import CrossbarNode
from tests.support.ports import free_port
from tests.support.process import SOURCES, Process
from tests.support.rabbitmq import RabbitMQ
from tests.support.taskapp import BACKEND, BROKER, CONFIG, create_app
from tests.support.worker import Worker

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def broker(rabbitmq: RabbitMQ) -> Iterator[str]:
    """The URL of the virtual host that `worker_process` works on."""
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="session")
def worker_process(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that all tests share: two tasks at a time, in threads."""
    worker = Worker(
        tmp_path_factory.mktemp("worker"), broker=broker, backend="rpc://", pool="threads", concurrency=4
    )
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrossbarNode]:
    """A router that all tests share."""
    port = free_port()
    node = CrossbarNode(
        tmp_path_factory.mktemp("router"), node_config(port), port=port, env={TICKET_VARIABLE: TICKET}
    )
    node.start()
    yield node
    node.stop()


@pytest.fixture
def app(broker: str) -> Celery:
    """The application on the client's side, for this test alone."""
    return create_app(broker, "rpc://")


@pytest_twisted.async_yield_fixture
async def bridge(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[RunningBridge]]]:
    """``await bridge(router.url, **extra)`` runs a bridge in this process, under a prefix of its own."""
    monkeypatch.setenv("TWISTEDCELERY_TICKET", TICKET)
    monkeypatch.setattr(apps, "current", app)
    running: list[RunningBridge] = []

    async def start(url: str, **extra: Any) -> RunningBridge:
        extra = {"app": "tests.real.wamp.apps:current", "prefix": f"test{next(_numbers)}", **extra}
        new = RunningBridge(url, extra)
        running.append(new)
        await new.start()
        return new

    yield start
    for one in running:
        await one.stop()


@pytest_twisted.async_yield_fixture
async def client() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    """``await client(router.url)`` joins as a caller; sessions are closed after the test."""
    joined: list[Client] = []

    async def join(url: str, serializer: str = "json") -> Client:
        new = await connect(url, serializer)
        joined.append(new)
        return new

    yield join
    for one in joined:
        await one.close()


@pytest_twisted.async_yield_fixture
async def start_node(
    crossbar_node: Callable[..., CrossbarNode],
) -> AsyncIterator[Callable[..., Awaitable[CrossbarNode]]]:
    """``await start_node(broker, extra)`` starts a node: a router, and the bridge in a container."""

    async def start(
        broker: str, extra: Mapping[str, Any], ticket: str = TICKET, celery: Mapping[str, Any] | None = None
    ) -> CrossbarNode:
        port = free_port()
        env = {
            BROKER: broker,
            BACKEND: "rpc://",
            CONFIG: json.dumps(celery or {}),
            TICKET_VARIABLE: TICKET,
            "TWISTEDCELERY_TICKET": ticket,
        }
        return await deferToThread(crossbar_node, node_config(port, extra), port=port, env=env)

    yield start


@pytest.fixture
def bridge_process(broker: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """``bridge_process(url, **extra)`` starts one; it joins a little later."""
    started: list[Process] = []

    def start(
        url: str,
        ticket: str = TICKET,
        env: Mapping[str, str] | None = None,
        realm: str = "realm1",
        **extra: Any,
    ) -> Process:
        name = f"bridge{len(started)}"
        config = tmp_path / f"{name}.json"
        settings = {"app": "tests.support.taskapp", **extra}
        if settings["app"] is None:
            del settings["app"]
        config.write_text(json.dumps(settings))
        variables = {
            BROKER: broker,
            BACKEND: "rpc://",
            "PYTHONPATH": os.pathsep.join(SOURCES),
            "TWISTEDCELERY_TICKET": ticket,
            **(env or {}),
        }
        command = [sys.executable, "-m", "twistedcelery.cli", "bridge", "--url", url, "--realm", realm]
        command += ["--config", str(config)]
        process = Process(command, directory=tmp_path, name=name, env=variables)
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    """A file that the task ``taskapp.touch`` writes to."""
    return tmp_path / "touched"
