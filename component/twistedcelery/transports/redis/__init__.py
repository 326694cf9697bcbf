"""The native Redis transport: txredisapi's protocol, no threads. Needs the extra ``redis``.

`publisher` keeps one `twistedcelery.transports.connection`, `results` two: `subscriptions` and
`reads`; `store` and `subscriber` have one each for their `requests`, and each queue that is
subscribed to has one, its `intake`. `servers` says where to go, by way of `sentinel` where there is
one, and `link` is one live connection; txredisapi is imported in `link` alone. `recorder`, `reader`
and `stored` are kombu's and Celery's own code for what is on Redis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twistedcelery.transports.connection import Connection, backoff
from twistedcelery.transports.failover import switch_to_next
from twistedcelery.transports.redis.intake import FanoutIntake, Intake, ListIntake
from twistedcelery.transports.redis.link import open_link, open_subscriber
from twistedcelery.transports.redis.publisher import RedisPublisher
from twistedcelery.transports.redis.reader import QueueReader, is_fanout
from twistedcelery.transports.redis.reads import Reads
from twistedcelery.transports.redis.recorder import Recorder
from twistedcelery.transports.redis.requests import Requests
from twistedcelery.transports.redis.results import RedisResults
from twistedcelery.transports.redis.servers import Servers
from twistedcelery.transports.redis.store import RedisStore
from twistedcelery.transports.redis.stored import StoredStates
from twistedcelery.transports.redis.subscriber import RedisSubscriber
from twistedcelery.transports.redis.subscriptions import Subscriptions

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.transports.interface import ReplyReceiver, SubscriptionUser

__all__ = ["make_publisher", "make_results", "make_store", "make_subscriber"]


def make_publisher(app: Celery, reactor: Any, publish_timeout: float) -> RedisPublisher:
    """Publish to ``broker_write_url``. Connects at the first message.

    :param publish_timeout: seconds for Redis to take a message, connecting included
    """
    kombu = app.connection_for_write()
    publisher = RedisPublisher(reactor, publish_timeout, lambda: Recorder(kombu))
    return publisher.use(Connection(_brokers(kombu, reactor), publisher, reactor, backoff, open_link))


def make_results(app: Celery, reactor: Any, receiver: ReplyReceiver) -> RedisResults:
    """Follow the states in ``result_backend``. Connects when the first task is watched."""
    states = StoredStates(app)
    results = RedisResults(reactor, receiver, states)
    servers = Servers(lambda: states.pool, lambda: None, reactor, "result_backend")
    subscriptions = Subscriptions(results)
    subscriptions.use(Connection(servers, subscriptions, reactor, backoff, open_subscriber))
    reads = Reads(reactor, results.found)
    reads.use(Connection(servers, reads, reactor, backoff, open_link))
    return results.use(subscriptions, reads)


def make_store(app: Celery, reactor: Any, timeout: float) -> RedisStore:
    """Ask ``result_backend``. Connects at the first question.

    :param timeout: seconds to wait for an answer, connecting included
    """
    states = StoredStates(app)
    requests = Requests(reactor, timeout)
    servers = Servers(lambda: states.pool, lambda: None, reactor, "result_backend")
    requests.use(Connection(servers, requests, reactor, backoff, open_link))
    return RedisStore(app, states).use(requests)


def make_subscriber(app: Celery, reactor: Any, timeout: float) -> RedisSubscriber:
    """Consume from ``broker_read_url``. Connects when it is used.

    :param timeout: seconds to wait for an answer where one is waited for, connecting included
    """
    kombu = app.connection_for_read()
    requests = Requests(reactor, timeout)
    requests.use(Connection(_brokers(kombu, reactor), requests, reactor, backoff, open_link))

    def make_intake(queue: Any, user: SubscriptionUser) -> Intake[Any]:
        # One of its own, which turns to the next of several brokers for this connection alone.
        kombu = app.connection_for_read()
        fanout = is_fanout(queue)
        intake_class: type[Intake[Any]] = FanoutIntake if fanout else ListIntake
        intake = intake_class(reactor, queue, user, lambda: QueueReader(kombu, queue), requests)
        opener: Any = open_subscriber if fanout else open_link
        return intake.use(Connection(_brokers(kombu, reactor), intake, reactor, backoff, opener))

    return RedisSubscriber(requests, make_intake, lambda queue: QueueReader(kombu, queue))


def _brokers(kombu: Any, reactor: Any) -> Servers:
    """Those of a kombu connection, which is not connected."""
    return Servers(lambda: Recorder(kombu).pool, lambda: switch_to_next(kombu), reactor, "broker_url")
