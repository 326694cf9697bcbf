"""Foreign exceptions, and the passwords in their texts."""

from __future__ import annotations

import amqp.exceptions
import pytest
from celery import Celery

from twistedcelery.errors import BrokerAccessRefused, BrokerUnavailable, PublishRejected
from twistedcelery.transports.threads.failures import Redactor, connect_error, declare_error, never_connected


def redactor(**config):
    app = Celery(set_as_current=False)
    app.conf.update(config)
    return Redactor(app)


@pytest.mark.parametrize(
    "config",
    [
        {"broker_url": "amqp://me:pa%40ss:word@host/"},
        {"broker_url": "amqp://a:one@host1/;amqp://me:pa%40ss:word@host2/"},
        {"broker_url": ["amqp://a:one@host1/", "amqp://me:pa%40ss:word@host2/"]},
        {"broker_write_url": "amqp://me:pa%40ss:word@host/"},
        {"result_backend": "db+postgresql://me:pa%40ss:word@host/results"},
        {"broker_password": "pa@ss:word"},
    ],
)
def test_passwords_are_taken_out(config):
    """Wherever the password was set, and however it is quoted, it is not in the text."""
    text = redactor(**config).text(
        OSError("cannot reach amqp://me:pa%40ss:word@host/ nor log in with 'pa@ss:word'")
    )
    assert "ss:word" not in text
    assert text.startswith("OSError: cannot reach amqp://me:**")


def test_a_short_password_leaves_words_alone():
    """A password that is part of innocent words is taken out of URLs only."""
    text = redactor(broker_url="amqp://me:a@host/").redact("a table at amqp://me:a@host/")
    assert text == "a table at amqp://me:**@host/"


def test_a_cause_with_a_password_is_replaced():
    """Tracebacks show causes: one whose text holds a password is not chained."""
    hides = redactor(broker_url="amqp://me:secret@host/")
    fine, leaky = OSError("down"), OSError("amqp://me:secret@host/")
    assert hides.cause(fine) is fine
    assert "secret" not in str(hides.cause(leaky))


def test_refusals_are_told_from_absence():
    """A broker that answers and refuses is another error than one that does not answer."""
    nothing = redactor()
    for refusal in (
        amqp.exceptions.AccessRefused("(403) ACCESS_REFUSED"),
        amqp.exceptions.NotAllowed("(530) vhost not found"),
    ):
        assert type(connect_error(refusal, nothing)) is BrokerAccessRefused
    assert type(connect_error(ConnectionRefusedError("down"), nothing)) is BrokerUnavailable


def test_a_limit_of_connections_passes():
    """It is not taken for a refused virtual host, though RabbitMQ's code is the same."""
    words = "access to vhost 'v' refused for user 'u': connection limit (0) is reached"
    error = connect_error(amqp.exceptions.NotAllowed(words), redactor())
    assert type(error) is BrokerUnavailable


def test_a_refused_declaration_is_final_and_a_lost_connection_is_not():
    """Declaring fails for good when the broker says so, and is tried again otherwise."""

    class Broker:
        channel_errors = (amqp.exceptions.ChannelError,)
        connection_errors = (OSError,)

    nothing = redactor()
    refused = amqp.exceptions.PreconditionFailed("inequivalent arg")
    assert type(declare_error(refused, Broker(), nothing)) is PublishRejected
    assert type(declare_error(ConnectionResetError("gone"), Broker(), nothing)) is BrokerUnavailable
    # kombu's filesystem transport, while another process writes the table of exchanges.
    assert type(declare_error(ValueError("Expecting value"), Broker(), nothing)) is BrokerUnavailable


def test_an_error_from_connecting_means_that_nothing_was_sent():
    """Only a refused connection with no broken one behind it is proof that nothing went out."""
    refused = OSError("cannot connect")
    refused.__cause__ = ConnectionRefusedError()
    assert never_connected(refused)
    again = OSError("cannot connect again")
    again.__cause__ = ConnectionRefusedError()
    again.__cause__.__context__ = ConnectionResetError("while sending")
    assert not never_connected(again)
    assert not never_connected(OSError("what?"))
