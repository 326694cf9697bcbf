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
from twistedcelery.transports.interface import Transport
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
    from twistedcelery.transports.interface import ReplyReceiver, Setup, SubscriptionUser

__all__ = ["RedisTransport"]


class RedisTransport(Transport):
    """Redis, behind Sentinel too, as a broker and as a result backend."""

    def publisher(self, setup: Setup) -> RedisPublisher:
        """Publish to ``broker_write_url``. Connects at the first message."""
        kombu = setup.app.connection_for_write()
        reactor = setup.reactor
        publisher = RedisPublisher(reactor, setup.timeout, lambda: Recorder(kombu))
        return publisher.use(Connection(_brokers(kombu, reactor), publisher, reactor, backoff, open_link))

    def subscriber(self, setup: Setup) -> RedisSubscriber:
        """Consume from ``broker_read_url``. Connects when it is used."""
        reactor = setup.reactor
        kombu = setup.app.connection_for_read()
        requests = Requests(reactor, setup.timeout)
        requests.use(Connection(_brokers(kombu, reactor), requests, reactor, backoff, open_link))

        def make_intake(queue: Any, user: SubscriptionUser) -> Intake[Any]:
            # One of its own, which turns to the next of several brokers for this connection alone.
            kombu = setup.app.connection_for_read()
            fanout = is_fanout(queue)
            intake_class: type[Intake[Any]] = FanoutIntake if fanout else ListIntake
            intake = intake_class(reactor, queue, user, lambda: QueueReader(kombu, queue), requests)
            opener: Any = open_subscriber if fanout else open_link
            return intake.use(Connection(_brokers(kombu, reactor), intake, reactor, backoff, opener))

        return RedisSubscriber(requests, make_intake, lambda queue: QueueReader(kombu, queue))

    def results(self, setup: Setup, receiver: ReplyReceiver) -> RedisResults:
        """Follow the states in ``result_backend``. Connects when the first task is watched."""
        reactor = setup.reactor
        states = StoredStates(setup.app)
        results = RedisResults(reactor, receiver, states)
        servers = Servers(lambda: states.pool, lambda: None, reactor, "result_backend")
        subscriptions = Subscriptions(results)
        subscriptions.use(Connection(servers, subscriptions, reactor, backoff, open_subscriber))
        reads = Reads(reactor, results.found)
        reads.use(Connection(servers, reads, reactor, backoff, open_link))
        return results.use(subscriptions, reads)

    def store(self, setup: Setup) -> RedisStore:
        """Ask ``result_backend``. Connects at the first question."""
        states = StoredStates(setup.app)
        requests = Requests(setup.reactor, setup.timeout)
        servers = Servers(lambda: states.pool, lambda: None, setup.reactor, "result_backend")
        requests.use(Connection(servers, requests, setup.reactor, backoff, open_link))
        return RedisStore(setup.app, states).use(requests)


def _brokers(kombu: Any, reactor: Any) -> Servers:
    """Those of a kombu connection, which is not connected."""
    return Servers(lambda: Recorder(kombu).pool, lambda: switch_to_next(kombu), reactor, "broker_url")
