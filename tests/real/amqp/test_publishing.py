"""Where messages go, and in which form: read from the queues of a real RabbitMQ, and by a real worker."""

from __future__ import annotations

import json
import logging
import re

import amqp
import celery.exceptions
import kombu
import kombu.compression
import pytest
import pytest_twisted
from celery import signals
from kombu import Exchange, Queue
from kombu.common import Broadcast
from kombu.serialization import registry
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

import twistedcelery
from tests.support.ports import free_port
from tests.support.taskapp import create_app
from tests.support.worker import Worker
from twistedcelery import TwistedCelery

SERIALIZERS = sorted(registry._encoders)
COMPRESSIONS = sorted(kombu.compression.encoders())


@pytest.fixture(scope="module")
def shared_broker_url(rabbitmq):
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture
def client():
    """``client(url, **settings)``: a client, disconnected afterwards; its calls may stay unheard."""
    made = []

    def make(url, *, options=None, **settings):
        # Celery's own client, where a test compares with it, then returns once the message can be read.
        settings.setdefault("broker_transport_options", {"confirm_publish": True})
        tx_app = TwistedCelery(create_app(url, "rpc://", **settings), **(options or {}))
        made.append(tx_app)
        return tx_app

    yield make
    for tx_app in made:
        pytest_twisted.blockon(tx_app.disconnect())


@pytest.fixture
def channel(broker_url):
    """A blocking channel, to look at the broker from outside."""
    with kombu.Connection(broker_url) as connection:
        yield connection.default_channel


def sent(tx_app, *args, **options):
    """Send a task that no worker takes; fires once the broker has it."""
    call = tx_app.send_task(*args, **options)
    call.addErrback(lambda failure: failure.trap(twistedcelery.Disconnected, twistedcelery.PublishError))
    return call.published


def taken(channel, queue):
    """Everything that waits in a queue, in the order in which workers would get it."""
    messages = []
    while (message := channel.basic_get(queue, no_ack=True)) is not None:
        messages.append(message)
    return messages


# Routes


def route_by_name(name, args, kwargs, options, task=None, **further):
    """A router as users write it."""
    return {"queue": "routed", "priority": 4} if name.endswith(".add") else None


class Router:
    """Another form that Celery takes, by its path."""

    def __call__(self, *args, **kwargs):
        return route_by_name(*args, **kwargs)


@pytest.mark.parametrize(
    "routes",
    [
        {"taskapp.add": {"queue": "routed"}},
        {"taskapp.add": "routed"},
        {"taskapp.*": {"queue": "routed", "routing_key": "routed"}},
        ({"other.*": "elsewhere"}, [(re.compile(r"taskapp\.(add|echo)"), {"queue": "routed"})]),
        ([("taskapp.a*", {"queue": "routed"}), ("taskapp.*", {"queue": "elsewhere"})],),
        route_by_name,
        (route_by_name,),
        f"{__name__}.route_by_name",
    ],
    ids=["name", "queue", "glob", "pattern", "order", "function", "functions", "path"],
)
@pytest_twisted.ensureDeferred
async def test_task_routes(client, broker_url, channel, routes):
    """Every form of ``task_routes`` leads to the queue that it leads Celery's own client to."""
    tx_app = client(broker_url, task_routes=routes)
    await sent(tx_app, "taskapp.add", args=(1, 2))
    (message,) = taken(channel, "routed")
    assert message.headers["task"] == "taskapp.add"
    await deferToThread(tx_app.app.send_task, "taskapp.add", args=(1, 2))
    (celerys,) = taken(channel, "routed")
    for name in ("exchange", "routing_key"):
        assert message.delivery_info[name] == celerys.delivery_info[name]
    assert message.properties.get("priority") == celerys.properties.get("priority")
    # What a call says itself comes first.
    await sent(tx_app, "taskapp.add", args=(1, 2), queue="own")
    assert len(taken(channel, "own")) == 1


