"""Which transport serves which configuration."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from celery import Celery
from twisted.internet.task import Clock

from tests.support.process import ROOT
from twistedcelery.errors import ConfigurationError
from twistedcelery.transports import registry
from twistedcelery.transports.interface import Setup, Transport
from twistedcelery.transports.registry import find


def chosen(transport="auto", **config):
    app = Celery(set_as_current=False)
    app.conf.update(config)
    found, setup = find(app, transport), Setup(app, Clock(), 1)
    return type(found.publisher(setup)).__name__, type(found.results(setup, object())).__name__


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"broker_url": "amqp://", "result_backend": "rpc://"}, ("AmqpPublisher", "AmqpResults")),
        ({"broker_url": "pyamqp://h", "result_backend": "rpc"}, ("AmqpPublisher", "AmqpResults")),
        ({"broker_url": "amqps://h", "result_backend": "rpc://"}, ("AmqpPublisher", "AmqpResults")),
        ({"broker_url": "amqp://a;amqp://b", "result_backend": "rpc://"}, ("AmqpPublisher", "AmqpResults")),
        (
            {"broker_url": ["amqp://a", "amqp://b"], "result_backend": "rpc://"},
            ("AmqpPublisher", "AmqpResults"),
        ),
        ({"result_backend": "rpc://"}, ("AmqpPublisher", "AmqpResults")),
        ({"broker_url": "amqp://", "result_backend": "redis://"}, ("AmqpPublisher", "RedisResults")),
        ({"broker_url": "amqp://", "result_backend": "db+sqlite://"}, ("AmqpPublisher", "ThreadedResults")),
        ({"broker_url": "amqp://"}, ("AmqpPublisher", "NoResults")),
        ({"broker_url": "amqp://", "result_backend": "disabled://"}, ("AmqpPublisher", "NoResults")),
        ({"broker_url": "redis://", "result_backend": "redis://"}, ("RedisPublisher", "RedisResults")),
        (
            {"broker_url": "rediss://h?ssl_cert_reqs=required", "result_backend": "redis+socket:///s"},
            ("RedisPublisher", "RedisResults"),
        ),
        ({"broker_url": "redis://", "result_backend": "rpc://"}, ("RedisPublisher", "ThreadedResults")),
        ({"broker_url": "redis://", "result_backend": "file:///tmp"}, ("RedisPublisher", "ThreadedResults")),
        (
            {"broker_url": "sentinel://h", "result_backend": "sentinel://h"},
            ("RedisPublisher", "RedisResults"),
        ),
        (
            {
                "broker_url": "redis://h?credential_provider=a.B",
                "result_backend": "redis://h",
                "redis_backend_credential_provider": "a.B",
            },
            ("ThreadedPublisher", "ThreadedResults"),
        ),
        ({"broker_url": "memory://", "result_backend": "rpc://"}, ("ThreadedPublisher", "ThreadedResults")),
        (
            {"broker_url": "sqla+sqlite://", "result_backend": "cache+memory://"},
            ("ThreadedPublisher", "ThreadedResults"),
        ),
        (
            {"broker_write_url": "redis://", "broker_read_url": "amqp://", "result_backend": "rpc://"},
            ("RedisPublisher", "AmqpResults"),
        ),
        ({"broker_url": "hostname", "broker_transport": "redis"}, ("RedisPublisher", "NoResults")),
    ],
)
def test_native_where_there_is_a_native_transport(config, expected):
    """AMQP with ``rpc://``, and Redis, are native; the rest is for threads; nothing is nothing."""
    assert chosen(**config) == expected


def test_redis_without_its_extra_is_for_the_threads(monkeypatch):
    """Without hiredis redis-py alone does for the threads."""
    monkeypatch.setattr("twistedcelery.transports.registry.find_spec", lambda name: name == "redis" or None)
    config = {"broker_url": "redis://", "result_backend": "redis://"}
    assert chosen(**config) == ("ThreadedPublisher", "ThreadedResults")


def test_threads_can_be_asked_for():
    """``transport="threads"`` uses them for AMQP as well."""
    config = {"broker_url": "amqp://", "result_backend": "rpc://"}
    assert chosen("threads", **config) == ("ThreadedPublisher", "ThreadedResults")


@pytest.mark.parametrize(
    ("backend", "transport", "expected"),
    [
        ("redis://", "auto", "RedisStore"),
        ("rediss://h?ssl_cert_reqs=required", "auto", "RedisStore"),
        ("redis://", "threads", "ThreadedStore"),
        ("redis://h?credential_provider=a.B", "auto", "ThreadedStore"),
        ("db+sqlite://", "auto", "ThreadedStore"),
        ("rpc://", "auto", "NoneType"),
        (None, "auto", "NoneType"),
    ],
)
def test_the_store_is_chosen_as_results_are(backend, transport, expected):
    """Natively where results are, unless threads are asked for; nowhere where nothing is kept."""
    app = Celery(backend=backend, set_as_current=False)
    store = find(app, transport).store(Setup(app, Clock(), 1))
    assert type(store).__name__ == expected


