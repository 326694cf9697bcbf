"""Fixtures. The servers of a run are shared by all its pytest-xdist workers and stopped at its end."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from celery import Celery

from tests.support import rabbitmq as rabbitmq_support
from tests.support.node import CrossbarNode
from tests.support.process import kill_all_in
from tests.support.rabbitmq import RabbitMQ, RabbitMQNode
from tests.support.redis import RedisServer
from tests.support.strictness import logged_errors, pytest_collection_finish, pytest_pyfunc_call
from tests.support.worker import Worker
from twistedcelery import TwistedCelery

__all__ = ["logged_errors", "pytest_collection_finish", "pytest_pyfunc_call"]  # pytest finds them here

_DIRECTORY = pytest.StashKey[Path]()
_OWNER = pytest.StashKey[int]()
_NODE = pytest.StashKey[RabbitMQNode]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options that write documentation, and one that says how long to endure."""
    parser.addoption(
        "--write-features", action="store_true", help="write the table of docs/transports.md as it is found"
    )
    parser.addoption(
        "--write-soak", action="store_true", help="write the table of docs/soak.md as it is found"
    )
    parser.addoption("--endurance", type=float, default=1800.0, help="seconds of the endurance trial")


def pytest_configure(config: pytest.Config) -> None:
    """Give the whole run one directory and one process that its shared servers must not outlive."""
    of_controller = getattr(config, "workerinput", None)
    if of_controller is None:
        config.stash[_DIRECTORY] = Path(tempfile.mkdtemp(prefix="twistedcelery-"))
        config.stash[_OWNER] = os.getpid()
    else:
        config.stash[_DIRECTORY] = Path(of_controller["twistedcelery_directory"])
        config.stash[_OWNER] = of_controller["twistedcelery_owner"]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a pytest-xdist worker which they are."""
    node.workerinput["twistedcelery_directory"] = str(node.config.stash[_DIRECTORY])
    node.workerinput["twistedcelery_owner"] = node.config.stash[_OWNER]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Have one process run all tests that share a fixture of a module or a session."""
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            continue
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            shared = definitions[-1]
            # The servers of this file are shared by the processes themselves.
            if shared.scope != "function" and shared.baseid not in {"", "tests"}:
                item.add_marker(pytest.mark.xdist_group(shared.baseid))
                break


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the shared servers, once all workers are done."""
    if not hasattr(config, "workerinput"):
        kill_all_in(config.stash[_DIRECTORY])
        shutil.rmtree(config.stash[_DIRECTORY])


@pytest.fixture(scope="session")
def rabbitmq(pytestconfig: pytest.Config) -> RabbitMQ:
    """The run's RabbitMQ. It is shared: use a virtual host of your own, and do not disturb it."""
    directory = pytestconfig.stash[_DIRECTORY]
    address = directory / "rabbitmq.json"
    with (directory / "rabbitmq.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            node = RabbitMQNode(directory / "rabbitmq", owner=pytestconfig.stash[_OWNER])
            node.start()
            pytestconfig.stash[_NODE] = node  # dropped, it would be taken for forgotten
            rabbitmq_support.save(node.broker, address)
    return rabbitmq_support.load(address)


@pytest.fixture
def broker_url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """The URL of an empty virtual host of the run's RabbitMQ, deleted after the test."""
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="session")
def _node_to_kill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQNode]:
    node = RabbitMQNode(tmp_path_factory.mktemp("rabbitmq"))
    yield node
    node.stop()


@pytest.fixture
def rabbitmq_node(_node_to_kill: RabbitMQNode) -> RabbitMQNode:
    """A running RabbitMQ to freeze, kill and restart, with an empty virtual host.

    Starting one costs 6 s: the tests of a process have the same one, one after another.
    """
    _node_to_kill.renew()
    return _node_to_kill


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis of the test's own."""
    server = RedisServer(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """``worker(...)`` starts a Celery worker for the test: `Worker`'s options.

    Without ``broker`` it works on `broker_url`, without ``backend`` it answers over ``rpc://``.
    """
    started: list[Worker] = []

    def start(broker: str | None = None, backend: str = "rpc://", **options: Any) -> Worker:
        broker = request.getfixturevalue("broker_url") if broker is None else broker
        new = Worker(tmp_path, broker=broker, backend=backend, **options)
        started.append(new)
        new.start()
        return new

    # Before the workers, so that it ends after them.
    if "broker_url" in request.fixturenames:
        request.getfixturevalue("broker_url")
    yield start
    for one in started:
        one.kill()


@pytest.fixture
def new_client() -> Iterator[Callable[..., TwistedCelery]]:
    """``new_client(app, **options)``: a `TwistedCelery`, disconnected after the test, however that ends.

    Tests name it after their servers, so that it ends before them.
    """
    made: list[TwistedCelery] = []

    def make(app: Celery, **options: Any) -> TwistedCelery:
        made.append(TwistedCelery(app, **options))
        return made[-1]

    yield make
    for client in made:
        pytest_twisted.blockon(client.disconnect())


@pytest.fixture
def crossbar_node(tmp_path: Path) -> Iterator[Callable[..., CrossbarNode]]:
    """``crossbar_node(config, port=free_port())`` starts a Crossbar.io node: `CrossbarNode`'s options."""
    started: list[CrossbarNode] = []
    numbers = itertools.count(1)

    def start(config: Mapping[str, Any], **options: Any) -> CrossbarNode:
        new = CrossbarNode(tmp_path / f"node-{next(numbers)}", config, **options)
        started.append(new)
        new.start()
        return new

    yield start
    for one in started:
        one.stop()
