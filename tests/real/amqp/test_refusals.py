"""Messages for which RabbitMQ closes the channel that other messages are on."""

from __future__ import annotations

from collections import Counter

import kombu
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.taskapp import create_app
from tests.support.waiting import all_outcomes

TOO_LARGE = ("x" * (2 << 20),)
ADDED = [(n, 1) for n in range(20)]
SUMS = [n + 1 for n in range(20)]


@pytest.fixture
def broker(rabbitmq_node):
    """A RabbitMQ that takes messages of 1 MiB at most."""
    rabbitmq_node.broker.eval("application:set_env(rabbit, max_message_size, 1048576).")
    yield rabbitmq_node.broker
    rabbitmq_node.broker.eval("application:set_env(rabbit, max_message_size, 134217728).")


def publishers_channel(tx_app):
    return tx_app._binding.bound.publisher._channel


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_a_message_that_is_too_large(broker, worker, new_client, tmp_path, retry):
    """It fails with the broker's words. All others, before and behind it, run once, over the same link."""
    await deferToThread(worker, broker=broker.url)
    tx_app = new_client(create_app(broker.url, "rpc://"), publish_timeout=30)
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    link = tx_app._binding.bound.publisher._connection._link
    path = tmp_path / "runs"
    before = [tx_app.send_task("taskapp.add", args=args, retry=retry) for args in ADDED]
    runs = [tx_app.send_task("taskapp.touch", args=(str(path),), retry=retry)]
    bad = tx_app.send_task("taskapp.echo", args=TOO_LARGE, retry=retry)
    behind = [tx_app.send_task("taskapp.add", args=args, retry=retry) for args in ADDED]
    runs.append(tx_app.send_task("taskapp.touch", args=(str(path),), retry=retry))
    with pytest.raises(
        twistedcelery.PublishRejected, match=r"406 .* larger than configured max size 1048576"
    ):
        await bad
    assert await all_outcomes([*before, *behind]) == [*SUMS, *SUMS]
    assert await all_outcomes(runs) == [str(path)] * 2
    assert path.read_text() == "ran\n" * 2
    assert tx_app._binding.bound.publisher._connection._link is link
    # The next one costs nobody the channel.
    channel = publishers_channel(tx_app)
    with pytest.raises(twistedcelery.PublishRejected, match="takes 1048576"):
        await tx_app.send_task("taskapp.echo", args=TOO_LARGE, retry=retry)
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    assert publishers_channel(tx_app) is channel


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_many_that_are_too_large_at_once(broker, worker, new_client):
    """Each fails, the calls among them end with their values, and the channel is opened anew once."""
    await deferToThread(worker, broker=broker.url)
    tx_app = new_client(create_app(broker.url, "rpc://"), publish_timeout=30)
    bad, good = [], []
    for args in ADDED:
        bad.append(tx_app.send_task("taskapp.echo", args=TOO_LARGE))
        good.append(tx_app.send_task("taskapp.add", args=args))
    ended = Counter(type(error) for error in await all_outcomes(bad))
    assert ended == {twistedcelery.PublishRejected: 20}
    assert await all_outcomes(good) == SUMS


