"""Fixtures of the Redis tests."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.support.redis import RedisServer
from tests.support.taskapp import create_app
from twistedcelery import TwistedCelery


@pytest.fixture
def redis_with(tmp_path):
    """``redis_with(**options)`` starts a Redis of the test's own with redis.conf's options."""
    started = []

    def start(**options):
        server = RedisServer(tmp_path, **options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.thaw()
        server.stop()


@pytest.fixture
def connect():
    """``connect(broker, backend, options={}, **settings)``: a client, disconnected afterwards."""
    made = []

    def make(broker, backend, *, options=None, **settings):
        tx_app = TwistedCelery(create_app(broker, backend, **settings), **(options or {}))
        made.append(tx_app)
        return tx_app

    yield make
    for tx_app in made:
        pytest_twisted.blockon(tx_app.disconnect())


@pytest.fixture
def running(redis_server, worker, connect):
    """``running(**settings)``: a client and a worker on one Redis with two databases."""

    def run(*, options=None, **settings):
        urls = redis_server.url(0), redis_server.url(1)
        worker(*urls, config=settings)
        return connect(*urls, options=options, **settings)

    return run
