"""The native AMQP transport: pika's Twisted adapter, no threads.

The data's way: `publisher`, `results` and `subscriber` each keep a `connection`, which asks
`brokers` where to go and makes one `link` after another; `declarer` sees to queues and exchanges.
pika is imported in `link` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.utils.uuid import uuid

from twistedcelery.reply import ReplyDecoder
from twistedcelery.transports.amqp.brokers import Brokers
from twistedcelery.transports.amqp.link import open_link
from twistedcelery.transports.amqp.publisher import AmqpPublisher
from twistedcelery.transports.amqp.results import AmqpResults
from twistedcelery.transports.amqp.subscriber import AmqpSubscriber
from twistedcelery.transports.connection import Connection, backoff

if TYPE_CHECKING:
    from celery import Celery

    from twistedcelery.transports.interface import ReplyReceiver

__all__ = ["make_publisher", "make_results", "make_subscriber"]


def make_publisher(app: Celery, reactor: Any, publish_timeout: float) -> AmqpPublisher:
    """Publish to ``broker_write_url``. Connects at the first message.

    :param publish_timeout: seconds for the broker to take a message, connecting included
    """
    publisher = AmqpPublisher(reactor, publish_timeout)
    brokers = Brokers(app.connection_for_write(), reactor, app.conf.broker_heartbeat or 0)
    return publisher.use(Connection(brokers, publisher, reactor, backoff, open_link))


def make_results(app: Celery, reactor: Any, receiver: ReplyReceiver) -> AmqpResults:
    """Consume replies from ``broker_read_url``. Connects when the first task is watched."""
    quorum = app.conf.task_default_queue_type == "quorum"
    results = AmqpResults(reactor, receiver, ReplyDecoder(app), uuid(), quorum)
    brokers = Brokers(app.connection_for_read(), reactor, app.conf.broker_heartbeat or 0)
    return results.use(Connection(brokers, results, reactor, backoff, open_link))


def make_subscriber(app: Celery, reactor: Any, timeout: float) -> AmqpSubscriber:
    """Consume further queues from ``broker_read_url``. Connects when the first one is wanted.

    :param timeout: seconds to wait for a connection, where an answer is waited for
    """
    subscriber = AmqpSubscriber(reactor, timeout)
    brokers = Brokers(app.connection_for_read(), reactor, app.conf.broker_heartbeat or 0)
    return subscriber.use(Connection(brokers, subscriber, reactor, backoff, open_link))
