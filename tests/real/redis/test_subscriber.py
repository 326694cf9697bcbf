"""Queues of the client's own on Redis, natively, beside kombu's own producers and consumers."""

from __future__ import annotations

import json
import threading

import kombu
import pytest
import pytest_twisted
import redis
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread

from tests.real.transports.parts import descriptors
from tests.support.redis import RedisServer
from tests.support.taskapp import create_app
from tests.support.waiting import until
from twistedcelery import BrokerAccessRefused, BrokerUnavailable, Disconnected, PublishRejected
from twistedcelery.transports.interface import Setup
from twistedcelery.transports.registry import find


class User:
    """A `twistedcelery.transports.interface.SubscriptionUser` that keeps what it is told."""

    def __init__(self):
        self.consumed = 0
        self.messages, self.interruptions, self.ends = [], [], []

    def consuming(self):
        self.consumed += 1

    def received(self, message):
        self.messages.append(message)

    def interrupted(self, reason):
        self.interruptions.append(reason)

    def ended(self, error):
        self.ends.append(error)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Redis for all these tests; each begins with it empty."""
    running = RedisServer(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def admin(server):
    """A client of redis-py's, on the empty server."""
    client = redis.Redis(port=server.port)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def subscribers():
    """``subscribers(url)``: a subscriber with its application, closed after the test."""
    made = []

    def make(url, *, timeout=10.0, **config):
        app = create_app(url, "disabled://", **config)
        subscriber = find(app, "auto").subscriber(Setup(app, reactor, timeout))
        made.append(subscriber)
        return subscriber, app

    yield make
    for subscriber in made:
        pytest_twisted.blockon(subscriber.close())


def direct(name="replies"):
    """As kombu's queue for replies to control commands."""
    exchange = kombu.Exchange("answers", "direct", durable=False)
    return kombu.Queue(name, exchange, name, durable=False, auto_delete=True, expires=10.0)


def fanout(name="events", key="#"):
    """As Celery's queue for events on Redis."""
    exchange = kombu.Exchange("stories", "fanout", durable=True)
    return kombu.Queue(name, exchange, key, durable=False, auto_delete=True, expires=60.0)


def send(app, *messages):
    """Have kombu's own producer send messages: exchange of a queue, routing key, body, options."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue, key, body, options in messages:
            producer = kombu.Producer(channel, queue.exchange)
            producer.publish(body, routing_key=key, serializer="json", **options)


def bodies(messages):
    return [json.loads(message.body) for message in messages]


def left(admin):
    """The keys that are there, but for kombu's one list of exchanges with bindings that expire."""
    return [key for key in admin.keys("*") if not key.endswith(b"_kombu.binding_deadlines")]


