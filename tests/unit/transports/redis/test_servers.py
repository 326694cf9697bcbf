"""Where Redis is, of Celery's settings in all their forms."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.testing import MemoryReactorClock

from tests.real.transports.parts import descriptors
from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.connection import Server
from twistedcelery.transports.interface import Setup
from twistedcelery.transports.redis import RedisTransport
from twistedcelery.transports.redis.channel import ChannelTape, offline_channel


def servers(half: str, url: str, **settings: Any) -> Any:
    """The list that a publisher or a result source has."""
    app = Celery("unit", set_as_current=False)
    app.conf.update({"broker_url" if half == "broker" else "result_backend": url, **settings})
    setup = Setup(app, MemoryReactorClock(), 1)
    if half == "broker":
        return RedisTransport().publisher(setup)._connection._servers
    return RedisTransport().results(setup, object())._subscriptions._connection._servers


def current(half: str, url: str, **settings: Any) -> Server:
    return servers(half, url, **settings).current()


@pytest.mark.parametrize("half", ["broker", "backend"])
@pytest.mark.parametrize(
    ("url", "address", "password"),
    [
        ("redis://h", "redis://h:6379/0", None),
        ("redis://h:1/3", "redis://h:1/3", None),
        ("redis://:p%40ss@h:1/3", "redis://h:1/3", "p@ss"),
        ("redis://me:p%40ss@h:1/3", "redis://me@h:1/3", "p@ss"),
        ("rediss://h:1/3?ssl_cert_reqs=required", "rediss://h:1/3", None),
        ("rediss://h:1/3?ssl_cert_reqs=CERT_NONE", "rediss://h:1/3", None),
        ("redis+socket:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0", None),
        (
            "redis+socket://me:pw@/run/r.sock?virtual_host=2",
            "redis+socket://me@/run/r.sock?virtual_host=2",
            "pw",
        ),
    ],
)
def test_urls(half, url, address, password):
    """Both halves read them alike; passwords are not in what people read."""
    server = current(half, url)
    assert server.address == address
    assert server.parameters.password == password
    is_socket = isinstance(server.endpoint, UNIXClientEndpoint)
    assert is_socket == url.startswith("redis+socket")
    assert isinstance(server.endpoint, HostnameEndpoint) == url.startswith("redis:")


def test_settings_beside_the_url():
    """Transport options of the broker, and ``redis_*`` settings of the result backend."""
    options = {"client_name": "ours", "health_check_interval": 5, "socket_connect_timeout": 1.5}
    brokers = servers("broker", "redis://h", broker_transport_options=options)
    assert brokers.current().parameters.name == "ours"
    assert brokers.current().parameters.check_interval == 5
    assert brokers.connect_timeout == 1.5
    backend = current(
        "backend", "redis://h", redis_password="pw", redis_username="me", redis_client_name="ours", redis_db=4
    )
    assert (backend.parameters.username, backend.parameters.password) == ("me", "pw")
    assert backend.parameters.name == "ours"
    assert backend.parameters.check_interval == 25


def test_failover_lists():
    """Each URL stands for itself: what one leaves out is not what the one before it said."""
    brokers = servers("broker", "redis://a:1/3;redis://b;redis://c/2")
    addresses = []
    for _ in range(4):
        addresses.append(brokers.current().address)
        brokers.advance()
    assert addresses == ["redis://a:1/3", "redis://b:6379/0", "redis://c:6379/2", "redis://a:1/3"]


@pytest.mark.parametrize(
    ("half", "url", "settings", "complaint"),
    [
        ("broker", "redis://h/name", {}, "broker_url cannot be used: Database is int"),
        ("backend", "redis://h/name", {}, "result_backend cannot be used: invalid literal"),
        ("backend", "rediss://h", {}, "ssl_cert_reqs"),
        ("backend", "redis://h?ssl_cert_reqs=none", {}, "rediss://"),
        (
            "broker",
            "redis://h",
            {"broker_use_ssl": {"ssl_cert_reqs": "required", "ssl_ca_path": "/certificates"}},
            r'ca_path; transport="threads" does',
        ),
        (
            "backend",
            "redis://h",
            {"redis_backend_use_ssl": {"ssl_cert_reqs": "required", "ssl_ca_certs": "/no/such/file"}},
            "result_backend names a file that cannot be used",
        ),
    ],
)
def test_settings_that_cannot_be_used(half, url, settings, complaint):
    """Are told with the setting's name, when they are needed."""
    with pytest.raises(ConfigurationError, match=complaint):
        current(half, url, **settings)


def test_an_offline_channel_holds_nothing():
    """Kombu's own transport opens a poller; this one has no descriptor, and no connection."""
    app = Celery("unit", broker="redis://127.0.0.1:1/0", set_as_current=False)
    before = descriptors()
    channel = offline_channel(app.connection_for_write(), ChannelTape())
    assert channel.pool is not None
    assert descriptors() <= before


@pytest.mark.parametrize("half", ["broker", "backend"])
def test_sentinels(half):
    """All of a list are asked, with arguments of their own; the master is logged in to with the URL's."""
    options = {"master_name": "ours", "sentinel_kwargs": {"password": "theirs", "ssl": True}}
    setting = "broker_transport_options" if half == "broker" else "result_backend_transport_options"
    list_ = servers(half, "sentinel://:pw@a:1/3;sentinel://:pw@b:2/3", **{setting: options})
    server = list_.current()
    assert server.address == "sentinel://a:1,b:2, master ours, database 3"
    assert (server.parameters.password, server.parameters.db, server.parameters.master) == ("pw", 3, True)
    asked = server.endpoint._sentinels
    assert [one.address for one in asked] == ["rediss://a:1/0", "rediss://b:2/0"]
    assert {(one.parameters.password, one.parameters.db) for one in asked} == {("theirs", None)}
    assert not any(one.parameters.master for one in asked)


@pytest.mark.parametrize("half", ["broker", "backend"])
def test_sentinels_without_a_name_for_the_master(half):
    """It is told which option is missing."""
    with pytest.raises(ConfigurationError, match="master_name"):
        current(half, "sentinel://h")
