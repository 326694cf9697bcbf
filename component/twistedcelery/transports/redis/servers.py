"""Turns Celery's settings, as redis-py reads them, into endpoints and handshake parameters.

kombu's transport and Celery's result backend each make a redis-py connection pool of URLs, query
strings, transport options and ``redis_*`` settings. The pool is read; it is never connected.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from redis import SSLConnection, UnixDomainSocketConnection
from redis.sentinel import SentinelConnectionPool
from twisted.internet import endpoints

from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.connection import Server
from twistedcelery.transports.redis.link import RedisParameters
from twistedcelery.transports.redis.sentinel import MasterEndpoint
from twistedcelery.transports.tls import client_tls

__all__ = ["Servers"]

#: Seconds between checks of a connection, where no setting says otherwise.
CHECK_INTERVAL = 25.0

#: Seconds for one attempt to connect, where no setting says otherwise.
CONNECT_TIMEOUT = 4.0

#: What redis-py can do with TLS and `client_tls` cannot: attributes of its connections.
_UNSUPPORTED = (
    "ca_path",
    "ca_data",
    "certificate_password",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
    "ssl_min_version",
    "ssl_ciphers",
)


class Servers:
    """The servers that one setting names, in the order in which to try them.

    :param make_pool: makes a redis-py connection pool for the server to try now
    :param turn: turns to the next server, and returns how many there are
    :param reactor: for endpoints
    :param setting: the setting's name, for errors
    """

    def __init__(
        self, make_pool: Callable[[], Any], turn: Callable[[], int | None], reactor: Any, setting: str
    ) -> None:
        self._make_pool = make_pool
        self._turn = turn
        self._reactor = reactor
        self._setting = setting
        self.connect_timeout = CONNECT_TIMEOUT

    def current(self) -> Server:
        """The server to try now.

        :raises ConfigurationError: for settings that redis-py or we cannot use
        """
        try:
            pool = self._make_pool()
            # redis-py's reading of all options; it connects when it is first used, and it is not.
            read: Any = pool.connection_class(**pool.connection_kwargs)
        except Exception as problem:
            # kombu, Celery and redis-py check their settings with errors of all kinds.
            raise ConfigurationError(f"{self._setting} cannot be used: {problem}") from problem
        self.connect_timeout = float(getattr(read, "socket_connect_timeout", None) or CONNECT_TIMEOUT)
        if isinstance(pool, SentinelConnectionPool):
            return self._master(pool, read)
        return Server(self._endpoint(read), _parameters(read), _address(read))

    def advance(self) -> int:
        """Turn to the next server, if there are several."""
        return self._turn() or 1

    def _master(self, pool: Any, read: Any) -> Server:
        manager, name = pool.sentinel_manager, pool.service_name
        if not name:
            raise ConfigurationError(
                f"{self._setting} cannot be used: its transport options need master_name"
            )
        sentinels = []
        for client in manager.sentinels:
            of = client.connection_pool
            asked = of.connection_class(**of.connection_kwargs)
            # A sentinel has no databases.
            sentinels.append(
                Server(self._endpoint(asked), replace(_parameters(asked), db=None), _address(asked))
            )
        # mypy sees no classes behind zope interfaces.
        endpoint: Any = MasterEndpoint(
            sentinels,
            name,
            lambda state: bool(manager.check_master_state(state, name)),
            lambda host, port: self._endpoint(read, host, port),
            self._reactor,
            # All of them are asked within one attempt.
            self.connect_timeout / (len(sentinels) + 1),
        )
        where = ",".join(one.address.partition("://")[2].rpartition("/")[0] for one in sentinels)
        address = f"sentinel://{where}, master {name}, database {read.db}"
        return Server(endpoint, replace(_parameters(read), master=True), address)

    def _endpoint(self, read: Any, host: str | None = None, port: int | None = None) -> Any:
        """:param host: where it is not the one that was read"""
        if isinstance(read, UnixDomainSocketConnection):
            return endpoints.UNIXClientEndpoint(self._reactor, read.path)
        host, port = host or read.host, int(port or read.port)
        endpoint: Any = endpoints.HostnameEndpoint(self._reactor, host, port)
        if not isinstance(read, SSLConnection):
            return endpoint
        unsupported = [name for name in _UNSUPPORTED if getattr(read, name, None)]
        if unsupported:
            raise ConfigurationError(
                f"{self._setting}: the native Redis transport knows no {', '.join(unsupported)}; "
                'transport="threads" does'
            )
        tls = client_tls(
            host,
            setting=self._setting,
            ca_certs=read.ca_certs,
            certfile=read.certfile,
            keyfile=read.keyfile,
            verify=read.cert_reqs != ssl.CERT_NONE,
            check_hostname=bool(read.check_hostname),
        )
        return endpoints.wrapClientTLS(tls, endpoint)


def _parameters(read: Any) -> RedisParameters:
    return RedisParameters(
        username=read.username or None,
        password=read.password or None,
        db=int(read.db),
        name=read.client_name,
        check_interval=float(read.health_check_interval or CHECK_INTERVAL),
    )


def _address(read: Any) -> str:
    user = f"{read.username}@" if read.username else ""
    if isinstance(read, UnixDomainSocketConnection):
        return f"redis+socket://{user}{read.path}?virtual_host={read.db}"
    scheme = "rediss" if isinstance(read, SSLConnection) else "redis"
    return f"{scheme}://{user}{read.host}:{read.port}/{read.db}"
