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
from twisted.python.failure import Failure

from twistedcelery._deferreds import settle

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
            protocol.is_closed.addBoth(_closed, joined)
            return await joined
        except ConnectError:
            await task.deferLater(reactor, _PAUSE)


class _Session(ApplicationSession):
    def __init__(self, config: ComponentConfig, joined: Deferred[ApplicationSession]) -> None:
        super().__init__(config)
        self._joined = joined

    def onJoin(self, details: SessionDetails) -> None:
        settle(self._joined, self)

    def onLeave(self, details: CloseDetails) -> None:
        settle(self._joined, Failure(ApplicationError(details.reason, details.message)))
        self.disconnect()


def _closed(_: object, joined: Deferred[ApplicationSession]) -> None:
    settle(joined, Failure(ConnectError(string="the connection closed during the handshake")))
