"""Calls over a real RabbitMQ and real workers."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

import amqp
import celery.exceptions
import kombu
import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.lateness import Lateness
from tests.support.taskapp import create_app
from tests.support.waiting import until
from tests.support.worker import Worker
from twistedcelery import TwistedCelery


@pytest.fixture(scope="module")
def shared_broker_url(rabbitmq):
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture(scope="module")
def shared_worker(shared_broker_url, tmp_path_factory):
    started = Worker(tmp_path_factory.mktemp("worker"), broker=shared_broker_url, backend="rpc://")
    started.start()
    yield started
    started.kill()


@pytest.fixture
def broker_url(shared_broker_url):
    return shared_broker_url


@pytest.fixture
def worker(worker, request):
    """One plain worker serves all tests here, since starting it costs more than most of them."""

    def start(**options):
        return worker(**options) if options else request.getfixturevalue("shared_worker")

    return start


@pytest.fixture
def client(broker_url):
    """``client(**settings)``: a client on the test's virtual host, disconnected afterwards."""
    made = []

    def make(url=broker_url, *, options=None, **settings):
        tx_app = TwistedCelery(create_app(url, "rpc://", **settings), **(options or {}))
        made.append(tx_app)
        return tx_app

    yield make
    for tx_app in made:
        pytest_twisted.blockon(tx_app.disconnect())


def connect(url):
    """A blocking py-amqp connection, to look at the broker from outside."""
    connection = kombu.Connection(url)
    connection.connect()
    return connection


@pytest_twisted.ensureDeferred
async def test_a_task_returns_its_value(client, worker):
    """A call fires with what the task returns, after ``published`` has fired."""
    worker()
    call = client().send_task("taskapp.add", args=(2, 3))
    assert isinstance(call, twistedcelery.TaskDeferred)
    uuid.UUID(call.task_id)
    assert await call.published is None
    assert await call == 5
    assert call.meta["status"] == "SUCCESS"
    assert await call.published is None


@pytest_twisted.ensureDeferred
async def test_a_task_gets_its_keyword_arguments_and_id(client, worker):
    """``kwargs`` reach the task, and a given ``task_id`` is the task's."""
    worker()
    tx_app = client()
    assert await tx_app.send_task("taskapp.echo", kwargs={"x": 1}) == {"args": [], "kwargs": {"x": 1}}
    call = tx_app.send_task("taskapp.request_info", task_id="an-id")
    assert call.task_id == "an-id"
    assert (await call)["id"] == "an-id"


@pytest_twisted.ensureDeferred
async def test_options_may_be_positional(client, worker):
    """Options in the positions of Celery's own signature mean the same."""
    worker()
    call = client().send_task("taskapp.request_info", (), {}, None, None, "by-position")
    assert (await call)["id"] == "by-position"


@pytest_twisted.ensureDeferred
async def test_a_failing_task_fails_as_in_celery(client, worker):
    """The Deferred fails with the task's exception, rebuilt by Celery, and carries the traceback."""
    worker()
    call = client().send_task("taskapp.fail", args=("boo",))
    with pytest.raises(ValueError, match=r"^boo$"):
        await call
    assert "raise ValueError(message)" in call.traceback


@pytest_twisted.ensureDeferred
async def test_an_exception_that_cannot_be_rebuilt(client, worker):
    """It fails with what ``AsyncResult.get()`` makes of it."""
    worker()
    tx_app = client()
    with pytest.raises(Exception, match="Unrebuildable") as ours:
        await tx_app.send_task("taskapp.fail_unrebuildable")
    blocking = create_app(tx_app.app.conf.broker_url, "rpc://")
    with pytest.raises(Exception, match="Unrebuildable") as celerys:
        blocking.send_task("taskapp.fail_unrebuildable").get(timeout=20)
    assert (type(ours.value).__name__, str(ours.value)) == (type(celerys.value).__name__, str(celerys.value))


@pytest_twisted.ensureDeferred
async def test_an_unknown_task_fails(client, worker):
    """What no worker knows fails with Celery's ``NotRegistered``."""
    worker()
    with pytest.raises(celery.exceptions.NotRegistered, match=r"nobody\.knows"):
        await client().send_task("nobody.knows")


@pytest_twisted.ensureDeferred
async def test_progress_is_reported_in_order(client, worker):
    """``on_update`` sees each state that is not final, in order, and none after the result."""
    worker()
    seen = []
    call = client().send_task("taskapp.countdown", args=(3, 0.01))
    assert call.on_update(lambda state, meta: seen.append((state, meta))) is call
    assert await call == 3
    assert seen == [("PROGRESS", {"current": current, "total": 3}) for current in (1, 2, 3)]


