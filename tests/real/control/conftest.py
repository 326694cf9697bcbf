"""The brokers that control commands and events are tested on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import redis
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.support.taskapp import create_app
from tests.support.waiting import until
from twistedcelery import TwistedCelery

IMPLEMENTATIONS = ("amqp, native", "amqp, threads", "redis, native", "redis, threads", "filesystem")


class Parts:
    """A broker, and how clients use it.

    :param worker: the `worker` fixture
    """

    def __init__(self, broker: str, backend: str, transport: str, worker: Callable[..., Any], **config: Any):
        self.broker, self.backend, self.config = broker, backend, config
        #: RabbitMQ, where the broker is one.
        self.rabbitmq: Any = None
        self._transport = transport
        self._worker = worker
        self._clients: list[TwistedCelery] = []

    @property
    def has_event_loop(self) -> bool:
        """Whether workers hear control commands whatever their pool does."""
        return not self.broker.startswith("filesystem")

    def queues(self, prefix: str) -> list[str]:
        """What the broker knows of queues and bindings of such a name. Blocks."""
        if self.broker.startswith("redis"):
            with redis.Redis.from_url(self.broker) as client:
                names = [key.decode() for key in client.keys("*")]
                bound = [m.decode() for k in names if "binding." in k for m in client.smembers(k)]
            return [name for name in [*names, *bound] if prefix in name]
        if self.broker.startswith("filesystem"):
            folder = Path(self.config["broker_transport_options"]["control_folder"])
            bindings = [row for file in folder.glob("*.exchange") for row in json.loads(file.read_text())]
            return [row[2] for row in bindings if prefix in row[2]]
        vhost = self.broker.rpartition("/")[2]
        listed = self.rabbitmq.eval(
            f'[binary_to_list(N) || {{_,_,_,N}} <- rabbit_amqqueue:list_names(<<"{vhost}">>)].'
        )
        return [name for name in re.findall(r'"(.*?)"', listed) if prefix in name]

    def app(self) -> Any:
        return create_app(self.broker, self.backend, **self.config)

    def client(self, **options: Any) -> TwistedCelery:
        """A client, which is disconnected after the test."""
        client = TwistedCelery(self.app(), transport=self._transport, **options)
        self._clients.append(client)
        return client

    async def worker(self, **options: Any) -> Any:
        return await deferToThread(
            self._worker, broker=self.broker, backend=self.backend, config=self.config, **options
        )

    async def blocking(self, ask: Callable[[], Any]) -> Any:
        """What Celery's own client is told. It may be asked more than once."""
        while True:
            try:
                return await deferToThread(ask)
            except json.JSONDecodeError:
                # kombu writes messages in place on the filesystem, so that its reader may find half of one.
                if not self.broker.startswith("filesystem"):
                    raise

    async def close(self) -> None:
        for client in self._clients:
            await client.disconnect()


def _parts(name, request, tmp_path):
    worker = request.getfixturevalue("worker")
    if name == "filesystem":
        for folder in ("messages", "control", "results"):
            (tmp_path / folder).mkdir()
        options = {
            "data_folder_in": str(tmp_path / "messages"),
            "data_folder_out": str(tmp_path / "messages"),
            "control_folder": str(tmp_path / "control"),
            "polling_interval": 0.02,
        }
        backend = f"file://{tmp_path}/results"
        return Parts("filesystem://", backend, "auto", worker, broker_transport_options=options)
    transport = "auto" if name.endswith("native") else "threads"
    if name.startswith("redis"):
        server = request.getfixturevalue("redis_server")
        return Parts(server.url(0), server.url(1), transport, worker)
    parts = Parts(request.getfixturevalue("broker_url"), "rpc://", transport, worker)
    parts.rabbitmq = request.getfixturevalue("rabbitmq")
    return parts


@pytest.fixture(params=IMPLEMENTATIONS)
def parts(request, tmp_path):
    """A broker, one kind after another."""
    made = _parts(request.param, request, tmp_path)
    yield made
    pytest_twisted.blockon(ensureDeferred(made.close()))


def some(*names: str) -> pytest.MarkDecorator:
    """Test these of the `parts`, and the others in soak tests: it is about commands more than brokers."""
    return pytest.mark.parametrize(
        "parts",
        [pytest.param(name, marks=[] if name in names else pytest.mark.soak) for name in IMPLEMENTATIONS],
        indirect=True,
    )


@pytest.fixture(params=[name for name in IMPLEMENTATIONS if name.endswith("native")])
def native(request, tmp_path):
    """A broker that is used natively, one kind after another."""
    made = _parts(request.param, request, tmp_path)
    yield made
    pytest_twisted.blockon(ensureDeferred(made.close()))


@pytest.fixture
def rabbitmq_parts(request, tmp_path):
    """RabbitMQ, natively."""
    made = _parts("amqp, native", request, tmp_path)
    yield made
    pytest_twisted.blockon(ensureDeferred(made.close()))


@pytest.fixture
def eventually():
    """``await eventually(condition)`` waits until it holds."""
    return until
