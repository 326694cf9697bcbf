"""Bad input, and what becomes of it: for each an error that says so, and nothing else breaks.

=====================================  ==============================================================
what is wrong                          where it is tried
=====================================  ==============================================================
unknown, misspelt and refused options  ``amqp/test_calls.py``: ``test_an_unknown_option``, which is an
                                       ``EncodeError``, and ``test_options_that_celery_refuses``
an ETA in the past, or none at all     here
an expired task                        here
a revoked task                         here; ``amqp/test_calls.py``: ``test_revoked_by_somebody_else``
an unregistered task's signature       here; by name ``amqp/test_calls.py``: ``test_an_unknown_task_fails``
an evicted result                      here
the broker is up, the backend down     here; both down: ``test_unreachable.py``
the backend is up, the broker down     here; lost later: ``redis/test_faults.py``, ``amqp/test_faults.py``
a pickle that is not accepted          here; more of its kind: ``amqp/test_calls.py``,
                                       ``test_a_reply_that_is_none``, and ``redis/test_store.py``
a decompression bomb                   here; every compression: ``tests/unit/test_reply.py``
=====================================  ==============================================================

``docs/library.md`` has the table of errors.
"""

from __future__ import annotations

import datetime
import pickle
import zlib

import amqp
import celery.exceptions
import kombu
import pytest
import pytest_twisted
from celery import signature

import twistedcelery
from tests.support.ports import free_port
from tests.support.redis import RedisServer
from tests.support.taskapp import create_app
from tests.support.worker import Worker
from twistedcelery import TwistedCelery


@pytest.fixture(scope="module")
def broker_url(rabbitmq):
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url()
    server.stop()


@pytest.fixture(scope="module", params=["rpc", "redis"])
def backend(request, broker_url, redis_url, tmp_path_factory):
    """A result backend, and a worker that uses it."""
    url = "rpc://" if request.param == "rpc" else redis_url
    started = Worker(tmp_path_factory.mktemp("worker"), broker=broker_url, backend=url)
    started.start()
    yield url
    started.kill()


@pytest.fixture
def client(broker_url):
    """``client(backend, broker)``: a client, disconnected afterwards."""
    made = []

    def make(backend, broker=broker_url, **options):
        made.append(TwistedCelery(create_app(broker, backend), **options))
        return made[-1]

    yield make
    for tx_app in made:
        pytest_twisted.blockon(tx_app.disconnect())


def ago(**how_long):
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(**how_long)


@pytest_twisted.ensureDeferred
async def test_an_eta_in_the_past(client, backend):
    """The task runs at once, as with Celery's own client; what is no time at all is ``InvalidCall``."""
    tx_app = client(backend)
    assert await tx_app.send_task("taskapp.add", args=(1, 2), eta=ago(days=1)) == 3
    assert await tx_app.send_task("taskapp.add", args=(1, 2), countdown=-60) == 3
    assert await tx_app.send_task("taskapp.add", args=(1, 2), eta=ago(days=1).isoformat()) == 3
    for wrong in ({"eta": "yesterday"}, {"eta": 5}, {"countdown": "soon"}, {"countdown": float("inf")}):
        with pytest.raises(twistedcelery.InvalidCall):
            await tx_app.send_task("taskapp.add", args=(1, 2), **wrong)


@pytest_twisted.ensureDeferred
async def test_an_expired_task(client, backend):
    """A worker that gets to it too late revokes it: Celery's ``TaskRevokedError``, with the reason."""
    tx_app = client(backend)
    with pytest.raises(celery.exceptions.TaskRevokedError, match="expired"):
        await tx_app.send_task("taskapp.add", args=(1, 2), countdown=1, expires=0.5)
    with pytest.raises(twistedcelery.InvalidCall):
        await tx_app.send_task("taskapp.add", args=(1, 2), expires="tomorrow or so")


@pytest_twisted.ensureDeferred
async def test_a_revoked_task(client, backend):
    """A task that was revoked, by whomever, fails with ``TaskRevokedError``."""
    tx_app, somebody = client(backend), client(backend)
    call = tx_app.send_task("taskapp.add", args=(1, 2), countdown=1)
    await call.published
    await somebody.revoke(call.task_id)
    with pytest.raises(celery.exceptions.TaskRevokedError):
        await call


