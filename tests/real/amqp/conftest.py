"""One virtual host and one plain worker for all tests of this folder in a pytest-xdist process.

Starting a worker costs more than most of these tests. One that needs another worker still gets its own.
"""

from __future__ import annotations

import pytest

from tests.support.worker import Worker


@pytest.fixture(scope="session")
def shared_broker_url(rabbitmq):
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="session")
def shared_worker(shared_broker_url, tmp_path_factory):
    started = Worker(tmp_path_factory.mktemp("worker"), broker=shared_broker_url, backend="rpc://")
    started.start()
    yield started
    started.kill()


@pytest.fixture
def broker_url(shared_broker_url):
    return shared_broker_url


@pytest.fixture
def worker(worker, request):
    def start(**options):
        return worker(**options) if options else request.getfixturevalue("shared_worker")

    return start
