"""Control commands while the broker goes away, or refuses."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.real.control.conftest import Parts
from tests.real.transports.relay import Relay
from tests.support.taskapp import create_app
from twistedcelery import BrokerAccessRefused, BrokerUnavailable, RepliesLost


@pytest.fixture(params=["amqp, native", "amqp, threads", "redis, native", "redis, threads"])
def relayed(request, worker):
    """A client's way to a broker, which can be cut; the URL that workers use."""
    if request.param.startswith("redis"):
        server = request.getfixturevalue("redis_server")
        port, url, backend = server.port, server.url(0), server.url(1)
    else:
        port = request.getfixturevalue("rabbitmq").port
        url, backend = request.getfixturevalue("broker_url"), "rpc://"
    relay = Relay(port)
    transport = "auto" if request.param.endswith("native") else "threads"
    behind = url.replace(f":{port}/", f":{relay.port}/")
    parts = Parts(behind, backend.replace(f":{port}/", f":{relay.port}/"), transport, worker)
    parts.direct = {"broker": url, "backend": backend}
    yield parts, relay
    pytest_twisted.blockon(ensureDeferred(parts.close()))
    relay.down()


@pytest_twisted.ensureDeferred
async def test_replies_that_are_lost_are_an_error(relayed, worker, eventually):
    """A call whose connection is cut fails; later ones work over the next connection."""
    parts, relay = relayed
    started = await deferToThread(worker, **parts.direct)
    tx_app = parts.client(publish_timeout=30)
    seen = []
    stream = tx_app.events({"*": seen.append})
    await stream.ready
    assert await tx_app.control.ping(limit=1, timeout=10) == [{started.name: {"ok": "pong"}}]
    replies = []
    waiting = tx_app.control.ping(timeout=None, callback=replies.append)
    await eventually(lambda: replies)
    relay.down()
    with pytest.raises(RepliesLost):
        await waiting
    await eventually(lambda: not stream.connected)
    again = tx_app.control.ping(limit=1, timeout=10)
    relay.up()
    assert await again == [{started.name: {"ok": "pong"}}]
    await stream.ready
    seen.clear()
    await tx_app.control.heartbeat()
    await eventually(lambda: seen)


@pytest_twisted.ensureDeferred
async def test_a_broker_that_is_not_there(relayed):
    """Commands, queries and ``purge`` fail in time with a named error; a stream waits."""
    parts, relay = relayed
    relay.down()
    tx_app = parts.client(publish_timeout=1)
    stream = tx_app.events({})
    before = reactor.seconds()
    for ask in (
        tx_app.control.ping,
        tx_app.control.inspect().active,
        tx_app.control.heartbeat,
        tx_app.control.purge,
    ):
        with pytest.raises(BrokerUnavailable):
            await ask()
    assert reactor.seconds() - before < 10
    assert not stream.connected
    relay.up()
    await stream.ready


@pytest.mark.parametrize("implementation", ["amqp, native", "amqp, threads", "redis, native"])
@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_told_at_once(request, new_client, implementation):
    """Nobody waits for what does not change by itself."""
    broker, _, transport = implementation.partition(", ")
    if broker == "redis":
        # To Redis without a password, any is a wrong one.
        server = request.getfixturevalue("redis_server")
        url = f"redis://user:wrong@127.0.0.1:{server.port}/0"
    else:
        url = request.getfixturevalue("rabbitmq").vhost_url("%2F", password="wrong")
    transport = "auto" if transport == "native" else "threads"
    tx_app = new_client(create_app(url, "rpc://"), transport=transport, publish_timeout=60)
    before = reactor.seconds()
    for ask in (tx_app.control.ping, tx_app.control.purge):
        with pytest.raises(BrokerAccessRefused):
            await ask()
    assert reactor.seconds() - before < 30
