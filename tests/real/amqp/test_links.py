"""What becomes of links, and of what waits for them, on a real broker."""

from __future__ import annotations

import time

import pytest
import pytest_twisted
from kombu import Exchange, Queue
from twisted.internet import reactor, task
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.lateness import Lateness
from tests.support.taskapp import create_app


def unheard(call):
    """The call's result, which no worker sends, is nothing to wait for."""
    call.addErrback(lambda failure: failure.trap(twistedcelery.Disconnected, twistedcelery.PublishError))


@pytest_twisted.ensureDeferred
async def test_a_queue_that_amqp_cannot_declare_fails_its_call_alone(broker_url, new_client):
    """A queue with an argument that pika cannot encode is refused; the next declaration goes through."""
    tx_app = new_client(create_app(broker_url, "rpc://"), publish_timeout=5)
    bad = Queue("bad", Exchange("bad"), "bad", queue_arguments={"x-odd": 1.5})
    with pytest.raises(twistedcelery.PublishRejected, match="no AMQP form"):
        await tx_app.send_task("taskapp.add", args=(1, 2), queue=bad)
    good = tx_app.send_task("taskapp.add", args=(1, 2), queue=Queue("good", Exchange("good"), "good"))
    await good.published
    unheard(good)


@pytest_twisted.ensureDeferred
async def test_cancelling_before_the_confirmation(broker_url, worker, tmp_path, new_client):
    """A call that is cancelled as soon as it was sent is revoked, and disconnecting waits for that."""
    tx_app = new_client(create_app(broker_url, "rpc://"))
    marker = tmp_path / "ran"
    worker()
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    call = tx_app.send_task("taskapp.touch", args=(str(marker),), countdown=1)
    call.cancel()
    with pytest.raises(twistedcelery.CallCancelled):
        await call
    await tx_app.disconnect()
    after = new_client(create_app(broker_url, "rpc://"))
    assert await after.send_task("taskapp.add", args=(1, 1), countdown=2) == 2
    assert not marker.exists()


@pytest_twisted.ensureDeferred
async def test_a_burst_before_the_first_connection(broker_url, new_client):
    """2,000 calls that wait for one link all go out over it."""
    tx_app = new_client(create_app(broker_url, "rpc://"))
    calls = [tx_app.send_task("taskapp.add", args=(n, n)) for n in range(2000)]
    await gatherResults([call.published for call in calls])
    for call in calls:
        unheard(call)


@pytest.mark.timing
@pytest_twisted.ensureDeferred
async def test_a_burst_before_the_first_connection_does_not_hold_up_the_reactor(broker_url, new_client):
    """Meanwhile a 5 ms loop is never more than 200 ms late."""
    tx_app = new_client(create_app(broker_url, "rpc://"))
    with Lateness() as lateness:
        calls = [tx_app.send_task("taskapp.add", args=(n, n)) for n in range(2000)]
        await gatherResults([call.published for call in calls])
    for call in calls:
        unheard(call)
    assert lateness.worst <= 0.200


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_broker_killed_while_queues_are_declared(rabbitmq_node, new_client):
    """Tasks whose queue the broker never declared are sent when it is back."""
    tx_app = new_client(create_app(rabbitmq_node.broker.url, "rpc://"), publish_timeout=60)
    first = tx_app.send_task("taskapp.add", args=(1, 2))
    await first.published
    await deferToThread(rabbitmq_node.freeze)
    calls = [tx_app.send_task("taskapp.add", args=(1, 2), queue=f"new-{n}") for n in range(5)]
    await task.deferLater(reactor, 0)
    await deferToThread(rabbitmq_node.kill)
    await deferToThread(rabbitmq_node.start)
    await gatherResults([call.published for call in calls])
    for call in (first, *calls):
        unheard(call)


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_broker_that_stops_reading_is_given_up(rabbitmq_node, new_client):
    """Without heartbeats the link ends, also when what was written could never go out."""
    app = create_app(rabbitmq_node.broker.url, "rpc://", broker_heartbeat=2)
    tx_app = new_client(app, publish_timeout=60)
    first = tx_app.send_task("taskapp.add", args=(1, 2))
    await first.published
    unheard(first)
    await deferToThread(rabbitmq_node.freeze)
    begun = time.monotonic()
    with pytest.raises(twistedcelery.PublishUnconfirmed, match="heartbeat"):
        await tx_app.send_task("taskapp.echo", args=("x" * 20_000_000,), confirm_timeout=15)
    assert time.monotonic() - begun < 30
    await deferToThread(rabbitmq_node.thaw)


@pytest_twisted.ensureDeferred
async def test_headers_longer_than_a_frame_fail_their_call_alone(broker_url, worker, new_client):
    """The broker would close the connection for them; nothing else notices."""
    worker()
    tx_app = new_client(create_app(broker_url, "rpc://"))
    before = tx_app.send_task("taskapp.add", args=(1, 2))
    long = tx_app.send_task("taskapp.add", args=(1, 2), headers={"long": "x" * 200_000})
    with pytest.raises(twistedcelery.EncodeError, match="the broker takes"):
        await long
    assert await gatherResults([before, tx_app.send_task("taskapp.add", args=(2, 3))]) == [3, 5]
