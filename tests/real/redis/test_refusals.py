"""What Redis refuses for a while: calls wait for it, as they wait for a server that is not there."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_twisted
import redis
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.waiting import all_outcomes, until

CALLS = 20


def published(tx_app, **options):
    """Send a task whose result is ignored: the call ends once Redis has it."""
    return tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True, **options)


class Administrator:
    """Has a Redis refuse what it is asked; the methods block.

    :param directory: where it writes its data to
    """

    def __init__(self, server, directory: Path):
        self.port = server.port
        self.redis = redis.Redis(port=server.port)
        self.redis.ping()
        self.directory = directory

    @contextmanager
    def maxclients(self):
        self.redis.config_set("maxclients", 1)
        yield "max number of clients"
        self.redis.config_set("maxclients", 1000)

    @contextmanager
    def misconf(self):
        # A file cannot take the place of a directory.
        target = self.directory / "dump.rdb"
        target.mkdir()
        self._save("err")
        yield "MISCONF"
        target.rmdir()
        self._save("ok")

    def _save(self, outcome):
        self.redis.config_set("save", "3600 1000000")
        self.redis.bgsave()
        while True:
            persistence = self.redis.info("persistence")
            if not persistence["rdb_bgsave_in_progress"]:
                assert persistence["rdb_last_bgsave_status"] == outcome
                return

    @contextmanager
    def busy(self):
        self.redis.config_set("busy-reply-threshold", 1)
        running = threading.Thread(target=self._in_another("EVAL", "while true do end", 0))
        running.start()
        self._wait_for(redis.exceptions.ResponseError)
        yield "BUSY"
        self.redis.script_kill()
        running.join()

    @contextmanager
    def noreplicas(self):
        self.redis.config_set("min-replicas-to-write", 1)
        yield "NOREPLICAS"
        self.redis.config_set("min-replicas-to-write", 0)

    @contextmanager
    def readonly(self):
        self.redis.replicaof("127.0.0.1", 1)
        self.redis.config_set("replica-serve-stale-data", "yes")
        yield "READONLY"
        self.redis.replicaof("NO", "ONE")

    @contextmanager
    def masterdown(self):
        self.redis.config_set("replica-serve-stale-data", "no")
        self.redis.replicaof("127.0.0.1", 1)
        yield "MASTERDOWN"
        self.redis.replicaof("NO", "ONE")

    def _in_another(self, *command):
        def run():
            other = redis.Redis(port=self.port)
            try:
                other.execute_command(*command)
            except redis.exceptions.ResponseError:
                pass  # the script was killed
            other.close()

        return run

    def _wait_for(self, error):
        while True:
            try:
                self.redis.ping()
            except error:
                return


@pytest.fixture
def administrator(redis_with, tmp_path):
    """``administrator()``: one of a new Redis."""
    made = []

    def make():
        server = redis_with()
        made.append(Administrator(server, tmp_path))
        return server, made[-1]

    yield make
    for one in made:
        # It would not stop without having saved its data.
        one.redis.config_set("save", "")
        one.redis.close()


ON_CONNECTING = ["maxclients", "misconf", "busy", "masterdown"]
WHEN_CONNECTED = ["misconf", "busy", "masterdown", "noreplicas", "readonly"]


@pytest.mark.parametrize("trouble", sorted({*ON_CONNECTING, *WHEN_CONNECTED}))
@pytest_twisted.ensureDeferred
async def test_calls_wait_until_it_has_passed(administrator, connect, trouble):
    """From the first connection on: each message is taken once, and broadcasts are answered."""
    server, admin = await deferToThread(administrator)
    tx_app = connect(server.url(0), server.url(1), options={"publish_timeout": 30})
    hindrance = getattr(admin, trouble)()
    words = await deferToThread(hindrance.__enter__)
    calls = [published(tx_app) for _ in range(CALLS)]
    ping = tx_app.control.ping(timeout=0.5)
    publisher = tx_app._binding.bound.publisher
    await until(lambda: words in f"{publisher._reason} {publisher._blocked}")
    assert not [call for call in calls if call.called]
    await deferToThread(hindrance.__exit__, None, None, None)
    assert await all_outcomes(calls) == [None] * CALLS
    assert await ping == []
    assert admin.redis.llen("celery") == CALLS


@pytest.mark.parametrize("trouble", WHEN_CONNECTED)
@pytest_twisted.ensureDeferred
async def test_calls_wait_on_a_connection_that_was_good(administrator, connect, trouble):
    """Each message is taken once, in order, when it has passed; ``connected`` is false meanwhile."""
    server, admin = await deferToThread(administrator)
    tx_app = connect(server.url(0), server.url(1), options={"publish_timeout": 30})
    assert await published(tx_app) is None
    hindrance = getattr(admin, trouble)()
    words = await deferToThread(hindrance.__enter__)
    calls = [published(tx_app, task_id=f"task{n}") for n in range(CALLS)]
    publisher = tx_app._binding.bound.publisher
    await until(lambda: words in f"{publisher._reason} {publisher._blocked}")
    assert not publisher.connected
    assert not [call for call in calls if call.called]
    calls += [published(tx_app, task_id=f"task{n}") for n in range(CALLS, 2 * CALLS)]
    await deferToThread(hindrance.__exit__, None, None, None)
    assert await all_outcomes(calls) == [None] * 2 * CALLS
    messages = [body.decode() for body in admin.redis.lrange("celery", 0, -2)][::-1]
    assert len(messages) == 2 * CALLS
    assert [f'"task{n}"' in body for n, body in enumerate(messages)] == [True] * 2 * CALLS
    assert publisher.connected


@pytest.mark.parametrize("trouble", ["maxclients", "misconf", "readonly"])
@pytest_twisted.ensureDeferred
async def test_a_trouble_that_lasts(administrator, connect, trouble):
    """Calls fail when their time is up, with Redis' words, as certainly not sent."""
    server, admin = await deferToThread(administrator)
    tx_app = connect(server.url(0), server.url(1), options={"publish_timeout": 0.5})
    hindrance = getattr(admin, trouble)()
    words = await deferToThread(hindrance.__enter__)
    calls = [published(tx_app) for _ in range(CALLS)]
    for error in await all_outcomes(calls):
        assert type(error) is twistedcelery.BrokerUnavailable
        assert words in str(error)
    await deferToThread(hindrance.__exit__, None, None, None)
    assert admin.redis.llen("celery") == 0
    assert await published(tx_app, confirm_timeout=30) is None


@pytest.mark.parametrize("trouble", ["busy", "misconf", "readonly"])
@pytest_twisted.ensureDeferred
async def test_questions_about_results_wait_too(administrator, connect, trouble):
    """What Redis refuses to do to a stored result is done when it has passed."""
    server, admin = await deferToThread(administrator)
    tx_app = connect(server.url(0), server.url(1), options={"publish_timeout": 30})
    assert await tx_app.result("unheard-of").state == "PENDING"
    hindrance = getattr(admin, trouble)()
    words = await deferToThread(hindrance.__enter__)
    forgotten = tx_app.result("unheard-of").forget()
    requests = tx_app._binding.bound.store._requests
    await until(lambda: words in str(requests._reason))
    assert not forgotten.called
    await deferToThread(hindrance.__exit__, None, None, None)
    assert await forgotten is None
