"""Calls whose messages the broker refuses."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from tests.support.waiting import all_outcomes


@pytest.fixture
def broker(rabbitmq_node):
    """A RabbitMQ that takes messages of 1 MiB at most."""
    rabbitmq_node.broker.eval("application:set_env(rabbit, max_message_size, 1048576).")
    yield rabbitmq_node.broker.url
    rabbitmq_node.broker.eval("application:set_env(rabbit, max_message_size, 134217728).")


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_call_that_is_too_large_for_the_broker(broker, worker, router, bridge, client):
    """It fails alone; everybody else's calls end with their values."""
    await deferToThread(worker, broker=broker)
    running = await bridge(router.url)
    callers = [await client(router.url) for _ in range(2)]
    add, echo = running.uri("taskapp.add"), running.uri("taskapp.echo")
    good = [callers[0].call(add, n, 1) for n in range(10)]
    bad = callers[1].call(echo, "x" * (2 << 20))
    good += [callers[0].call(add, n, 1) for n in range(10, 20)]
    (error,) = await all_outcomes([bad])
    assert isinstance(error, ApplicationError)
    assert error.error == f"{running.prefix}.error.broker_unavailable"
    assert "larger than configured max size 1048576" in error.args[0]
    assert await gatherResults(good) == [n + 1 for n in range(20)]