@pytest_twisted.ensureDeferred
async def test_a_router_class(client, broker_url, channel):
    """An object that is called is a router as well."""
    tx_app = client(broker_url, task_routes=(Router(),))
    await sent(tx_app, "taskapp.add", args=(1, 2))
    (message,) = taken(channel, "routed")
    assert message.properties["priority"] == 4


@pytest_twisted.ensureDeferred
async def test_a_router_that_fails(client, broker_url):
    """It fails the call, with what it raised, and no other call."""

    def broken(name, *args, **kwargs):
        if name == "taskapp.fail":
            raise LookupError("no such tenant")

    tx_app = client(broker_url, task_routes=(broken,))
    good = sent(tx_app, "taskapp.add", args=(1, 2))
    with pytest.raises(twistedcelery.InvalidCall, match="no such tenant") as refused:
        await tx_app.send_task("taskapp.fail", args=("no",))
    assert isinstance(refused.value.__cause__, LookupError)
    assert await good is None


# Queues and exchanges


@pytest_twisted.ensureDeferred
async def test_queues_that_are_missing(client, broker_url, channel):
    """They are made, unless ``task_create_missing_queues`` is off: then Celery's own error comes at once."""
    await sent(client(broker_url), "taskapp.add", args=(1, 2), queue="new")
    (message,) = taken(channel, "new")
    assert (message.delivery_info["exchange"], message.delivery_info["routing_key"]) == ("", "new")
    closed = client(broker_url, task_create_missing_queues=False, task_queues=[Queue("known")])
    for call in (
        closed.send_task("taskapp.add", args=(1, 2), queue="other"),
        closed.task(closed.app.tasks["taskapp.add"]).apply_async((1, 2), queue="other"),
    ):
        with pytest.raises(twistedcelery.QueueNotFound, match="'other'") as refused:
            await call
        assert isinstance(refused.value, celery.exceptions.QueueNotFound)
    await sent(closed, "taskapp.add", args=(1, 2), queue="known")
    with pytest.raises(amqp.NotFound):
        channel.queue_declare("other", passive=True)


@pytest_twisted.ensureDeferred
async def test_topic_exchanges(client, broker_url, channel):
    """A routing key reaches all queues whose patterns it matches, and is ``Unroutable`` with none."""
    topics = Exchange("topics", "topic")
    queues = [Queue("europe", topics, "europe.#"), Queue("mail", topics, "*.mail")]
    for queue in queues:
        queue.bind(channel).declare()
    tx_app = client(broker_url, task_queues=queues)
    for key in ("europe.mail", "asia.mail", "europe.sms.bulk"):
        await sent(tx_app, "taskapp.echo", args=(key,), exchange="topics", routing_key=key)
    await sent(tx_app, "taskapp.echo", queue="mail", routing_key="africa.mail")
    keys = [[each.delivery_info["routing_key"] for each in taken(channel, queue.name)] for queue in queues]
    assert keys == [["europe.mail", "europe.sms.bulk"], ["europe.mail", "asia.mail", "africa.mail"]]
    with pytest.raises(twistedcelery.Unroutable):
        await tx_app.send_task("taskapp.echo", exchange="topics", routing_key="asia.sms")


@pytest_twisted.ensureDeferred
async def test_fanout_exchanges_and_broadcast_queues(client, broker_url, channel):
    """A task that is sent to a ``Broadcast`` queue reaches every worker's copy of it."""
    copies = [Broadcast("news", auto_delete=False) for _ in range(2)]
    for copy in copies:
        copy.bind(channel).declare()
    routes = {"taskapp.touch": {"queue": "news", "exchange": "news"}}
    tx_app = client(broker_url, task_queues=[Broadcast("news")], task_routes=routes)
    await sent(tx_app, "taskapp.touch", args=("x",))
    both = [message for copy in copies for message in taken(channel, copy.name)]
    assert [message.headers["task"] for message in both] == ["taskapp.touch"] * 2
    fanout = Exchange("plain-fanout", "fanout")
    Queue("one", fanout).bind(channel).declare()
    await sent(tx_app, "taskapp.echo", exchange="plain-fanout", exchange_type="fanout")
    assert len(taken(channel, "one")) == 1


