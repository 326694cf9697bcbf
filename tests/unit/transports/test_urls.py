"""Passwords that cut a URL."""

from __future__ import annotations

import pytest
from celery import Celery
from twisted.internet.task import Clock

import twistedcelery
from tests.support.outcomes import error_of
from twistedcelery.transports.urls import check_urls


@pytest.mark.parametrize("setting", ["broker_url", "broker_read_url", "broker_write_url", "result_backend"])
@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:abc/defg@host/v",
        "amqp://me:abc#defg@host/v",
        "amqp://me:abc?defg@host/v",
        "amqp://me:12/defg@host/v",
        "redis://:abc/defg@host/0",
        "redis://:12#defg@host/0",
        "amqp://host/v;amqp://me:abc/defg@other/v",
        ["amqp://host/v", "amqp://me:abc/defg@other/v"],
        "db+postgresql://me:abc/defg@host/results",
    ],
)
def test_no_part_of_a_password_is_shown(setting, url):
    """The call fails at once, and its error names the setting alone."""
    app = Celery("unit", broker="amqp://", backend="rpc://", set_as_current=False)
    app.conf[setting] = url
    tx_app = twistedcelery.TwistedCelery(app, reactor=Clock())
    error = error_of(tx_app.send_task("any"), twistedcelery.ConfigurationError)
    assert setting in str(error)
    for part in ("abc", "12", "defg"):
        assert part not in str(error)
    assert error.__cause__ is None


def test_checked_before_any_call():
    """The check that a bridge makes at its start refuses such a URL, too."""
    app = Celery("unit", broker="amqp://me:abc/defg@host/v", backend="rpc://", set_as_current=False)
    with pytest.raises(twistedcelery.ConfigurationError, match="broker_url") as refused:
        twistedcelery.TwistedCelery.check(app)
    assert "abc" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:ab%2Fc@host:5672/v",
        "amqp://me:p@host/a@b",
        "redis://host:6379/0?client_name=a@b",
        "mongodb://one:27017,two:27017/db",
        "sqla+sqlite:////tmp/a@b:c.sqlite",
        "sentinel://:26379;sentinel://:26380",
        "redis://[::1]:6379/0",
        "memory://",
        "rpc://",
        None,
    ],
)
def test_urls_that_are_good(url):
    """They are let through."""
    check_urls({"broker_url": url})