@pytest.mark.parametrize(
    ("broker", "transport", "expected"),
    [
        ({"broker_url": "amqp://"}, "auto", "AmqpSubscriber"),
        ({"broker_url": "redis://"}, "auto", "RedisSubscriber"),
        ({"broker_url": "rediss://h;rediss://i"}, "auto", "RedisSubscriber"),
        ({"broker_write_url": "amqp://", "broker_read_url": "redis://"}, "auto", "RedisSubscriber"),
        ({"broker_url": "redis://h?credential_provider=a.B"}, "auto", "ThreadedSubscriber"),
        ({"broker_url": "redis://"}, "threads", "ThreadedSubscriber"),
        ({"broker_url": "memory://"}, "auto", "ThreadedSubscriber"),
    ],
)
def test_the_subscriber_is_chosen_by_where_is_read(broker, transport, expected):
    """Natively over AMQP and Redis, unless threads are asked for."""
    app = Celery(set_as_current=False)
    app.conf.update(broker)
    subscriber = find(app, transport).subscriber(Setup(app, Clock(), 1))
    assert type(subscriber).__name__ == expected


class Own(Transport):
    """A user's transport, as far as it is looked for."""

    def publisher(self, setup):
        return self

    subscriber = store = publisher

    def results(self, setup, receiver):
        return receiver


def test_an_object_is_the_transport():
    """What is given as a transport serves everything, whatever the settings say."""
    own = Own()
    assert find(Celery(broker="amqp://", set_as_current=False), own) is own


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"broker_url": "own://h", "result_backend": "rpc://"}, ("Own", "object")),
        ({"broker_url": "own://h", "result_backend": "redis://"}, ("Own", "RedisResults")),
        ({"broker_url": "redis://h", "result_backend": "rpc://"}, ("RedisPublisher", "ThreadedResults")),
        ({"broker_url": "amqp://h", "result_backend": "own+x://"}, ("AmqpPublisher", "object")),
        (
            {"broker_url": "own://refused", "result_backend": "rpc://"},
            ("ThreadedPublisher", "ThreadedResults"),
        ),
    ],
)
def test_a_registered_transport_is_found_by_its_schemes(monkeypatch, config, expected):
    """Brokers and result backends may be of different kinds, and ``rpc`` goes with the broker."""
    monkeypatch.setattr(registry, "_registrations", list(registry._registrations))
    registry.register(
        Own,
        brokers=["own"],
        backends=["own", "rpc"],
        serves=lambda app, setting: "refused" not in getattr(app.conf, setting),
    )
    assert chosen(**config) == expected


def test_an_unknown_transport_is_refused():
    """The error tells what was found and what is accepted."""
    with pytest.raises(ConfigurationError, match=r"'thread'.*'auto', 'threads'"):
        chosen("thread", broker_url="amqp://")


@pytest.mark.parametrize(
    ("broker", "unwanted"), [("filesystem://", "pika"), ("amqp://", "twistedcelery.transports.threads")]
)
def test_what_is_not_used_is_not_imported(broker, unwanted):
    """A process without AMQP has no pika; one that is native throughout has no threads."""
    program = f"""
import sys
from celery import Celery
from twisted.internet.task import Clock
from twistedcelery import TwistedCelery
from twistedcelery.transports.interface import Setup
from twistedcelery.transports.registry import find
app = Celery(broker={broker!r}, backend="rpc://")
found, setup = find(app, "auto"), Setup(app, Clock(), 1)
found.publisher(setup), found.results(setup, object()), found.store(setup)
sys.exit({unwanted!r} in sys.modules)
"""
    path = f"{ROOT}:{ROOT}/component"
    finished = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, check=False)
    assert finished.returncode == 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"broker_url": "ampq://h"}, "unknown scheme 'ampq'; did you mean 'amqp'?"),
        ({"broker_write_url": "redsi://h", "broker_read_url": "redis://h"}, "did you mean 'redis'?"),
        ({"broker_url": "zzz://h"}, "unknown scheme 'zzz'; kombu has "),
        (
            {"result_backend": "rdis://h"},
            "result_backend has the unknown scheme 'rdis'; did you mean 'redis'?",
        ),
        ({"result_backend": "db+zzz://h"}, None),
        ({"result_backend": "dbb+sqlite:///x"}, "the unknown scheme 'dbb'; did you mean 'db'?"),
        ({"result_backend": "zzz"}, "the unknown scheme 'zzz'; Celery has "),
    ],
)
def test_a_misspelt_scheme_is_named(config, expected):
    """The error says what was found, and what was meant."""
    if expected is None:
        chosen(**config)
    else:
        with pytest.raises(ConfigurationError, match=re.escape(expected)):
            chosen(**config)


@pytest.mark.parametrize("config", [{"broker_url": "redis://h"}, {"result_backend": "rediss://h"}])
@pytest.mark.parametrize("transport", ["auto", "threads"])
def test_redis_without_redis_py_says_what_to_install(monkeypatch, config, transport):
    """Kombu and Celery would fail with an attribute of ``None``."""
    monkeypatch.setattr("twistedcelery.transports.registry.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'twistedcelery\[redis\]'"):
        chosen(transport, **config)