OPTIONS = {
    "nothing": {},
    "prefix": {"global_keyprefix": "theirs:"},
    "fanout_prefix": {"fanout_prefix": "/other{db}."},
    "no patterns": {"fanout_patterns": False},
    "separator": {"sep": ":"},
    "steps": {"priority_steps": [0, 5]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest_twisted.ensureDeferred
async def test_messages_of_kombu_s_producers(server, admin, subscribers, options):
    """They come from lists of each priority and from subscriptions, as they are, until it is cancelled."""
    subscriber, app = subscribers(server.url(0), broker_transport_options=options)
    listed, subscribed = User(), User()
    subscriptions = [subscriber.subscribe(direct(), listed), subscriber.subscribe(fanout(), subscribed)]
    await until(lambda: listed.consumed and subscribed.consumed)
    await deferToThread(
        send,
        app,
        *[(direct(), "replies", [n], {"priority": n, "headers": {"n": n}}) for n in (0, 3, 6, 9)],
        (direct(), "replies", "ü" * 100, {"compression": "gzip"}),
        *[(fanout(), f"story.{n}", {"n": n}, {}) for n in range(3)],
    )
    await until(lambda: len(listed.messages) == 5 and len(subscribed.messages) == 3)
    found = {message.headers.get("n"): message for message in listed.messages}
    assert bodies([found[n] for n in (0, 3, 6, 9, None)]) == [[0], [3], [6], [9], "ü" * 100]
    assert bodies(subscribed.messages) == [{"n": n} for n in range(3)]
    kinds = {(message.content_type, message.content_encoding) for message in subscribed.messages}
    assert kinds == {("application/json", "utf-8")}
    assert any(b"_kombu.binding.answers" in key for key in admin.keys("*"))
    for subscription in subscriptions:
        await subscription.cancel()
        await subscription.cancel()
    assert left(admin) == []
    assert not admin.execute_command("PUBSUB", "NUMPAT")
    assert listed.ends == subscribed.ends == []


@pytest_twisted.ensureDeferred
async def test_what_is_declared_is_what_kombu_declares(server, admin, subscribers):
    """The keys of both kinds of queues, and their values, are those of kombu's own consumer."""
    subscriber, _ = subscribers(server.url(0))
    users = [User(), User()]
    for queue, user in zip((direct(), fanout()), users, strict=True):
        subscriber.subscribe(queue, user)
    await until(lambda: all(user.consumed for user in users))

    def declare():
        other = create_app(server.url(1), "disabled://")
        with other.connection_for_read() as connection, connection.channel() as channel:
            for queue in (direct(), fanout()):
                queue(channel).declare()
            return contents(1)

    def contents(database):
        with redis.Redis(port=server.port, db=database) as client:
            kinds = {b"set": client.smembers, b"zset": lambda key: set(client.zrange(key, 0, -1))}
            return {key: kinds[client.type(key)](key) for key in client.keys("*")}

    theirs = await deferToThread(declare)
    assert theirs
    assert contents(0) == theirs


@pytest_twisted.ensureDeferred
async def test_streams_with_patterns_of_their_own(server, admin, subscribers):
    """Of two queues of one exchange, each is given what its key matches, once."""
    subscriber, app = subscribers(server.url(0))
    everything, some = User(), User()
    subscriber.subscribe(fanout("everything"), everything)
    subscriber.subscribe(fanout("some", "task.#"), some)
    await until(lambda: everything.consumed and some.consumed)
    await deferToThread(
        send, app, *[(fanout(), f"{kind}.x", kind, {}) for kind in ("task", "worker", "task", "end")]
    )
    await until(lambda: len(everything.messages) == 4)
    await until(lambda: len(some.messages) == 2)
    assert bodies(some.messages) == ["task", "task"]


@pytest_twisted.ensureDeferred
async def test_garbage_is_dropped(server, admin, subscribers):
    """What is no message of kombu's is dropped, in a list and over a subscription; the next one comes."""
    subscriber, app = subscribers(server.url(0))
    listed, subscribed = User(), User()
    subscriber.subscribe(direct(), listed)
    subscriber.subscribe(fanout(), subscribed)
    await until(lambda: listed.consumed and subscribed.consumed)
    for garbage in (b"\xff", b"{", b"[]", b"{}", b'{"properties": {}}', b'{"body": 1, "properties": 1}', b""):
        admin.lpush("replies", garbage)
        admin.publish("/0.stories/x", garbage)
    await deferToThread(send, app, (direct(), "replies", 1, {}), (fanout(), "x", 2, {}))
    await until(lambda: listed.messages and subscribed.messages)
    assert bodies([*listed.messages, *subscribed.messages]) == [1, 2]
    assert listed.interruptions == subscribed.interruptions == []


@pytest_twisted.ensureDeferred
async def test_purging(server, admin, subscribers):
    """All priorities are emptied and counted; queues that do not exist have nothing in them."""
    subscriber, app = subscribers(server.url(0))
    await deferToThread(
        send, app, *[(kombu.Queue("work", kombu.Exchange("")), "work", n, {"priority": n}) for n in range(10)]
    )
    queues = [kombu.Queue(name, kombu.Exchange(name), name) for name in ("work", "empty")]
    assert await subscriber.purge(queues) == 10
    assert await subscriber.purge(queues) == 0
    admin.set("odd", "text")
    with pytest.raises(PublishRejected, match="WRONGTYPE"):
        await subscriber.purge([kombu.Queue("odd", kombu.Exchange("odd"), "odd")])


@pytest_twisted.ensureDeferred
async def test_what_redis_refuses_ends_one_subscription(server, admin, subscribers):
    """A user who may not subscribe, and a key of another type, are told in Redis' words."""
    admin.execute_command("ACL", "SETUSER", "mute", "on", ">pw", "~*", "+@all", "resetchannels")
    mute, _ = subscribers(f"redis://mute:pw@127.0.0.1:{server.port}/0")
    listed, subscribed, odd = User(), User(), User()
    mute.subscribe(fanout(), subscribed)
    mute.subscribe(direct(), listed)
    admin.set("odd", "text")
    mute.subscribe(direct("odd"), odd)
    await until(lambda: subscribed.ends and odd.ends and listed.consumed)
    for user, words in ((subscribed, "NOPERM"), (odd, "WRONGTYPE")):
        (error,) = user.ends
        assert isinstance(error, PublishRejected)
        assert words in str(error)
    assert not subscribed.consumed
    assert not listed.ends


@pytest_twisted.ensureDeferred
async def test_lost_connections(server, admin, subscribers):
    """Both kinds come back, with their bindings, though Redis has forgotten everything meanwhile."""
    subscriber, app = subscribers(server.url(0), broker_transport_options={"client_name": "ours"})
    users = [User(), User()]
    for queue, user in zip((direct(), fanout()), users, strict=True):
        subscriber.subscribe(queue, user)
    await until(lambda: all(user.consumed for user in users))
    admin.flushall()
    admin.script_flush()
    for client in admin.client_list():
        if client["name"] == "ours":
            admin.client_kill_filter(_id=client["id"])
    await until(lambda: all(user.consumed == 2 for user in users))
    for user in users:
        (reason,) = user.interruptions
        assert isinstance(reason, BrokerUnavailable)
    await deferToThread(send, app, (direct(), "replies", 1, {}), (fanout(), "x", 2, {}))
    await until(lambda: all(user.messages for user in users))


@pytest_twisted.ensureDeferred
async def test_a_password_that_is_wrong(server, admin, subscribers):
    """It is told as such, to whoever purges at once, without the password."""
    subscriber, _ = subscribers(f"redis://me:wr0ng@127.0.0.1:{server.port}/0", timeout=60)
    user = User()
    subscriber.subscribe(direct(), user)
    with pytest.raises(BrokerAccessRefused, match=r"WRONGPASS|invalid") as refused:
        await subscriber.purge([direct()])
    await until(lambda: user.interruptions)
    assert isinstance(user.interruptions[0], BrokerAccessRefused)
    assert "wr0ng" not in str(refused.value) + str(user.interruptions[0])


@pytest_twisted.ensureDeferred
async def test_closing_leaves_nothing(server, admin):
    """No connection, descriptor, timer, thread, key; whoever is subscribed is told, and may close again."""
    await task.deferLater(reactor, 0)
    before = descriptors(), len(reactor.getDelayedCalls()), threading.active_count()
    app = create_app(server.url(0), "disabled://", broker_transport_options={"client_name": "ours"})
    subscriber = find(app, "auto").subscriber(Setup(app, reactor, 10))
    users = [User(), User()]
    for queue, user in zip((direct(), fanout()), users, strict=True):
        subscriber.subscribe(queue, user)
    await until(lambda: all(user.consumed for user in users))
    assert threading.active_count() == before[2]
    first = subscriber.close()
    await subscriber.close()
    await first
    await subscriber.close()
    assert [[type(end) for end in user.ends] for user in users] == [[Disconnected]] * 2
    with pytest.raises(Disconnected):
        await subscriber.purge([direct()])
    assert left(admin) == []
    assert descriptors() <= before[0]
    assert len(reactor.getDelayedCalls()) <= before[1]
    await until(lambda: not [client for client in admin.client_list() if client["name"] == "ours"])


@pytest_twisted.ensureDeferred
async def test_closing_while_redis_does_not_answer(server, admin, subscribers):
    """It is bounded in time, though the queues cannot be deleted; purging is, as well."""
    subscriber, _ = subscribers(server.url(0), timeout=0.5)
    user = User()
    subscriber.subscribe(direct(), user)
    await until(lambda: user.consumed)
    await deferToThread(server.freeze)
    try:
        with pytest.raises(BrokerUnavailable, match="no answer"):
            await subscriber.purge([direct()])
        before = reactor.seconds()
        await subscriber.close()
        assert reactor.seconds() - before < 8
    finally:
        await deferToThread(server.thaw)
    assert [type(end) for end in user.ends] == [Disconnected]
