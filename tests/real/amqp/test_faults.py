"""Calls while the broker goes away. One that was never there is in ``tests/real/test_unreachable.py``."""

from __future__ import annotations

import functools
import time

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.real.transports.relay import Relay
from tests.support.ports import free_port
from tests.support.taskapp import create_app
from tests.support.waiting import all_outcomes, until


@pytest.mark.timeout(150)
@pytest_twisted.ensureDeferred
async def test_200_calls_survive_a_killed_broker(rabbitmq_node, worker, new_client):
    """RabbitMQ killed with SIGKILL and restarted: each confirmed call ends with its result."""
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url)
    tx_app = new_client(create_app(url, "rpc://"))
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    await deferToThread(rabbitmq_node.broker.sync)
    calls = [tx_app.send_task("taskapp.sleep", args=(0.02,)) for _ in range(200)]
    published = await all_outcomes([call.published for call in calls])
    assert published == [None] * 200
    await until(lambda: tx_app.in_flight < 190)
    await deferToThread(rabbitmq_node.kill)
    assert tx_app.in_flight > 0
    await until(lambda: not tx_app.connected)
    await deferToThread(rabbitmq_node.start)
    assert await all_outcomes(calls) == [0.02] * 200
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest.mark.timeout(150)
@pytest_twisted.ensureDeferred
async def test_calls_made_around_a_killed_broker_all_end(rabbitmq_node, worker, new_client):
    """Calls before, during and after the outage each end once: with the result, or with a named error."""
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url)
    tx_app = new_client(create_app(url, "rpc://"), publish_timeout=45)
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    await deferToThread(rabbitmq_node.broker.sync)
    before = [tx_app.send_task("taskapp.add", args=(n, 0)) for n in range(300)]
    await until(lambda: any(call.called for call in before), what="the first of them has ended")
    await deferToThread(rabbitmq_node.kill)
    during = [tx_app.send_task("taskapp.add", args=(n, 0)) for n in range(100)]
    await deferToThread(rabbitmq_node.start)
    after = [tx_app.send_task("taskapp.add", args=(n, 0)) for n in range(100)]
    # These were certainly not sent before the broker was back.
    assert await all_outcomes(after) == list(range(100))
    # Of the others, some met the dying broker: the kernel took what nobody read.
    for call, n in [*zip(before, range(300), strict=True), *zip(during, range(100), strict=True)]:
        published = (await all_outcomes([call.published]))[0]
        if published is None:
            assert await call == n
        else:
            assert isinstance(published, twistedcelery.PublishUnconfirmed)
            with pytest.raises(twistedcelery.PublishUnconfirmed):
                await call


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_retry_true_sends_again_under_the_same_id(rabbitmq_node, worker, new_client):
    """A message whose confirmation was lost is sent again where the caller allowed it, and only there."""
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url)
    tx_app = new_client(create_app(url, "rpc://"), publish_timeout=60)
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    await deferToThread(rabbitmq_node.broker.sync)
    await deferToThread(rabbitmq_node.freeze)
    allowed = tx_app.send_task("taskapp.request_info", retry=True)
    not_allowed = tx_app.send_task("taskapp.add", args=(1, 2), confirm_timeout=5)
    not_allowed.addErrback(lambda failure: failure)
    # Both go to the frozen broker's socket, which confirms nothing.
    await until(lambda: len(tx_app._binding.bound.publisher._unconfirmed) == 2, what="both are sent")
    await deferToThread(rabbitmq_node.kill)
    with pytest.raises(twistedcelery.PublishUnconfirmed, match="may or may not"):
        await not_allowed
    await deferToThread(rabbitmq_node.start)
    assert (await allowed)["id"] == allowed.task_id


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_broker_under_a_memory_alarm(rabbitmq_node, worker, new_client, tmp_path):
    """Once the broker has said so, messages wait unsent: they can be withdrawn, and expire for certain."""
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url, pool="threads", concurrency=4)
    tx_app = new_client(create_app(url, "rpc://"), publish_timeout=30)
    ran = tmp_path / "ran"
    touch = functools.partial(tx_app.send_task, "taskapp.touch", args=(str(ran),))
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    await deferToThread(rabbitmq_node.broker.block_publishers)
    # RabbitMQ says so when something is published.
    first = touch()
    await until(lambda: not tx_app.broker_connected, what="the client knows of the alarm")
    expiring = [touch(confirm_timeout=0.5) for _ in range(200)]
    cancelled = [touch() for _ in range(50)]
    for call in cancelled:
        call.cancel()
    waiting = [touch() for _ in range(20)]
    for error in await all_outcomes(expiring):
        assert type(error) is twistedcelery.BrokerUnavailable
        assert "out of memory or disk space (it says 'low on memory')" in str(error)
    assert {type(error) for error in await all_outcomes(cancelled)} == {twistedcelery.CallCancelled}
    await deferToThread(rabbitmq_node.broker.unblock_publishers)
    assert await all_outcomes([first, *waiting]) == [str(ran)] * 21
    assert ran.read_text().count("ran") == 21
    assert tx_app.connected


