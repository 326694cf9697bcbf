"""Keeps a session on a router, without Crossbar's container.

Autobahn's own runners do not fit: ``ApplicationRunner`` takes every accepted TCP connection for a
success, so that a router which refuses the bridge is asked again without growing pauses, and
``Component`` gives a session no chance to let its calls end.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from autobahn.rawsocket.util import parse_url as parse_rawsocket_url
from autobahn.twisted.rawsocket import WampRawSocketClientFactory
from autobahn.twisted.websocket import WampWebSocketClientFactory
from autobahn.wamp.serializer import JsonSerializer, MsgPackSerializer
from autobahn.wamp.types import ComponentConfig
from autobahn.websocket.util import parse_url as parse_websocket_url
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.session import CeleryBridge

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Runner"]

#: Seconds until the next attempt: the first, and at most. Each failure doubles them; a session that
#: has joined begins anew.
FIRST_DELAY, MAX_DELAY = 0.5, 15.0

#: Seconds for the TCP connection, and as many for WebSocket's handshake.
CONNECT_TIMEOUT = 10.0

_WEBSOCKET_OPTIONS = {
    "openHandshakeTimeout": CONNECT_TIMEOUT,
    # Crossbar's default, both ways.
    "maxMessagePayloadSize": 16 * 1024 * 1024,
    "maxFramePayloadSize": 0,
    # A router that is gone without a word is noticed within 15 s.
    "autoPingInterval": 10.0,
    "autoPingTimeout": 5.0,
    "autoPingRestartOnAnyTraffic": True,
    "tcpNoDelay": True,
    "failByDrop": False,
}

_log = Logger()


class Runner:
    """Connects, and connects again, until it is stopped.

    :param url: the router's: ``ws://``, ``wss://``, ``rs://`` or ``rss://``
    :param extra: the bridge's configuration
    :ivar ended: fires once it was stopped and has ended
    :raise ConfigurationError: where the URL is none of these
    """

    def __init__(self, reactor: Any, url: str, realm: str, extra: Mapping[str, Any]) -> None:
        self.ended: Deferred[None] = Deferred()
        self._reactor = reactor
        self._url = url
        self._config = ComponentConfig(realm, dict(extra), runner=self)
        self._host, self._port, self._secure = _parse(url)
        self._running: Deferred[None] | None = None
        self._stopped = False
        self._joined = False
        self._said: str | None = None

    def start(self) -> None:
        """Begin. Nothing that goes wrong on the way ends it."""
        self._running = ensureDeferred(self._run())
        self._running.addErrback(lambda failure: failure.trap(CancelledError)).chainDeferred(self.ended)

    def stop(self) -> None:
        """Connect no more. A session that has joined is left alone."""
        self._stopped = True
        if self._running is not None and not self._joined:
            self._running.cancel()

    async def _run(self) -> None:
        delay = FIRST_DELAY
        while not self._stopped:
            if await self._once():
                delay = FIRST_DELAY
            if not self._stopped:
                # With jitter, for routers have many clients who have all lost it at once.
                await deferLater(self._reactor, delay * random.uniform(0.5, 1))  # noqa: S311  # no secret
                delay = min(2 * delay, MAX_DELAY)

    async def _once(self) -> bool:
        """One connection, from its beginning to its end.

        :return: whether the router took the bridge
        """
        joined = self._joined = False
        try:
            protocol = await self._endpoint().connect(self._factory())
        except Exception as error:
            # Names that do not resolve, ports that nobody listens on: all kinds of errors, of which
            # none is a reason to give up. Each is said once, not with each attempt.
            reason = str(error) or type(error).__name__
            if reason != self._said:
                _log.warn("no router at {url}: {reason}; trying on, in silence", url=self._url, reason=reason)
                self._said = reason
            return False
        self._said = None
        closed: Deferred[None] = Deferred()
        protocol.is_closed.addBoth(lambda _: closed.callback(None))
        try:
            await closed
        finally:
            joined, self._joined = self._joined, False
        if joined and not self._stopped:
            _log.warn("the connection to {url} is lost", url=self._url)
        return joined

    def _factory(self) -> Any:
        # Not CBOR: its decoder takes fewer levels of nesting than a router accepts from those who call in
        # MessagePack, so that one argument could end the bridge's session.
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
        # Twisted does not declare to type checkers that it provides IStreamClientEndpoint.
        endpoint: Any = HostnameEndpoint(self._reactor, self._host, self._port, timeout=CONNECT_TIMEOUT)
        return wrapClientTLS(optionsForClientTLS(self._host), endpoint) if self._secure else endpoint

    def _make(self) -> CeleryBridge:
        session = CeleryBridge(self._config, self._reactor)
        session.on("join", self._has_joined)  # type: ignore[no-untyped-call]  # it has no types
        return session

    def _has_joined(self, *_: object) -> None:
        self._joined = True
        _log.info("joined {realm} at {url}", realm=self._config.realm, url=self._url)


def _parse(url: str) -> tuple[str, int, bool]:
    """Host, port, and whether TLS is used."""
    try:
        parsed = parse_rawsocket_url(url) if url.startswith("rs") else parse_websocket_url(url)
    except Exception as error:
        # Autobahn raises plain Exceptions, too.
        raise ConfigurationError(f"{url!r:.255} is no URL of a WAMP router: {error}") from error
    secure, host, port = parsed[:3]
    if host == "unix" or not isinstance(port, int):
        raise ConfigurationError(
            f"{url!r:.255} is no URL of a WAMP router: sockets of Unix are not supported"
        )
    return host, port, secure