@pytest_twisted.ensureDeferred
async def test_priorities_change_the_order(client, broker_url, channel):
    """Of what waits in a queue with ``x-max-priority``, the greatest priority is taken first."""
    tx_app = client(broker_url, task_queue_max_priority=9)
    for priority in (1, 5, 9, 3):
        await sent(tx_app, "taskapp.echo", queue="by-priority", priority=priority)
    assert [message.properties["priority"] for message in taken(channel, "by-priority")] == [9, 5, 3, 1]


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_an_eta_with_quorum_queues(client, broker_url, worker):
    """The broker itself delays the task, through the exchanges that Celery's workers declare for it."""
    settings = {"task_default_queue_type": "quorum", "task_default_exchange_type": "topic"}
    await deferToThread(worker, config=settings)
    tx_app = client(broker_url, **settings)
    clock = tx_app._reactor
    begun = clock.seconds()
    at_once = tx_app.send_task("taskapp.request_info")
    later = tx_app.send_task("taskapp.request_info", countdown=2)
    assert (await at_once)["delivery_info"]["exchange"] == "celery"
    delivered = (await later)["delivery_info"]
    assert clock.seconds() - begun >= 2
    # Through one exchange for each power of two, the last of which is that of a second.
    assert delivered["exchange"] == "celery_delayed_0"
    assert delivered["routing_key"] == f"{2:028b}".replace("", ".").strip(".") + ".celery"


# Forms of messages


@pytest.fixture(scope="module")
def accepting(shared_broker_url, tmp_path_factory):
    """A worker that takes every serializer, and its broker."""
    started = Worker(
        tmp_path_factory.mktemp("accepting"),
        broker=shared_broker_url,
        backend="rpc://",
        config={"accept_content": SERIALIZERS},
        # It takes pickles, and tests may be run by root.
        env={"C_FORCE_ROOT": "true"},
    )
    started.start()
    yield shared_broker_url
    started.kill()


@pytest_twisted.ensureDeferred
async def test_every_serializer_and_every_compression(client, accepting):
    """Each that is registered here is understood by a worker, and all of them together."""
    assert {"json", "msgpack", "pickle", "yaml"} <= set(SERIALIZERS)
    assert {"application/x-bz2", "application/x-gzip", "application/x-lzma"} <= set(COMPRESSIONS)
    tx_app = client(accepting)
    value = {"text": "naïve" * 100, "numbers": [1, 2.5, None, True]}
    ways = [{"serializer": name} for name in SERIALIZERS]
    ways += [{"compression": name} for name in COMPRESSIONS]
    ways += [{"serializer": SERIALIZERS[0], "compression": name} for name in ("gzip", "bzip2", "zlib")]
    echoed = await gatherResults([tx_app.send_task("taskapp.echo", args=(value,), **way) for way in ways])
    assert echoed == [{"args": [value], "kwargs": {}}] * len(ways)
    for option in ("serializer", "compression"):
        with pytest.raises(twistedcelery.PublishError, match="unheard-of"):
            await tx_app.send_task("taskapp.echo", **{option: "unheard-of"})


# Signals and events