@pytest_twisted.ensureDeferred
async def test_a_failing_update_callback_is_logged(client, worker, logged_errors):
    """A mistake in the caller's callback is logged, and the call goes on."""
    worker()
    seen = []
    call = client().send_task("taskapp.countdown", args=(2, 0.01))
    call.on_update(lambda state, meta: 1 / 0).on_update(lambda state, meta: seen.append(state))
    assert await call == 2
    assert seen == ["PROGRESS", "PROGRESS"]
    assert len(logged_errors.flush(ZeroDivisionError)) == 2


@pytest_twisted.ensureDeferred
async def test_a_retry_is_an_update_and_not_the_end(client, worker):
    """RETRY is reported with its exception, and the call ends with the later attempt."""
    worker()
    seen = []
    call = client().send_task("taskapp.retry_once")
    call.on_update(lambda state, meta: seen.append((state, meta)))
    assert await call == 1
    ((state, error),) = seen
    assert state == "RETRY"
    assert "first attempt" in str(error)


@pytest_twisted.ensureDeferred
async def test_cancel_revokes_the_task(client, worker, tmp_path):
    """A cancelled call ends at once, and its task, which had not started, never runs."""
    worker()
    tx_app = client()
    marker = tmp_path / "ran"
    call = tx_app.send_task("taskapp.touch", args=(str(marker),), countdown=1)
    await call.published
    call.cancel()
    with pytest.raises(twistedcelery.CallCancelled) as cancelled:
        await call
    assert isinstance(cancelled.value, CancelledError)
    assert tx_app.in_flight == 0
    assert await tx_app.send_task("taskapp.add", args=(1, 1), countdown=2) == 2
    assert not marker.exists()


@pytest_twisted.ensureDeferred
async def test_a_timeout_of_twisteds_own_revokes_too(client, worker, tmp_path):
    """``addTimeout`` works as on any Deferred, and the worker learns that the task is revoked."""
    worker()
    tx_app = client()
    call = tx_app.send_task("taskapp.touch", args=(str(tmp_path / "ran"),), countdown=1)
    await call.published
    with pytest.raises(defer.TimeoutError):
        await call.addTimeout(0.1, reactor)
    inspected = tx_app.control.inspect(limit=1, timeout=10)

    async def is_revoked():
        (revoked,) = (await inspected.revoked()).values()
        return call.task_id in revoked

    await until(is_revoked, what="the worker knows")


@pytest_twisted.ensureDeferred
async def test_cancel_of_many(client, worker, tmp_path):
    """A hundred calls that are cancelled together are all revoked."""
    worker()
    tx_app = client()
    marker = tmp_path / "ran"
    calls = [tx_app.send_task("taskapp.touch", args=(str(marker),), countdown=2) for _ in range(100)]
    await gatherResults([call.published for call in calls])
    for call in calls:
        call.addErrback(lambda failure: failure.trap(twistedcelery.CallCancelled))
        call.cancel()
    assert await tx_app.send_task("taskapp.add", args=(1, 1), countdown=3) == 2
    assert not marker.exists()


@pytest_twisted.ensureDeferred
async def test_revoked_by_somebody_else(client, worker):
    """A task that others revoke fails with Celery's ``TaskRevokedError``."""
    worker()
    tx_app = client()
    call = tx_app.send_task("taskapp.add", args=(1, 1), countdown=1)
    await call.published
    await tx_app.revoke(call.task_id)
    with pytest.raises(celery.exceptions.TaskRevokedError):
        await call


@pytest_twisted.ensureDeferred
async def test_ignore_result_fires_once_published(client, worker):
    """As ``AsyncResult.get()``, a call that ignores its result fires with ``None``."""
    worker()
    tx_app = client()
    assert await tx_app.send_task("taskapp.add", args=(1, 2), ignore_result=True) is None
    # Registered with ignore_result=True, which Celery looks at in a finalised application.
    tx_app.app.finalize()
    assert await tx_app.send_task("taskapp.ignored", args=(1,)) is None
    assert tx_app.in_flight == 0


@pytest_twisted.ensureDeferred
async def test_a_queue_that_does_not_exist_yet_is_made(client, worker):
    """As with Celery's own client, ``queue`` may name a new queue."""
    worker(queues="fresh")
    assert await client().send_task("taskapp.add", args=(1, 2), queue="fresh") == 3