@pytest.fixture
def relay(rabbitmq):
    """The network between a client and the run's RabbitMQ."""
    relay = Relay(rabbitmq.port)
    yield relay
    relay.down()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("silent", ["from_clients", "from_server"])
@pytest_twisted.ensureDeferred
async def test_a_silent_network(relay, rabbitmq, broker_url, worker, new_client, silent):
    """With Celery's default heartbeat: both connections are given up, and no call is in doubt afterwards."""
    await deferToThread(worker, pool="threads", concurrency=2)
    url = broker_url.replace(f":{rabbitmq.port}/", f":{relay.port}/")
    tx_app = new_client(create_app(url, "rpc://", broker_connection_timeout=1), publish_timeout=2)
    before = tx_app.send_task("taskapp.sleep", args=(1,))
    await before.published
    relay.hold(**{silent: True})
    doubtful = [tx_app.send_task("taskapp.add", args=(1, 2)) for _ in range(5)]
    assert {type(each) for each in await all_outcomes(doubtful)} == {twistedcelery.PublishUnconfirmed}
    await until(lambda: not tx_app.broker_connected and not tx_app.backend_connected, seconds=10)
    certain = [tx_app.send_task("taskapp.add", args=(1, 2)) for _ in range(20)]
    assert {type(each) for each in await all_outcomes(certain)} == {twistedcelery.BrokerUnavailable}
    relay.release()
    assert await before == 1
    await until(lambda: tx_app.connected)
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_lost_confirmations_of_tasks_that_run(
    relay, rabbitmq, broker_url, worker, new_client, tmp_path
):
    """A connection goes with 50 confirmations: the calls end with their results all the same."""
    await deferToThread(worker, pool="threads", concurrency=2)
    url = broker_url.replace(f":{rabbitmq.port}/", f":{relay.port}/")
    tx_app = new_client(create_app(url, "rpc://"))
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    relay.hold(from_server=True)
    ran = tmp_path / "ran"
    calls = [tx_app.send_task("taskapp.touch", args=(str(ran),)) for _ in range(50)]
    await until(lambda: ran.exists() and ran.read_text().count("ran") == 50, what="all have run")
    await deferToThread(relay.down)
    relay.up()
    assert await all_outcomes([call.published for call in calls]) == [None] * 50
    assert await all_outcomes(calls) == [str(ran)] * 50
    assert ran.read_text().count("ran") == 50


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_disconnect_from_a_broker_that_does_not_answer(rabbitmq_node, new_client):
    """``disconnect()`` is bounded in time, whatever the broker does."""
    tx_app = new_client(create_app(rabbitmq_node.broker.url, "rpc://"))
    call = tx_app.send_task("taskapp.add", args=(0, 0))
    await call.published
    await deferToThread(rabbitmq_node.freeze)
    started = time.monotonic()
    disconnected = tx_app.disconnect()
    with pytest.raises(twistedcelery.Disconnected):
        await call
    await disconnected
    assert time.monotonic() - started < 10
    await deferToThread(rabbitmq_node.thaw)


@pytest_twisted.ensureDeferred
async def test_failover_to_the_next_broker(broker_url, worker, new_client):
    """Of ``a;b``, the one that answers is used."""
    worker()
    url = f"amqp://127.0.0.1:{free_port()}//;{broker_url}"
    tx_app = new_client(create_app(url, "rpc://"))
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_connections_closed_by_the_administrator(rabbitmq_node, worker, new_client):
    """A closed connection is made again, and waiting results still come."""
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url)
    tx_app = new_client(create_app(url, "rpc://"))
    call = tx_app.send_task("taskapp.sleep", args=(2,))
    await call.published
    await deferToThread(rabbitmq_node.broker.close_connections)
    await until(lambda: not tx_app.connected)
    await until(lambda: tx_app.connected)
    assert await call == 2
