"""The native AMQP transport: pika's Twisted adapter, no threads.

`publisher`, `results` and `subscriber` each keep a `twistedcelery.transports.connection`, which asks
`brokers` where to connect and makes one `link` after another; `declarer` declares queues and
exchanges, and `silence` finds out that a broker is gone without a word. pika is imported in `link` alone.
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
        return publisher.use(_connection(setup, setup.app.connection_for_write(), publisher))

    def subscriber(self, setup: Setup) -> AmqpSubscriber:
        """Consume further queues from ``broker_read_url``. Connects when the first one is wanted."""
        subscriber = AmqpSubscriber(setup.reactor, setup.timeout)
        return subscriber.use(_connection(setup, setup.app.connection_for_read(), subscriber))

    def results(self, setup: Setup, receiver: ReplyReceiver) -> AmqpResults:
        """Consume replies from ``broker_read_url``. Connects when the first task is watched."""
        quorum = setup.app.conf.task_default_queue_type == "quorum"
        results = AmqpResults(setup.reactor, receiver, ReplyDecoder(setup.app), uuid(), quorum)
        return results.use(_connection(setup, setup.app.connection_for_read(), results))

    def store(self, setup: Setup) -> None:
        """``rpc://`` keeps no results: each is a message."""


def _connection(setup: Setup, kombu: Any, user: Any) -> Connection[AmqpLink]:
    """Keep a link for a part of the transport.

    :param kombu: has the brokers' URLs; it is never connected
    """
    brokers = Brokers(kombu, setup.reactor, setup.app.conf.broker_heartbeat or 0)
    return Connection(brokers, user, setup.reactor, backoff, partial(open_link, answer_time=setup.timeout))