@pytest_twisted.ensureDeferred
async def test_replies_over_a_quorum_queue(client, worker, broker_url):
    """Where the application's default is a quorum queue, replies come over one, too."""
    worker()
    tx_app = client(task_default_queue_type="quorum", result_expires=3600)
    request = await tx_app.send_task("taskapp.request_info", queue=kombu.Queue("celery"))
    arguments = {"x-expires": 3_600_000, "x-queue-type": "quorum"}
    with connect(broker_url) as broker:
        # Declared otherwise, it would be refused.
        broker.default_channel.queue_declare(
            request["reply_to"], durable=True, auto_delete=False, arguments=arguments
        )


@pytest_twisted.ensureDeferred
async def test_task_protocol_1(client, worker):
    """The old message protocol works the whole way."""
    worker()
    tx_app = client(task_protocol=1)
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
    with pytest.raises(ValueError, match="boo"):
        await tx_app.send_task("taskapp.fail", args=("boo",))


@pytest_twisted.ensureDeferred
async def test_300_calls_in_flight(client, worker):
    """Each gets its own result."""
    worker()
    tx_app = client()
    calls = [tx_app.send_task("taskapp.add", args=(n, n)) for n in range(300)]
    assert tx_app.in_flight == 300
    assert await gatherResults(calls) == [2 * n for n in range(300)]
    assert tx_app.in_flight == 0


@pytest.mark.timing
@pytest_twisted.ensureDeferred
async def test_2000_calls_in_flight_do_not_hold_up_the_reactor(client, worker):
    """All results are right, and a 5 ms loop in the same reactor is never more than 200 ms late."""
    # With a prefetch of four, Celery's solo pool now and then sleeps for 2 s over acknowledgements.
    worker(config={"worker_prefetch_multiplier": 0})
    tx_app = client()
    assert await tx_app.send_task("taskapp.add", args=(0, 0)) == 0
    with Lateness() as lateness:
        calls = [tx_app.send_task("taskapp.add", args=(n, n)) for n in range(2000)]
        assert tx_app.in_flight == 2000
        assert await gatherResults(calls) == [2 * n for n in range(2000)]
    assert lateness.worst <= 0.200


@pytest_twisted.ensureDeferred
async def test_arguments_changed_after_the_call_are_not_sent(client, worker):
    """A burst is encoded over several reactor turns, from the arguments as they were."""
    worker(config={"worker_prefetch_multiplier": 0})
    tx_app = client()
    shared = [0]
    calls = []
    for n in range(500):
        shared[0] = n
        calls.append(tx_app.send_task("taskapp.echo", args=(shared,)))
    results = await gatherResults(calls)
    assert [result["args"] for result in results] == [[[n]] for n in range(500)]


# Bad input


@pytest_twisted.ensureDeferred
async def test_arguments_that_cannot_be_serialised(client, worker):
    """They fail their own call, with nothing sent."""
    worker()
    tx_app = client()
    call = tx_app.send_task("taskapp.echo", args=(object(),))
    with pytest.raises(twistedcelery.EncodeError, match="not JSON serializable"):
        await call
    with pytest.raises(kombu.exceptions.EncodeError):
        await call.published
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"args": 5}, "task args must be a list or tuple"),
        ({"kwargs": [1]}, "task keyword arguments must be a mapping"),
        ({"countdown": "soon"}, "not supported between"),
        ({"connection": object()}, "blocking client"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_options_that_celery_refuses(client, options, complaint):
    """They fail the call with ``InvalidCall``, which is a TypeError as well."""
    with pytest.raises(twistedcelery.InvalidCall, match=complaint) as refused:
        await client().send_task("taskapp.add", **options)
    assert isinstance(refused.value, TypeError)


@pytest_twisted.ensureDeferred
async def test_an_unknown_option(client):
    """A misspelt option fails its call and names the option."""
    with pytest.raises(twistedcelery.InvalidCall, match="coutdown"):
        await client().send_task("taskapp.add", args=(1, 2), coutdown=3)


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"x": float("nan")}},
        {"headers": {"x": [{"deep": -float("inf")}]}},
        {"headers": {"x": object()}},
        {"headers": {"CC": "not a list"}},
        {"expires": 50 * 86_400},
        {"user_id": "somebody else"},
        {"priority": 300},
        {"message_id": "x" * 300},
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_the_broker_would_close_the_channel_for(client, worker, options):
    """It fails its call alone: sent, it would cost everybody the channel or the connection."""
    worker()
    tx_app = client()
    waiting = [tx_app.send_task("taskapp.add", args=(n, 1)) for n in range(20)]
    with pytest.raises(twistedcelery.EncodeError):
        await tx_app.send_task("taskapp.add", args=(1, 2), **options)
    assert await gatherResults(waiting) == [n + 1 for n in range(20)]


