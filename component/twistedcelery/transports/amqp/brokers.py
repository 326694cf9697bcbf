"""Turns Celery's settings into endpoints and handshake parameters.

kombu's own ``Connection`` reads the URLs, the ``a;b`` failover lists and the failover strategy;
it is never connected.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twisted.internet import endpoints

from twistedcelery.errors import ConfigurationError
from twistedcelery.transports.connection import Server
from twistedcelery.transports.failover import switch_to_next
from twistedcelery.transports.tls import client_tls

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["AmqpParameters", "Brokers"]


@dataclass(frozen=True, slots=True)
class AmqpParameters:
    """The parameters of the AMQP handshake.

    :ivar heartbeat: seconds; 0 turns heartbeats off
    :ivar external: whether the client's TLS certificate says who it is, and no password
    :ivar client_properties: shown in RabbitMQ's list of connections
    :ivar limits: ``channel_max`` and ``frame_max``, where a setting has them
    """

    userid: str
    password: str
    virtual_host: str
    heartbeat: int
    external: bool = False
    client_properties: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)


#: Options of py-amqp's that pika has under the same names.
_LIMITS = ("channel_max", "frame_max")

#: Options of py-amqp's that change how a client logs in or what it calls back, and that pika lacks.
_UNSUPPORTED = (
    *("authentication", "login_response", "frame_handler", "frame_writer"),
    *("on_open", "on_tune_ok", "on_blocked", "on_unblocked"),
)


class Brokers:
    """The brokers that one setting names, in the order in which to try them.

    :param connection: from ``app.connection_for_write()`` or ``app.connection_for_read()``
    :param reactor: for endpoints
    :param heartbeat: seconds; 0 turns heartbeats off
    :raises ConfigurationError: for a login method or an option that pika does not have
    """

    def __init__(self, connection: Connection, reactor: Any, heartbeat: float) -> None:
        self._connection = connection
        self._reactor = reactor
        # As kombu does, these come before settings of the same name.
        options = self._options = dict(connection.transport_options or {})
        self._heartbeat = int(options.get("heartbeat", heartbeat) or 0)
        self.connect_timeout = float(options.get("connect_timeout", connection.connect_timeout) or 4.0)
        self._login_method = options.get("login_method", connection.login_method) or "PLAIN"
        if self._login_method not in ("PLAIN", "EXTERNAL"):
            raise ConfigurationError(
                f"broker_login_method is {self._login_method!r}; the native AMQP transport knows PLAIN and "
                'EXTERNAL. transport="threads" knows those of py-amqp'
            )
        unsupported = [name for name in _UNSUPPORTED if options.get(name) is not None]
        if unsupported:
            raise ConfigurationError(
                f"broker_transport_options has {', '.join(unsupported)}, which the native AMQP transport "
                'does not know; transport="threads" does'
            )

    def current(self) -> Server:
        """The broker to try now.

        :raises ConfigurationError: when TLS is asked for with files that cannot be used
        """
        connection = self._connection
        defaults = connection.transport.default_connection_params
        host = connection.hostname or defaults["hostname"]
        port = int(connection.port or defaults["port"])
        userid = connection.userid or defaults["userid"]
        password = connection.password or defaults["password"]
        options = self._options
        userid = options.get("userid", userid)
        password = options.get("password", password)
        virtual_host = options.get("virtual_host", connection.virtual_host) or "/"
        tls = options.get("ssl", connection.ssl)
        if host == "localhost":
            # As kombu does: RabbitMQ often listens on IPv4 alone.
            host = "127.0.0.1"
        shown = f"[{host}]" if ":" in host else host
        endpoint: Any = endpoints.HostnameEndpoint(self._reactor, host, port)
        if tls:
            endpoint = endpoints.wrapClientTLS(
                _tls_options(host, tls if isinstance(tls, dict) else {}), endpoint
            )
        return Server(
            endpoint,
            AmqpParameters(
                userid=userid,
                # kombu allows a function here, for passwords that expire.
                password=password() if callable(password) else password,
                virtual_host=virtual_host,
                heartbeat=self._heartbeat,
                external=self._login_method == "EXTERNAL",
                client_properties={
                    "connection_name": "twistedcelery",
                    **(options.get("client_properties") or {}),
                },
                limits={name: int(options[name]) for name in _LIMITS if options.get(name)},
            ),
            f"{'amqps' if tls else 'amqp'}://{userid}@{shown}:{port}/{virtual_host.lstrip('/')}",
        )

    def advance(self) -> int:
        """Turn to the next broker of the failover list, if there are several."""
        return switch_to_next(self._connection)


def _tls_options(host: str, settings: Mapping[str, Any]) -> Any:
    """TLS for a client, from ``broker_use_ssl`` as py-amqp reads it (the names of `ssl.SSLContext`).

    The certificate and the host name are verified unless ``cert_reqs`` is ``ssl.CERT_NONE``.
    """
    unknown = set(settings) - {"ca_certs", "certfile", "keyfile", "cert_reqs", "server_hostname"}
    if unknown:
        raise ConfigurationError(
            f"broker_use_ssl has {', '.join(sorted(unknown))}; accepted are ca_certs, certfile, keyfile, "
            "cert_reqs and server_hostname"
        )
    return client_tls(
        settings.get("server_hostname") or host,
        setting="broker_use_ssl",
        ca_certs=settings.get("ca_certs"),
        certfile=settings.get("certfile"),
        keyfile=settings.get("keyfile"),
        verify=settings.get("cert_reqs") != ssl.CERT_NONE,
    )
