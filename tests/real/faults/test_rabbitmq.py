"""RabbitMQ goes away, closes connections, or takes nothing, while calls are made."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread

from tests.real.faults.tasks import APP
from tests.real.faults.trial import Size, fault
from tests.real.transports.relay import Relay
from tests.support.taskapp import create_app
from tests.support.waiting import until


@fault("RabbitMQ is killed and restarted", short=Size(calls=300), long=Size(calls=2000))
@pytest_twisted.ensureDeferred
async def test_killed(trial, rabbitmq_node, worker, new_client):
    """Each confirmed call ends with its result, though RabbitMQ may have delivered some tasks twice."""
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url, app=APP)
    tx_app = new_client(create_app(url, "rpc://"), lost_after=5)
    async with trial.calls(tx_app, seconds=0.01) as load:
        await deferToThread(rabbitmq_node.broker.sync)
        await load.lose_broker(trial.size.calls, rabbitmq_node.kill, tx_app)
        await deferToThread(rabbitmq_node.start)
    assert trial.counts.results == trial.size.calls


CLOSING = Size(seconds=3, rate=100), Size(seconds=20, rate=300)


@fault("RabbitMQ closes our connections each second", short=CLOSING[0], long=CLOSING[1])
@pytest_twisted.ensureDeferred
async def test_connections_closed(trial, rabbitmq_node, worker, new_client):
    """Calls whose confirmation was lost say so; all others end with their results."""
    await close_each_second(trial, rabbitmq_node, worker, new_client)
    trial.ended_with({"PublishUnconfirmed"})
    assert trial.counts.results > 0


@fault("RabbitMQ closes our connections each second, with `retry=True`", short=None, long=CLOSING[1])
@pytest_twisted.ensureDeferred
async def test_connections_closed_and_calls_sent_again(trial, rabbitmq_node, worker, new_client):
    """A caller who allows that a message is sent again gets every result."""
    await close_each_second(trial, rabbitmq_node, worker, new_client, retry=True)
    assert trial.counts.results == trial.counts.calls


async def close_each_second(trial, rabbitmq_node, worker, new_client, **options):
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url, app=APP)
    tx_app = new_client(create_app(url, "rpc://"), lost_after=5)
    async with trial.calls(tx_app, **options) as load:
        load.start(trial.size.rate)
        closed = 0
        for _ in range(int(trial.size.seconds)):
            await task.deferLater(reactor, 1)
            closed += await deferToThread(rabbitmq_node.broker.close_client_connections)
        load.stop()
    assert closed >= trial.size.seconds


@fault("RabbitMQ is killed and restarted, without its data", short=None, long=Size(calls=2000))
@pytest_twisted.ensureDeferred
async def test_data_lost(trial, rabbitmq_node, worker, new_client):
    """Confirmed calls whose messages are gone, or whose replies are, are told so."""
    # The one virtual host that is there afterwards.
    url = rabbitmq_node.broker.vhost_url("/")
    await deferToThread(worker, broker=url, app=APP)
    tx_app = new_client(create_app(url, "rpc://"), lost_after=5)
    async with trial.calls(tx_app, seconds=0.01) as load:
        await load.lose_broker(trial.size.calls, rabbitmq_node.kill, tx_app)
        await deferToThread(rabbitmq_node.wipe)
        await deferToThread(rabbitmq_node.start)
    trial.ended_with({"ResultLost"})
    assert trial.counts.errors["ResultLost"] > 0


@fault("RabbitMQ is out of memory", short=Size(seconds=2, rate=100), long=Size(seconds=30, rate=200))
@pytest_twisted.ensureDeferred
async def test_alarm(trial, rabbitmq_node, worker, new_client):
    """Nothing is sent while it blocks publishers: calls whose time is up have certainly not run."""
    url = rabbitmq_node.broker.url
    await deferToThread(worker, broker=url, app=APP)
    tx_app = new_client(create_app(url, "rpc://"), lost_after=5)
    # Half of them wait until it is over.
    async with trial.calls(tx_app, confirm_timeout=trial.size.seconds / 2) as load:
        await load.for_seconds(trial.size.rate, 0.5)
        await deferToThread(rabbitmq_node.broker.block_publishers)
        await load.for_seconds(trial.size.rate, trial.size.seconds)
        await deferToThread(rabbitmq_node.broker.unblock_publishers)
    # It tells that it blocks publishers at the first message that it does not take.
    trial.ended_with({"BrokerUnavailable", "PublishUnconfirmed"})
    assert trial.counts.errors["PublishUnconfirmed"] < trial.counts.errors["BrokerUnavailable"]
    assert trial.counts.results > trial.counts.calls / 4


@pytest.fixture
def relay(rabbitmq):
    """A network between the client and the run's RabbitMQ."""
    made = Relay(rabbitmq.port)
    yield made
    made.release()
    made.down()


async def be_silent(trial, relay, rabbitmq, broker_url, worker, new_client, **sides):
    await deferToThread(worker, app=APP)
    url = broker_url.replace(f":{rabbitmq.port}/", f":{relay.port}/")
    tx_app = new_client(create_app(url, "rpc://"), lost_after=5, publish_timeout=2)
    async with trial.calls(tx_app, patience=30) as load:
        await load.for_seconds(trial.size.rate, 0.5)
        relay.hold(**sides)
        await load.for_seconds(trial.size.rate, trial.size.seconds)
        assert not tx_app.broker_connected
        relay.release()
        await until(lambda: tx_app.connected)
        await load.for_seconds(trial.size.rate, 0.5)
    trial.ended_with({"PublishUnconfirmed", "BrokerUnavailable"})
    # At least those of the first and the last half second.
    assert trial.counts.results >= trial.size.rate / 2


@fault("Network is silent both ways", short=Size(seconds=4, rate=50), long=Size(seconds=30, rate=50))
@pytest_twisted.ensureDeferred
async def test_silence(trial, relay, rabbitmq, broker_url, worker, new_client):
    """It is noticed within ``publish_timeout``; from then on calls fail for certain."""
    await be_silent(
        trial, relay, rabbitmq, broker_url, worker, new_client, from_clients=True, from_server=True
    )
    assert trial.counts.errors["BrokerUnavailable"] > 0


@fault("Network is silent from RabbitMQ to us", short=None, long=Size(seconds=30, rate=50))
@pytest_twisted.ensureDeferred
async def test_silence_of_rabbitmq(trial, relay, rabbitmq, broker_url, worker, new_client):
    """As if it were silent both ways, though RabbitMQ has the messages, and tasks run."""
    await be_silent(trial, relay, rabbitmq, broker_url, worker, new_client, from_server=True)
    assert trial.counts.errors["BrokerUnavailable"] > 0