@pytest_twisted.ensureDeferred
async def test_an_unroutable_task_fails(client, broker_url, worker):
    """A task that reaches no queue fails with ``Unroutable``; the next call is undisturbed."""
    worker()
    tx_app = client()
    call = tx_app.send_task("taskapp.add", args=(1, 2), exchange="amq.topic", routing_key="nowhere")
    with pytest.raises(twistedcelery.Unroutable, match="NO_ROUTE"):
        await call.published
    with pytest.raises(twistedcelery.Unroutable):
        await call
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest_twisted.ensureDeferred
async def test_an_exchange_that_does_not_exist_fails_that_call_alone(client, worker):
    """Calls around it keep their channel."""
    worker()
    tx_app = client()
    good = [tx_app.send_task("taskapp.add", args=(n, 1)) for n in range(50)]
    bad = tx_app.send_task("taskapp.add", args=(1, 2), exchange="no-such-exchange", routing_key="x")
    good += [tx_app.send_task("taskapp.add", args=(n, 1)) for n in range(50)]
    with pytest.raises(twistedcelery.PublishRejected, match="404"):
        await bad
    assert await gatherResults(good) == [n + 1 for n in range(50)] * 2


@pytest_twisted.ensureDeferred
async def test_a_queue_declared_otherwise_fails_that_call_alone(client, broker_url, worker):
    """A queue that exists with other arguments refuses the calls that need it, and no others."""
    with connect(broker_url) as connection:
        connection.default_channel.queue_declare("odd", durable=False, auto_delete=False)
    worker()
    tx_app = client()
    bad = tx_app.send_task("taskapp.add", args=(1, 2), queue="odd")
    good = tx_app.send_task("taskapp.add", args=(1, 2))
    with pytest.raises(twistedcelery.PublishRejected, match="406"):
        await bad
    assert await good == 3


def reply(url, queue, body, *, correlation_id, content_type="application/json", headers=None):
    """Put a reply of our own making into a client's reply queue."""
    with connect(url) as connection:
        message = amqp.Message(
            body,
            content_type=content_type,
            content_encoding="utf-8",
            correlation_id=correlation_id,
            application_headers=headers or {},
        )
        connection.default_channel.basic_publish(message, exchange="", routing_key=queue)


