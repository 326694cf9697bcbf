"""``sentinel://`` for broker and results, with real sentinels."""

from __future__ import annotations

import pytest
import pytest_twisted
import redis
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.threads import deferToThread

from tests.support.ports import free_port
from tests.support.redis import RedisSentinel, RedisServer
from tests.support.taskapp import create_app
from tests.support.waiting import until
from twistedcelery import BrokerUnavailable, ConfigurationError, ResultBackendUnavailable, TwistedCelery
from twistedcelery.transports.redis.link import RedisParameters, open_link

MASTER = {"master_name": "ours"}
SETTINGS = {"broker_transport_options": MASTER, "result_backend_transport_options": MASTER}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A master, a replica of it, and a sentinel that knows both."""
    directory = tmp_path_factory.mktemp("sentinel")
    master, replica = RedisServer(directory), RedisServer(directory)
    started = [master, replica]
    try:
        master.start()
        replica.start()
        with redis.Redis(port=replica.port) as client:
            client.replicaof("127.0.0.1", master.port)
        sentinel = RedisSentinel(directory, master.port)
        started.append(sentinel)
        sentinel.start()
        yield master, replica, sentinel
    finally:
        for server in reversed(started):
            server.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "master_name"),
        ({"master_name": "theirs"}, "no sentinel knows a master 'theirs'"),
        ({**MASTER, "min_other_sentinels": 1}, "num-other-sentinels 0"),
        ({**MASTER, "sentinel_kwargs": {"password": "wr0ng"}}, "AUTH|WRONGPASS"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_master(group, connect, options, words):
    """What is missing, or is not known, is told; passwords are not."""
    *_, sentinel = group
    url = f"sentinel://127.0.0.1:{sentinel.port}/0"
    tx_app = connect(url, "disabled://", options={"publish_timeout": 1}, broker_transport_options=options)
    with pytest.raises(BrokerUnavailable, match=words) as raised:
        await tx_app.send_task("taskapp.add", ignore_result=True)
    assert "wr0ng" not in str(raised.value)


@pytest_twisted.ensureDeferred
async def test_results_need_a_name_as_well(group):
    """Celery's backend without ``master_name`` is a configuration that cannot be used."""
    *_, sentinel = group
    url = f"sentinel://127.0.0.1:{sentinel.port}/0"
    app = create_app("memory://", url)
    tx_app = TwistedCelery(app, publish_timeout=1)
    with pytest.raises((ConfigurationError, ResultBackendUnavailable), match="master_name"):
        await tx_app.result("some-id").state
    await tx_app.disconnect()


@pytest_twisted.ensureDeferred
async def test_a_replica_is_not_taken_for_the_master(group):
    """Though a sentinel, that has not noticed yet, may send there."""
    *servers, _ = group
    roles = {}
    for server in servers:
        with redis.Redis(port=server.port) as client:
            roles[client.role()[0]] = server
    parameters = RedisParameters(None, None, 0, None, 10.0, master=True)
    with pytest.raises(BrokerUnavailable, match="not the master"):
        await open_link(HostnameEndpoint(reactor, "127.0.0.1", roles[b"slave"].port), parameters, reactor)


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_the_new_master_is_followed(group, worker, connect):
    """A sentinel that is away is passed over. The master killed, calls in flight get their results from
    the new one, and later calls, control commands and questions by id work.
    """
    master, replica, sentinel = group
    seen_by_workers = [f"sentinel://127.0.0.1:{sentinel.port}/{db}" for db in (0, 1)]
    # One that is away costs workers tens of seconds.
    urls = [f"sentinel://127.0.0.1:{free_port()}/{db};{seen_by_workers[db]}" for db in (0, 1)]
    first = await deferToThread(worker, *seen_by_workers, config=SETTINGS)
    tx_app = connect(*urls, options={"publish_timeout": 40}, **SETTINGS)
    stream = tx_app.events({})
    await stream.ready
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    assert await tx_app.control.ping(limit=1, timeout=10) == [{first.name: {"ok": "pong"}}]
    waiting = [tx_app.send_task("taskapp.add", args=(n, 1), queue="later") for n in range(5)]
    for call in waiting:
        await call.published
    with redis.Redis(port=sentinel.port) as asked, redis.Redis(port=master.port) as written:
        await until(lambda: asked.sentinel_master("ours")["num-slaves"] == 1)
        assert await deferToThread(written.wait, 1, 10000) == 1
    await deferToThread(first.kill)
    await deferToThread(master.kill)
    late = tx_app.send_task("taskapp.add", args=(10, 10), queue="later")
    await late.published
    with redis.Redis(port=replica.port) as client:
        assert client.role()[0] == b"master"
    second = await deferToThread(worker, *seen_by_workers, config=SETTINGS, queues="later,celery")
    assert [await call for call in waiting] == [1, 2, 3, 4, 5]
    assert await late == 20
    assert await tx_app.result(late.task_id).state == "SUCCESS"
    await stream.ready
    assert await tx_app.control.ping(limit=1, timeout=10) == [{second.name: {"ok": "pong"}}]
