"""Keeps a session on a router, without Crossbar's container.

Autobahn's own runners do not fit. ``ApplicationRunner`` resets its delays at every accepted TCP
connection, also of a router that refuses the bridge. ``Component`` does not let a session's calls end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autobahn.rawsocket.util import parse_url as parse_rawsocket_url
from autobahn.twisted.rawsocket import WampRawSocketClientFactory
from autobahn.twisted.websocket import WampWebSocketClientFactory
from autobahn.wamp.serializer import JsonSerializer, MsgPackSerializer
from autobahn.wamp.types import ComponentConfig
from autobahn.websocket.util import parse_url as parse_websocket_url
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import optionsForClientTLS

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.router.reconnect import ReconnectingClient
from twistedcelery.wamp.session import CeleryBridge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.defer import Deferred

__all__ = ["Runner"]

#: Seconds for the TCP connection.
CONNECT_TIMEOUT = 10.0

#: Seconds for the WebSocket handshake.
HANDSHAKE_TIMEOUT = 5.0

_WEBSOCKET_OPTIONS = {
    "openHandshakeTimeout": HANDSHAKE_TIMEOUT,
    # Crossbar's default, in both directions.
    "maxMessagePayloadSize": 16 * 1024 * 1024,
    "maxFramePayloadSize": 0,
    # Detects a router that vanished within 15 s.
    "autoPingInterval": 10.0,
    "autoPingTimeout": 5.0,
    "autoPingRestartOnAnyTraffic": True,
    "tcpNoDelay": True,
    "failByDrop": False,
}


class Runner:
    """Connects and reconnects until it is stopped.

    :param url: the router's: ``ws://``, ``wss://``, ``rs://`` or ``rss://``
    :param extra: the bridge's configuration
    :ivar ended: fires once it is stopped and the last connection has ended
    :raise ConfigurationError: if the URL is none of these
    """

    def __init__(self, reactor: Any, url: str, realm: str, extra: Mapping[str, Any]) -> None:
        self._reactor = reactor
        self._url = url
        self._config = ComponentConfig(realm, dict(extra), runner=self)
        self._session: CeleryBridge | None = None
        self._host, self._port, self._secure = _parse(url)
        self._client = ReconnectingClient(reactor, url, self._connect)
        self.ended: Deferred[None] = self._client.ended

    def start(self) -> None:
        """Connect. No failure ends the attempts."""
        self._client.start()

    def stop(self) -> None:
        """Stop reconnecting. A session that has joined stays."""
        self._client.stop()

    @property
    def open_calls(self) -> int:
        """The number of calls in progress."""
        return 0 if self._session is None else self._session.open_calls

    def stop_draining(self) -> None:
        """Do not wait for the calls in progress any longer."""
        if self._session is not None:
            self._session.stop_draining()

    def _connect(self) -> Deferred[Any]:
        connecting: Deferred[Any] = self._endpoint().connect(self._factory())
        return connecting

    def _factory(self) -> Any:
        # Not CBOR: its decoder accepts fewer levels of nesting than MessagePack's. One argument of a caller
        # that uses MessagePack could end the bridge's session.
        if self._url.startswith("rs"):
            return WampRawSocketClientFactory(self._make, serializer=MsgPackSerializer())
        factory = WampWebSocketClientFactory(
            self._make,
            url=self._url,
            serializers=[MsgPackSerializer(), JsonSerializer()],
            reactor=self._reactor,
        )
        factory.setProtocolOptions(**_WEBSOCKET_OPTIONS)
        factory.noisy = False
        return factory

    def _endpoint(self) -> Any:
        # Its type does not declare that it provides IStreamClientEndpoint.
        endpoint: Any = HostnameEndpoint(self._reactor, self._host, self._port, timeout=CONNECT_TIMEOUT)
        return wrapClientTLS(optionsForClientTLS(self._host), endpoint) if self._secure else endpoint

    def _make(self) -> CeleryBridge:
        session = self._session = CeleryBridge(self._config, self._reactor)

        def ready(_: object) -> None:
            if session.is_serving:
                self._client.joined(self._config.realm)

        # This method has no types.
        observe: Any = session.on
        observe("ready", ready)
        observe("leave", lambda *_: self._client.answered())
        return session


def _parse(url: str) -> tuple[str, int, bool]:
    """The host, the port, and whether TLS is used."""
    try:
        parsed = parse_rawsocket_url(url) if url.startswith("rs") else parse_websocket_url(url)
    except Exception as error:
        # Autobahn raises plain Exceptions, too.
        if "@" in url:
            # The error may show a part of a password.
            raise ConfigurationError(f"{_shown(url)} is no URL of a WAMP router") from None
        raise ConfigurationError(f"{_shown(url)} is no URL of a WAMP router: {error}") from error
    secure, host, port = parsed[:3]
    if host == "unix" or not isinstance(port, int):
        raise ConfigurationError(f"{_shown(url)} is no URL of a WAMP router: Unix sockets are not supported")
    return host, port, secure


def _shown(url: str) -> str:
    """A URL for errors, without a user name and a password."""
    scheme, separator, rest = url.partition("://")
    return repr(f"{scheme}{separator}{rest.rpartition('@')[2]}")[:255]
