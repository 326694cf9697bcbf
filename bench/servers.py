"""A private RabbitMQ with one worker, as the tests use them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.rabbitmq import RabbitMQNode
from tests.support.worker import Worker

__all__ = ["ServerMissing", "servers"]

#: With its usual prefetch of four, a worker whose pool is ``solo`` now and then sleeps for up to 2 s over
#: acknowledgements that it has not sent (kombu's event loop looks for them before it polls, not after),
#: while the broker waits for them. Without a limit, there is nothing to wait for.
_WORKER = {"worker_prefetch_multiplier": 0}


class ServerMissing(Exception):
    """A program that the comparison needs is not installed."""


@contextmanager
def servers() -> Iterator[str]:
    """Run a broker and a worker for the tasks of `tests.support.taskapp`.

    :return: the broker's URL
    :raises ServerMissing: when there is no RabbitMQ and it could not be installed
    """
    with tempfile.TemporaryDirectory(prefix="twistedcelery-bench-") as directory:
        try:
            node = RabbitMQNode(Path(directory) / "rabbitmq")
        except (pytest.skip.Exception, pytest.fail.Exception) as outcome:
            # How the tests' support says that a part is missing.
            raise ServerMissing(str(outcome)) from outcome
        try:
            node.start()
            with node.broker.vhost() as url:
                worker = Worker(Path(directory), broker=url, backend="rpc://", config=_WORKER)
                try:
                    worker.start()
                    yield url
                finally:
                    worker.stop()
        finally:
            node.stop()
