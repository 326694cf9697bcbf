"""Redis goes away, refuses, or closes connections, while calls are made. It is broker and result backend."""

from __future__ import annotations

import pytest
import pytest_twisted
import redis
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread

from tests.real.faults.tasks import APP
from tests.real.faults.trial import Size, fault
from tests.support.redis import RedisServer
from tests.support.taskapp import create_app

# Celery's Redis backend, as workers use it.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

#: Our user on Redis; workers are the default one.
OURS, SECRET = "ours", "secret"

#: What a worker was just taking when Redis was killed, kombu gives to a worker again after this time.
SETTINGS = {"broker_transport_options": {"visibility_timeout": 10}}


@pytest.fixture
def start(tmp_path, worker, new_client):
    """``await start(**options)``: a Redis with a user of our own, a worker, and a client of both.

    The worker is the attribute ``worker`` of the Redis.
    """
    started = []

    async def run(client=None, **options):
        server = RedisServer(tmp_path, **options)
        started.append(server)
        await deferToThread(server.start)
        with administrator(server) as admin:
            admin.execute_command("ACL", "SETUSER", OURS, "on", f">{SECRET}", "~*", "&*", "+@all")
        server.worker = await deferToThread(
            worker,
            server.url(0),
            server.url(1),
            app=APP,
            config=SETTINGS,
            # Celery's solo pool takes a task for active, for good, whose result it could not store.
            pool="prefork",
            concurrency=2,
        )
        urls = [server.url(db).replace("//", f"//{OURS}:{SECRET}@") for db in (0, 1)]
        return server, new_client(create_app(*urls, **SETTINGS), lost_after=5, **(client or {}))

    yield run
    for server in started:
        server.stop()


def administrator(server):
    return redis.Redis(port=server.port)


async def kill_and_restart(trial, server, tx_app):
    # kombu looks for messages whose time is up after 100 seconds.
    async with trial.calls(tx_app, seconds=0.01, patience=180) as load:
        await load.lose_broker(trial.size.calls, server.kill, tx_app)
        await deferToThread(server.start)
        # The users of this one are in no file.
        with administrator(server) as admin:
            admin.execute_command("ACL", "SETUSER", OURS, "on", f">{SECRET}", "~*", "&*", "+@all")


@fault("Redis is killed and restarted, with `appendonly`", short=None, long=Size(calls=750))
@pytest_twisted.ensureDeferred
async def test_killed_with_its_data(trial, start):
    """All that was stored is there again; what a worker was just taking, or storing, is told as lost."""
    server, tx_app = await start(appendonly="yes", appendfsync="always")
    await kill_and_restart(trial, server, tx_app)
    # The last one is of the task, whose worker could not store the result.
    trial.ended_with({"ResultLost", "ConnectionError"})
    assert trial.counts.results >= trial.counts.calls - 10


@fault("Redis is killed and restarted, without its data", short=None, long=Size(calls=750))
@pytest_twisted.ensureDeferred
async def test_killed_without_its_data(trial, start):
    """Confirmed calls whose messages are gone are told so."""
    server, tx_app = await start()
    await kill_and_restart(trial, server, tx_app)
    trial.ended_with({"ResultLost"})
    assert trial.counts.errors["ResultLost"] > 0


@fault(
    "Redis closes our connections each half second",
    short=Size(seconds=2, rate=50),
    long=Size(seconds=15, rate=50),
)
@pytest_twisted.ensureDeferred
async def test_connections_closed(trial, start):
    """Calls whose confirmation was lost say so; all others end with their results."""
    server, tx_app = await start()
    closed = 0
    async with trial.calls(tx_app) as load:
        load.start(trial.size.rate)
        with administrator(server) as admin:
            for _ in range(int(2 * trial.size.seconds)):
                await task.deferLater(reactor, 0.5)
                closed += admin.execute_command("CLIENT", "KILL", "USER", OURS)
    assert closed >= trial.size.seconds
    trial.ended_with({"PublishUnconfirmed"})
    assert trial.counts.results > 0