@pytest_twisted.ensureDeferred
async def test_a_signature_of_a_task_that_nobody_knows(client, backend):
    """The worker's ``NotRegistered`` comes back, alone and in a chain; what is no signature is refused."""
    tx_app = client(backend)
    unknown = signature("nobody.knows", args=(1,), app=tx_app.app)
    add = tx_app.app.tasks["taskapp.add"]
    for canvas in (unknown, unknown | add.s(1), {**unknown}):
        with pytest.raises(celery.exceptions.NotRegistered, match=r"nobody\.knows"):
            await tx_app.apply_async(canvas)
    for wrong in ("taskapp.add", 5, None, {"args": ()}):
        with pytest.raises(twistedcelery.InvalidCall, match="no signature"):
            await tx_app.apply_async(wrong)


@pytest_twisted.ensureDeferred
async def test_an_evicted_result(client, backend):
    """Nobody can tell it from one that is still to come: ``PENDING``, and Celery's ``TimeoutError``."""
    tx_app = client(backend)
    call = tx_app.send_task("taskapp.add", args=(1, 2))
    assert await call == 3
    somebody = client(backend)
    result = somebody.result(call.task_id)
    await tx_app.result(call.task_id).forget()
    assert await result.state == "PENDING"
    assert await result.exists() is False
    with pytest.raises(celery.exceptions.TimeoutError):
        await result.get(timeout=0.2)


@pytest_twisted.ensureDeferred
async def test_the_backend_is_down_while_the_broker_is_up(client, broker_url):
    """Nothing is sent whose result could not be had; what needs no result goes out."""
    tx_app = client(f"redis://127.0.0.1:{free_port()}/0", publish_timeout=0.5)
    call = tx_app.send_task("taskapp.add", args=(1, 2), queue="unsent")
    with pytest.raises(twistedcelery.ResultBackendUnavailable, match="redis://127"):
        await call
    with kombu.Connection(broker_url) as connection, pytest.raises(amqp.NotFound):
        connection.default_channel.queue_declare("unsent", passive=True)
    await tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True)


@pytest_twisted.ensureDeferred
async def test_the_broker_is_down_while_the_backend_is_up(client, redis_url):
    """``BrokerUnavailable`` names the broker; results that are stored can be read."""
    tx_app = client(redis_url, f"amqp://127.0.0.1:{free_port()}//", publish_timeout=0.5)
    with pytest.raises(twistedcelery.BrokerUnavailable, match="amqp://guest@127"):
        await tx_app.send_task("taskapp.add", args=(1, 2))
    assert await tx_app.result("anything").state == "PENDING"


async def answered(tx_app, broker_url, body, **properties):
    """A call that gets a reply of our own making."""
    queue = (await tx_app.send_task("taskapp.request_info"))["reply_to"]
    call = tx_app.send_task("taskapp.add", args=(1, 2), countdown=600)
    await call.published
    with kombu.Connection(broker_url) as connection:
        message = amqp.Message(body, correlation_id=call.task_id, content_encoding="utf-8", **properties)
        connection.default_channel.basic_publish(message, exchange="", routing_key=queue)
    return call


class Harmful:
    """Somebody would notice if this were unpickled."""

    def __reduce__(self):
        return pytest.exit, ("a pickle was opened",)


@pytest.mark.parametrize("backend", ["rpc"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_a_pickle_that_is_not_accepted(client, backend, broker_url):
    """It is not opened: ``ReplyNotAccepted`` says what ``result_accept_content`` allows."""
    tx_app = client(backend)
    harmful = pickle.dumps({"status": "SUCCESS", "result": Harmful()})
    call = await answered(tx_app, broker_url, harmful, content_type="application/x-python-serialize")
    with pytest.raises(twistedcelery.ReplyNotAccepted, match="application/json"):
        await call
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest.mark.parametrize("backend", ["rpc"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_a_decompression_bomb(client, backend, broker_url):
    """It is opened as far as the limit, and fails its own call with ``ReplyTooLarge``."""
    tx_app = client(backend, max_reply_bytes=1_000_000)
    bomb = zlib.compress(b" " * 50_000_000)
    headers = {"compression": "application/x-gzip"}
    call = await answered(
        tx_app, broker_url, bomb, content_type="application/json", application_headers=headers
    )
    with pytest.raises(twistedcelery.ReplyTooLarge, match="1000000 bytes"):
        await call
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest_twisted.ensureDeferred
async def test_a_result_past_the_limit(client, backend):
    """It is not decoded: its own call fails with ``ReplyTooLarge``, and so does a question by id."""
    tx_app = client(backend, max_reply_bytes=100_000)
    call = tx_app.send_task("taskapp.items", args=(100_000,))
    with pytest.raises(twistedcelery.ReplyTooLarge, match="max_reply_bytes allows 100000"):
        await call
    if backend != "rpc://":
        with pytest.raises(twistedcelery.ReplyTooLarge):
            await tx_app.result(call.task_id).get()
    assert len(await tx_app.send_task("taskapp.items", args=(10_000,))) == 10_000
