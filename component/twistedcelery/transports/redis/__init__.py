"""The native Redis transport: hiredis' parser, no threads. Needs the extra ``redis``.

`publisher` keeps one `twistedcelery.transports.connection`, `results` two: one is subscribed, the
other reads, through `requests`. `store` and `subscriber` have one each for
their `requests`, and each subscribed queue has one, its `intake`. `servers` says where to connect, by
way of `sentinel` where there is one, and `link` is one live connection, whose bytes `protocol`
reads and writes. `message_writer`, `queue_reader` and `offline_backend` run kombu's and Celery's own code
on a `recorded_client`, which `channel` gives to kombu.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twistedcelery.transports.connection import Connection, backoff
from twistedcelery.transports.failover import switch_to_next
from twistedcelery.transports.interface import Transport
from twistedcelery.transports.redis.channel import ChannelTape, offline_channel
from twistedcelery.transports.redis.intake import FanoutIntake, Intake, ListIntake
from twistedcelery.transports.redis.link import open_link, open_subscriber
from twistedcelery.transports.redis.message_writer import MessageWriter
from twistedcelery.transports.redis.offline_backend import OfflineRedisBackend
from twistedcelery.transports.redis.publisher import RedisPublisher
from twistedcelery.transports.redis.queue_reader import QueueReader, is_fanout
from twistedcelery.transports.redis.requests import Reads, Requests
from twistedcelery.transports.redis.results import RedisResults, Subscriptions
from twistedcelery.transports.redis.servers import Servers
from twistedcelery.transports.redis.store import RedisStore
from twistedcelery.transports.redis.subscriber import RedisSubscriber

if TYPE_CHECKING:
    from twistedcelery.transports.interface import ReplyReceiver, Setup, SubscriptionUser

__all__ = ["RedisTransport"]


class RedisTransport(Transport):
    """Redis, behind Sentinel too, as a broker and as a result backend."""

    def publisher(self, setup: Setup) -> RedisPublisher:
        """Publish to ``broker_write_url``. Connects at the first message."""
        kombu = setup.app.connection_for_write()
        reactor = setup.reactor
        publisher = RedisPublisher(reactor, setup.timeout, lambda ask: MessageWriter(kombu, ask))
        brokers = _brokers(kombu, reactor)
        return publisher.use(
            Connection(brokers, publisher, reactor, backoff, open_link, purpose="publishing")
        )

    def subscriber(self, setup: Setup) -> RedisSubscriber:
        """Consume from ``broker_read_url``. Connects when it is used."""
        reactor = setup.reactor
        kombu = setup.app.connection_for_read()
        requests = Requests(reactor, setup.timeout)
        brokers = _brokers(kombu, reactor)
        requests.use(Connection(brokers, requests, reactor, backoff, open_link, purpose="bindings"))

        def make_intake(queue: Any, user: SubscriptionUser) -> Intake[Any]:
            # One of its own, which turns to the next of several brokers for this connection alone.
            kombu = setup.app.connection_for_read()
            fanout = is_fanout(queue)
            intake_class: type[Intake[Any]] = FanoutIntake if fanout else ListIntake
            intake = intake_class(reactor, queue, user, lambda: QueueReader(kombu, queue), requests)
            opener: Any = open_subscriber if fanout else open_link
            brokers = _brokers(kombu, reactor)
            return intake.use(
                Connection(brokers, intake, reactor, backoff, opener, purpose="events and replies")
            )

        pidbox = setup.app.control.mailbox.exchange.name
        return RedisSubscriber(requests, make_intake, lambda queue: QueueReader(kombu, queue), pidbox)

    def results(self, setup: Setup, receiver: ReplyReceiver) -> RedisResults:
        """Follow the states in ``result_backend``. Connects when the first task is watched."""
        reactor = setup.reactor
        backend = OfflineRedisBackend(setup.app, max_bytes=setup.max_reply_bytes)
        results = RedisResults(reactor, receiver, backend)
        servers = _result_servers(backend, reactor)
        subscriptions = Subscriptions(reactor, results)
        subscriptions.use(
            Connection(servers, subscriptions, reactor, backoff, open_subscriber, purpose="results")
        )
        requests = Requests(reactor, None)
        requests.use(Connection(servers, requests, reactor, backoff, open_link, purpose="reading results"))
        return results.use(subscriptions, Reads(reactor, requests, results.found))

    def store(self, setup: Setup) -> RedisStore:
        """Ask ``result_backend``. Connects at the first question."""
        requests = Requests(setup.reactor, setup.timeout)
        servers = _result_servers(OfflineRedisBackend(setup.app), setup.reactor)
        requests.use(
            Connection(servers, requests, setup.reactor, backoff, open_link, purpose="results by id")
        )
        return RedisStore(setup.app, setup.max_reply_bytes).use(requests)


def _brokers(kombu: Any, reactor: Any) -> Servers:
    """Those of a kombu connection, which is not connected."""
    return Servers(
        lambda: offline_channel(kombu, ChannelTape()).pool,
        lambda: switch_to_next(kombu),
        reactor,
        "broker_url",
    )


def _result_servers(backend: OfflineRedisBackend, reactor: Any) -> Servers:
    return Servers(lambda: backend.pool, lambda: None, reactor, "result_backend")
