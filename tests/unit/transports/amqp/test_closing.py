"""Which message RabbitMQ closed the channel for."""

from __future__ import annotations

import pytest

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.transports.amqp.closing import max_size, suspects

TOO_LARGE = "406 PRECONDITION_FAILED - message size 12 is larger than {} 10"


def message(exchange="", size=1):
    return OutgoingMessage(
        exchange=exchange, routing_key="celery", body=b"x" * size, properties={}, headers={}, mandatory=True
    )


@pytest.mark.parametrize("limit", ["max size", "configured max size"])
def test_the_size_that_the_broker_names(limit):
    """Both of RabbitMQ's forms are understood."""
    assert max_size(TOO_LARGE.format(limit)) == 10
    assert max_size("404 NOT_FOUND - no exchange 'x' in vhost '/'") is None


@pytest.mark.parametrize(
    ("words", "sent", "places"),
    [
        # The first that is too large, and no other.
        (TOO_LARGE.format("max size"), [(" ", 1), (" ", 12), (" ", 1), (" ", 12)], range(1, 2)),
        # All from the first to the last to an exchange.
        ("404 NOT_FOUND - no exchange 'x' in vhost '/'", [("", 1), ("x", 1), ("", 1)], range(1, 2)),
        (
            "403 ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'",
            [("x", 1), ("", 1), ("x", 1), ("", 1)],
            range(3),
        ),
        (
            "403 ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'u'",
            [("x", 1), ("", 1)],
            range(1, 2),
        ),
        # All of them, where what the broker names is not among them, or where it names nothing.
        (TOO_LARGE.format("max size"), [("", 1), ("", 1)], range(2)),
        ("404 NOT_FOUND - no exchange 'y' in vhost '/'", [("", 1), ("x", 1)], range(2)),
        ("406 PRECONDITION_FAILED - something new", [("", 1), ("x", 1)], range(2)),
        ("406 PRECONDITION_FAILED - something new", [], range(0)),
    ],
)
def test_the_messages_that_may_be_the_one(words, sent, places):
    """As few as what the broker says allows."""
    assert suspects(words, [message(*each) for each in sent]) == places