@pytest_twisted.ensureDeferred
async def test_publish_signals(client, broker_url, channel, caplog):
    """Handlers are told what Celery's own client tells them, may change headers, and may fail."""
    told = []

    def before(sender=None, headers=None, **kwargs):
        told.append(("before", sender, dict(headers), kwargs))
        headers["tenant"] = "changed"

    def after(sender=None, **kwargs):
        told.append(("after", sender, kwargs))
        raise RuntimeError("a handler's own mistake")

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    tx_app = client(broker_url)
    try:
        with caplog.at_level(logging.ERROR, logger="celery.utils.dispatch.signal"):
            await sent(tx_app, "taskapp.add", args=(1, 2), queue="signals", priority=3, task_id="the-same")
        ours, told[:] = list(told), []
        await deferToThread(
            tx_app.app.send_task, "taskapp.add", args=(1, 2), queue="signals", priority=3, task_id="the-same"
        )
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    for one in (*ours, *told):
        # Each client has a reply queue of its own.
        one[-1].pop("properties", {}).pop("reply_to", None)
    assert ours == told
    assert [one[0] for one in ours] == ["before", "after"]
    assert "a handler's own mistake" in caplog.text
    assert [message.headers["tenant"] for message in taken(channel, "signals")] == ["changed"] * 2


@pytest_twisted.ensureDeferred
async def test_the_task_sent_event(client, broker_url, channel):
    """``task_send_sent_event`` has each task announced, as Celery's own client does."""
    Queue("seen", Exchange("celeryev", "topic"), "task.#").bind(channel).declare()
    tx_app = client(broker_url, task_send_sent_event=True)
    await sent(tx_app, "taskapp.add", args=(1, 2), queue="announced", task_id="first")
    await deferToThread(tx_app.app.send_task, "taskapp.add", args=(1, 2), queue="announced", task_id="second")
    changing = {"timestamp", "clock", "uuid", "root_id"}
    first, second = (json.loads(message.body) for message in taken(channel, "seen"))
    assert (first["uuid"], second["uuid"]) == ("first", "second")
    assert first["type"] == "task-sent"
    assert {key: first[key] for key in first.keys() - changing} == {
        key: second[key] for key in second.keys() - changing
    }


# Brokers


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_reading_from_another_broker_than_writing_to(client, broker_url, rabbitmq, worker):
    """Tasks go to ``broker_write_url``; results, replies and events come from ``broker_read_url``."""
    with rabbitmq.vhost() as other:
        workers = {"broker_read_url": broker_url, "broker_write_url": other}
        await deferToThread(worker, broker="memory://", config=workers)
        tx_app = client("memory://", broker_read_url=other, broker_write_url=broker_url)
        assert await tx_app.send_task("taskapp.add", args=(1, 2)) == 3
        await tx_app.disconnect()


@pytest.mark.parametrize("strategy", ["round-robin", "shuffle"])
@pytest_twisted.ensureDeferred
async def test_failover_finds_the_broker_that_answers(client, broker_url, strategy):
    """Wherever in the list it stands, and in whichever order brokers are tried."""
    dead = [f"amqp://127.0.0.1:{free_port()}//" for _ in range(2)]
    tx_apps = [
        client(";".join([*dead[:place], broker_url, *dead[place:]]), broker_failover_strategy=strategy)
        for place in range(3)
    ]
    assert await gatherResults([sent(tx_app, "taskapp.add", queue="found") for tx_app in tx_apps])


@pytest_twisted.ensureDeferred
async def test_retry_options_are_taken(client, broker_url, channel):
    """``retry`` and ``retry_policy`` are Celery's; how long to try is what ``confirm_timeout`` says here."""
    tx_app = client(broker_url, task_publish_retry_policy={"max_retries": 1})
    policy = {"max_retries": 0, "interval_start": 5}
    await sent(tx_app, "taskapp.add", queue="retried", retry=True, retry_policy=policy)
    await sent(tx_app, "taskapp.add", queue="retried", retry=False)
    assert len(taken(channel, "retried")) == 2
    down = client(f"amqp://127.0.0.1:{free_port()}//")
    with pytest.raises(twistedcelery.BrokerUnavailable):
        await down.send_task("taskapp.add", retry=True, retry_policy=policy, confirm_timeout=0.3)
