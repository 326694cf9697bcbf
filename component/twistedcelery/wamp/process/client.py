"""Calls a procedure of a node that may still be starting."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.wamp import ApplicationSession
from autobahn.twisted.websocket import WampWebSocketClientFactory
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CloseDetails, ComponentConfig, SessionDetails
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError

__all__ = ["call_when_ready"]

#: Seconds between two attempts.
_PAUSE = 0.05


async def call_when_ready(reactor: Any, port: int, realm: str, procedure: str, *args: Any) -> Any:
    """Call a procedure over WebSocket, as an anonymous client.

    Wait, without a limit, until the router listens and the procedure is registered.

    :param port: the port of the router's ``/ws`` on 127.0.0.1
    :return: the call's result
    :raise ApplicationError: if the call fails
    """
    session = await _join(reactor, port, realm)
    try:
        while True:
            try:
                return await session.call(procedure, *args)
            except ApplicationError as error:
                if error.error != ApplicationError.NO_SUCH_PROCEDURE:
                    raise
            await task.deferLater(reactor, _PAUSE)
    finally:
        if session.is_attached():
            session.leave()


async def _join(reactor: Any, port: int, realm: str) -> ApplicationSession:
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    while True:
        joined: Deferred[ApplicationSession] = Deferred()
        # Its type does not declare that it provides Twisted's interface.
        factory: Any = WampWebSocketClientFactory(
            lambda joined=joined: _Session(ComponentConfig(realm), joined), url=f"ws://127.0.0.1:{port}/ws"
        )
        try:
            protocol = await endpoint.connect(factory)
            # Crossbar listens shortly before it serves /ws: the handshake can fail.
            protocol.is_closed.addBoth(_fail_unless_called, joined)
            return await joined
        except ConnectError:
            await task.deferLater(reactor, _PAUSE)


class _Session(ApplicationSession):
    def __init__(self, config: ComponentConfig, joined: Deferred[ApplicationSession]) -> None:
        super().__init__(config)
        self._joined = joined

    def onJoin(self, details: SessionDetails) -> None:
        self._joined.callback(self)

    def onLeave(self, details: CloseDetails) -> None:
        if not self._joined.called:
            self._joined.errback(ApplicationError(details.reason, details.message))
        self.disconnect()


def _fail_unless_called(_closed: object, joined: Deferred[ApplicationSession]) -> None:
    if not joined.called:
        joined.errback(ConnectError(string="the connection closed during the handshake"))
