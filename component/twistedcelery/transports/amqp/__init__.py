"""The native AMQP transport: pika's Twisted adapter, no threads.

`publisher`, `results` and `subscriber` each keep a `twistedcelery.transports.connection`, which asks
`brokers` where to connect and makes one `link` after another; `declarer` declares queues and
exchanges, and `silence` detects a broker that no longer answers. pika is imported in `link` alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kombu.utils.uuid import uuid

from twistedcelery.transports.amqp.brokers import Brokers
from twistedcelery.transports.amqp.link import AmqpLink, open_link
from twistedcelery.transports.amqp.publisher import AmqpPublisher
from twistedcelery.transports.amqp.results import AmqpResults
from twistedcelery.transports.amqp.subscriber import AmqpSubscriber
from twistedcelery.transports.connection import Connection, backoff
from twistedcelery.transports.decoding import ReplyDecoder
from twistedcelery.transports.interface import Transport

if TYPE_CHECKING:
    from twistedcelery.transports.interface import ReplyReceiver, Setup

__all__ = ["AmqpTransport"]


class AmqpTransport(Transport):
    """AMQP 0-9-1, with results over ``rpc://``. Each part has a connection of its own."""

    def publisher(self, setup: Setup) -> AmqpPublisher:
        """Publish to ``broker_write_url``. Connects at the first message."""
        publisher = AmqpPublisher(setup.reactor, setup.timeout)
        return publisher.use(_connection(setup, setup.app.connection_for_write(), publisher, "publishing"))

    def subscriber(self, setup: Setup) -> AmqpSubscriber:
        """Consume further queues from ``broker_read_url``. Connects when the first one is wanted."""
        subscriber = AmqpSubscriber(setup.reactor, setup.timeout)
        return subscriber.use(
            _connection(setup, setup.app.connection_for_read(), subscriber, "events and replies")
        )

    def results(self, setup: Setup, receiver: ReplyReceiver) -> AmqpResults:
        """Consume replies from ``broker_read_url``. Connects when the first task is watched."""
        quorum = setup.app.conf.task_default_queue_type == "quorum"
        decoder = ReplyDecoder(setup.app, setup.max_reply_bytes)
        results = AmqpResults(setup.reactor, receiver, decoder, uuid(), quorum)
        return results.use(_connection(setup, setup.app.connection_for_read(), results, "results"))

    def store(self, setup: Setup) -> None:
        """``rpc://`` keeps no results: each is a message."""


def _connection(setup: Setup, kombu: Any, user: Any, purpose: str) -> Connection[AmqpLink]:
    """Keep a link for a part of the transport.

    :param kombu: has the brokers' URLs; it is never connected
    """
    brokers = Brokers(kombu, setup.reactor, setup.app.conf.broker_heartbeat or 0)
    opener = partial(open_link, answer_time=setup.timeout)
    return Connection(brokers, user, setup.reactor, backoff, opener, purpose=purpose)