@pytest.mark.parametrize("retry", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_exchange_that_was_deleted(broker_url, worker, new_client, retry):
    """Messages to it fail, and those to others do not: sent again one at a time where that is allowed."""
    await deferToThread(worker, broker=broker_url)
    tx_app = new_client(create_app(broker_url, "rpc://"), publish_timeout=30)
    with kombu.Connection(broker_url) as connection:
        channel = connection.default_channel
        kombu.Queue("celery", kombu.Exchange("mine"), "mine").bind(channel).declare()
        mine = {"exchange": "mine", "routing_key": "mine", "retry": retry}
        assert await tx_app.send_task("taskapp.add", args=(0, 0), **mine) == 0
        channel.exchange_delete("mine")
    before = [tx_app.send_task("taskapp.add", args=args, retry=retry) for args in ADDED]
    bad = [tx_app.send_task("taskapp.add", args=(1, 2), **mine)]
    between = [tx_app.send_task("taskapp.add", args=args, retry=retry) for args in ADDED if retry]
    bad += [tx_app.send_task("taskapp.add", args=(1, 2), **mine) for _ in between]
    behind = [tx_app.send_task("taskapp.add", args=args, retry=retry) for args in ADDED]
    for error in await all_outcomes(bad):
        assert isinstance(error, twistedcelery.PublishRejected)
        assert "404" in str(error)
    assert await all_outcomes([*before, *between, *behind]) == SUMS * (2 + retry)


@pytest_twisted.ensureDeferred
async def test_an_exchange_that_was_deleted_under_several_messages(broker_url, worker, new_client):
    """Nobody knows which of them came too late: each is unconfirmed, and says why. The others are not."""
    await deferToThread(worker, broker=broker_url)
    tx_app = new_client(create_app(broker_url, "rpc://"), publish_timeout=2)
    with kombu.Connection(broker_url) as connection:
        channel = connection.default_channel
        kombu.Exchange("mine").bind(channel).declare()
        mine = {"exchange": "mine", "routing_key": "mine", "ignore_result": True}
        with pytest.raises(twistedcelery.Unroutable):
            await tx_app.send_task("taskapp.add", args=(0, 0), **mine)
        channel.exchange_delete("mine")
    before = [tx_app.send_task("taskapp.add", args=args) for args in ADDED]
    bad = [tx_app.send_task("taskapp.add", args=(1, 2), **mine) for _ in range(3)]
    behind = [tx_app.send_task("taskapp.add", args=args) for args in ADDED]
    for error in await all_outcomes(bad):
        assert isinstance(error, twistedcelery.PublishUnconfirmed)
        assert "404" in str(error)
    assert await all_outcomes([*before, *behind]) == SUMS * 2
    with pytest.raises(twistedcelery.PublishRejected, match="404"):
        await tx_app.send_task("taskapp.add", args=(1, 2), **mine)


@pytest_twisted.ensureDeferred
async def test_an_exchange_that_the_user_may_not_write_to(rabbitmq, broker_url, worker, new_client):
    """Its message alone fails."""
    await deferToThread(worker, broker=broker_url)
    vhost = broker_url.rpartition("/")[2]
    rabbitmq.eval(
        f'rabbit_auth_backend_internal:add_user(<<"{vhost}">>, <<"pw">>, <<"tests">>),'
        f'ok = rabbit_auth_backend_internal:set_permissions(<<"{vhost}">>, <<"{vhost}">>,'
        ' <<".*">>, <<"^(?!amq.topic).*">>, <<".*">>, <<"tests">>).'
    )
    tx_app = new_client(create_app(rabbitmq.vhost_url(vhost, vhost, "pw"), "rpc://"))
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    before = [tx_app.send_task("taskapp.add", args=args) for args in ADDED]
    bad = tx_app.send_task("taskapp.add", args=(1, 2), exchange="amq.topic", routing_key="x")
    behind = [tx_app.send_task("taskapp.add", args=args) for args in ADDED]
    with pytest.raises(twistedcelery.PublishRejected, match="403"):
        await bad
    assert await all_outcomes([*before, *behind]) == SUMS * 2


def limit_connections(rabbitmq, vhost, limit):
    """As ``rabbitmqctl set_vhost_limits``; -1 for none."""
    rabbitmq.eval(
        f'ok = rabbit_vhost_limit:set(<<"{vhost}">>, [{{<<"max-connections">>, {limit}}}], <<"tests">>).'
    )


@pytest_twisted.ensureDeferred
async def test_a_limit_of_connections(rabbitmq, broker_url, worker, new_client):
    """Calls and broadcasts wait until it allows one more, and fail with its words when their time is up."""
    await deferToThread(worker, broker=broker_url)
    vhost = broker_url.rpartition("/")[2]
    app = create_app(broker_url, "rpc://")
    patient, hasty = new_client(app, publish_timeout=30), new_client(app, publish_timeout=0.5)
    limit_connections(rabbitmq, vhost, 0)
    calls = [patient.send_task("taskapp.add", args=args) for args in ADDED]
    ping = patient.control.ping(timeout=1)
    for error in await all_outcomes([hasty.send_task("taskapp.add", args=args) for args in ADDED]):
        assert type(error) is twistedcelery.BrokerUnavailable
        assert "limit (0) is reached" in str(error)
    assert not [call for call in (*calls, ping) if call.called]
    limit_connections(rabbitmq, vhost, -1)
    assert await all_outcomes(calls) == SUMS
    assert len(await ping) == 1