@fault(
    "Redis does nothing for a second, and again",
    short=Size(seconds=2, rate=50),
    long=Size(seconds=15, rate=50),
)
@pytest_twisted.ensureDeferred
async def test_sleeping(trial, start):
    """Calls wait, and all get their results."""
    server, tx_app = await start(enable_debug_command="local")
    async with trial.calls(tx_app) as load:
        load.start(trial.size.rate)
        with administrator(server) as admin:
            for _ in range(int(trial.size.seconds // 2)):
                await deferToThread(admin.execute_command, "DEBUG", "SLEEP", "1")
                await task.deferLater(reactor, 1)
    assert trial.counts.results == trial.counts.calls


@fault("Redis has no memory left", short=None, long=Size(seconds=10, rate=50))
@pytest_twisted.ensureDeferred
async def test_out_of_memory(trial, start):
    """Calls that Redis refuses fail with its words; those whose results it refuses are told as lost."""
    server, tx_app = await start()
    async with trial.calls(tx_app, seconds=0.01) as load:
        await load.for_seconds(trial.size.rate, 0.5)
        with administrator(server) as admin:
            admin.config_set("maxmemory", 1)
            await load.for_seconds(trial.size.rate, trial.size.seconds)
            admin.config_set("maxmemory", 0)
        # Celery's worker may hang, or have lost the messages that it could not store away.
        await deferToThread(server.worker.kill)
        await deferToThread(server.worker.start)
        await load.for_seconds(trial.size.rate, 0.5)
    trial.ended_with({"PublishRejected", "ResultLost"})
    assert trial.counts.errors["PublishRejected"] > 0


@fault("Redis gets another password", short=Size(seconds=2, rate=50), long=Size(seconds=10, rate=50))
@pytest_twisted.ensureDeferred
async def test_another_password(trial, start):
    """Calls are refused while the password is wrong, and those before and after get their results."""
    server, tx_app = await start()
    async with trial.calls(tx_app) as load:
        await load.for_seconds(trial.size.rate, 0.5)
        with administrator(server) as admin:
            for secret, seconds in (("another", trial.size.seconds), (SECRET, 0.5)):
                admin.execute_command("ACL", "SETUSER", OURS, "resetpass", f">{secret}")
                admin.execute_command("CLIENT", "KILL", "USER", OURS)
                await load.for_seconds(trial.size.rate, seconds)
    trial.ended_with({"BrokerAccessRefused", "ResultBackendUnavailable", "PublishUnconfirmed"})
    assert trial.counts.errors


@fault("Redis is a replica for a while (READONLY)", short=None, long=Size(seconds=10, rate=50))
@pytest_twisted.ensureDeferred
async def test_readonly(trial, start):
    """A master that becomes a replica refuses to write; calls wait for it to be the master again."""
    server, tx_app = await start()
    async with trial.calls(tx_app, seconds=0.01) as load:
        await load.for_seconds(trial.size.rate, 0.5)
        with administrator(server) as admin:
            # Of nobody: it keeps its data.
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            await load.for_seconds(trial.size.rate, trial.size.seconds)
            admin.execute_command("REPLICAOF", "NO", "ONE")
        await deferToThread(server.worker.kill)
        await deferToThread(server.worker.start)
        await load.for_seconds(trial.size.rate, 0.5)
    trial.ended_with({"BrokerUnavailable", "ResultLost"})


@fault(
    "Redis is killed and restarted, with `appendonly`, in threads (kombu)",
    short=None,
    long=Size(calls=350),
)
@pytest_twisted.ensureDeferred
async def test_threads(trial, start):
    """As with the native transport."""
    server, tx_app = await start(client={"transport": "threads"}, appendonly="yes", appendfsync="always")
    await kill_and_restart(trial, server, tx_app)
    trial.ended_with({"ResultLost", "ConnectionError"})