@pytest.mark.parametrize(
    ("body", "options", "error"),
    [
        (b"not json", {}, twistedcelery.ReplyUndecodable),
        (b"[1]", {}, twistedcelery.ReplyUndecodable),
        (b'{"status": "SUCCESS"}', {}, twistedcelery.ReplyUndecodable),
        (b'{"status": "FAILURE", "result": 5}', {}, twistedcelery.TaskFailure),
        (
            b'{"status": "FAILURE", "result": {"exc_type": "system", "exc_module": "os"}}',
            {},
            twistedcelery.TaskFailure,
        ),
        (
            b"cos\nsystem\n(S'true'\ntR.",
            {"content_type": "application/x-python-serialize"},
            twistedcelery.ReplyNotAccepted,
        ),
        (b"???", {"headers": {"compression": "application/x-gzip"}}, twistedcelery.ReplyUndecodable),
        (b"???", {"headers": {"compression": "application/x-unheard-of"}}, twistedcelery.ReplyUndecodable),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_reply_that_is_none(client, broker_url, worker, body, options, error):
    """A reply that cannot be read fails its own call with a named error, and no other."""
    worker()
    tx_app = client()
    seen = await tx_app.send_task("taskapp.request_info")
    call = tx_app.send_task("taskapp.sleep", args=(20,), countdown=600)
    await call.published
    reply(broker_url, seen["reply_to"], body, correlation_id=call.task_id, **options)
    with pytest.raises(error):
        await call
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest_twisted.ensureDeferred
async def test_replies_for_nobody_and_replies_twice(client, broker_url, worker):
    """Replies for unknown tasks are dropped, and the first of two final replies wins."""
    worker()
    tx_app = client()
    queue = (await tx_app.send_task("taskapp.request_info"))["reply_to"]
    call = tx_app.send_task("taskapp.sleep", args=(20,), countdown=600)
    await call.published
    final = b'{"status": "SUCCESS", "result": %d}'
    reply(broker_url, queue, final % 0, correlation_id="nobody")
    reply(broker_url, queue, b'{"status": "PROGRESS", "result": 5}', correlation_id="nobody")
    reply(broker_url, queue, final % 1, correlation_id=call.task_id)
    reply(broker_url, queue, final % 2, correlation_id=call.task_id)
    assert await call == 1
    assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3


@pytest_twisted.ensureDeferred
async def test_a_wrong_password(rabbitmq, client):
    """Refused credentials fail the call at once, with the address and without the password."""
    tx_app = client(rabbitmq.vhost_url("/", password="not-the-password"))
    started = time.monotonic()
    with pytest.raises(twistedcelery.BrokerAccessRefused) as refused:
        await tx_app.send_task("taskapp.add", args=(1, 2))
    assert time.monotonic() - started < 5
    assert "guest@127.0.0.1" in str(refused.value)
    assert "not-the-password" not in str(refused.value)


@pytest_twisted.ensureDeferred
async def test_a_virtual_host_that_does_not_exist(rabbitmq, client):
    """It is told apart from a broker that is down."""
    with pytest.raises(twistedcelery.BrokerAccessRefused, match="no-such-vhost"):
        await client(rabbitmq.vhost_url("no-such-vhost")).send_task("taskapp.add", args=(1, 2))


# The application and its other users


@pytest_twisted.ensureDeferred
async def test_the_application_stays_usable_by_threads(client, worker):
    """Another thread of the process calls and waits in Celery's blocking way at the same time."""
    worker()
    tx_app = client()
    calls = [tx_app.send_task("taskapp.add", args=(n, 1)) for n in range(200)]
    results = []

    def block():
        results.extend(tx_app.app.send_task("taskapp.add", args=(n, 1)).get(timeout=30) for n in range(20))

    thread = threading.Thread(target=block)
    thread.start()
    assert await gatherResults(calls) == [n + 1 for n in range(200)]
    await until(lambda: not thread.is_alive(), what="the thread has ended")
    assert results == [n + 1 for n in range(20)]
    assert type(tx_app.app.backend).__name__ == "RPCBackend"


def open_files():
    return sorted(str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.exists())


@pytest_twisted.ensureDeferred
async def test_disconnect_leaves_nothing_behind(broker_url, client, worker):
    """No file descriptor, thread, pending DelayedCall or reply queue is left; what waited has ended."""
    worker()
    await task.deferLater(reactor, 0)
    files, threads = open_files(), threading.active_count()
    delayed = set(reactor.getDelayedCalls())
    tx_app = client()
    queue = (await tx_app.send_task("taskapp.request_info"))["reply_to"]
    waiting = tx_app.send_task("taskapp.sleep", args=(1,), countdown=600)
    await waiting.published
    unsent = tx_app.send_task("taskapp.add", args=(1, 2))
    done = tx_app.disconnect()
    for call in (waiting, unsent):
        with pytest.raises(twistedcelery.Disconnected):
            await call
    await done
    assert open_files() == files
    assert threading.active_count() == threads
    assert set(reactor.getDelayedCalls()) <= delayed
    await tx_app.disconnect()
    with pytest.raises(twistedcelery.Disconnected):
        await tx_app.send_task("taskapp.add", args=(1, 2))
    with connect(broker_url) as connection, pytest.raises(amqp.exceptions.NotFound):
        connection.default_channel.queue_declare(queue, passive=True)


@pytest.fixture
def own_vhost(rabbitmq):
    """A virtual host with no other test's queues, and no worker's."""
    with rabbitmq.vhost() as url:
        yield url


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"result_persistent": True}, {"task_default_queue_type": "quorum"}])
@pytest_twisted.ensureDeferred
async def test_disconnect_at_any_moment_deletes_the_reply_queue(
    rabbitmq, own_vhost, new_client, protocol, settings
):
    """From the first call on, through the handshakes and declarations, to well after them."""
    app = create_app(own_vhost, "rpc://", task_protocol=protocol, **settings)
    for milliseconds in [*range(0, 32, 2), 60]:
        tx_app = new_client(app)
        call = tx_app.send_task("taskapp.add", args=(1, 2))
        call.addErrback(lambda failure: failure.trap(twistedcelery.Disconnected))
        asked = tx_app.control.ping(timeout=0.05)
        asked.addErrback(lambda failure: failure.trap(twistedcelery.TwistedCeleryError))
        stream = tx_app.events()
        stream.ready.addErrback(lambda failure: failure.trap(twistedcelery.TwistedCeleryError))
        await task.deferLater(reactor, milliseconds / 1000)
        await tx_app.disconnect()
    assert await deferToThread(rabbitmq.queues, own_vhost.rpartition("/")[2]) <= {"celery"}


@pytest_twisted.ensureDeferred
async def test_disconnect_before_anything_was_sent(client):
    """It has nothing to do, and says so."""
    tx_app = client()
    assert not tx_app.connected
    assert await tx_app.disconnect() is None
