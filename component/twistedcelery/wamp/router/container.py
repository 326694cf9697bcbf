"""Runs the bridge as a component of a Crossbar container.

Crossbar connects a component when the node starts, and with ``restart-always`` once more when that
connection has ended. If the router is not back by then, or accepts the connection and does not serve it
yet, Crossbar does not try again. So once a router has accepted its first session, the bridge reconnects on
its own, with Crossbar's own factory and options. Crossbar does not learn that the first session has ended,
and takes the component for running.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IReactorCore
from twisted.internet.task import deferLater
from twisted.protocols.tls import TLSMemoryBIOProtocol

from twistedcelery._deferreds import fork
from twistedcelery.wamp.router.reconnect import FIRST_DELAY, ReconnectingClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from autobahn.twisted.wamp import ApplicationSession
    from twisted.internet.defer import Deferred

__all__ = ["Component", "component_of", "joined_component"]

#: Seconds to connect.
CONNECT_TIMEOUT = 10.0


class Component:
    """A component as Crossbar knows it, over all its sessions.

    :param session: the first one that has joined
    :param ended: called when no session will follow
    """

    def __init__(self, session: ApplicationSession, reactor: Any, ended: Callable[[], object]) -> None:
        self._first = self._session = session
        self._reactor = reactor
        self._ended = ended
        self._client = ReconnectingClient(reactor, *_as_before(session.transport, reactor))
        self._trigger: Any = None
        if IReactorCore.providedBy(reactor):
            self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self._shut_down)

    def connected(self, session: ApplicationSession) -> None:
        """A new session has its transport."""
        self._session = session
        # Crossbar observes every session that its factory makes. It is to learn of the first one's end only.
        session.off("disconnect")

    def answered(self) -> None:
        """The router has refused the session, which logs why."""
        self._client.answered()

    def joined(self) -> None:
        """The router has accepted the session."""
        self._client.joined(self._session.config.realm)

    def discard(self, session: ApplicationSession) -> bool:
        """Leave a first session that turned out to be of no use to Crossbar.

        :return: whether it was the first one
        """
        if session is not self._first:
            return False
        self._forget()
        return True

    def closed(self, session: ApplicationSession) -> Deferred[None] | None:
        """A session's transport is closed.

        :return: fires when Crossbar may learn that
        """
        if session is not self._first:
            return None
        self._client.start(FIRST_DELAY)
        # Crossbar cannot handle the end of a session while it asks for it.
        ended = fork(self._client.ended).addCallback(lambda _: deferLater(self._reactor, 0))
        return ended.addCallback(lambda _: self._forget())

    def stop(self) -> None:
        """Leave in good order, and do not reconnect: Crossbar stops the component."""
        self._client.stop()
        self._session.leave()

    def _shut_down(self) -> None:
        # The bridge makes the session leave.
        self._trigger = None
        self._client.stop()

    def _forget(self) -> None:
        if self._trigger is not None:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
        self._ended()


#: By Crossbar's factory, which makes the sessions and does not keep them.
_components: dict[Any, Component] = {}


def component_of(session: ApplicationSession) -> Component | None:
    """The component of a session with a new transport; ``None`` if it is the component's first session."""
    component = _components.get(getattr(session.transport, "factory", None))
    if component is not None:
        component.connected(session)
    return component


def joined_component(session: ApplicationSession, reactor: Any) -> Component | None:
    """Make the component of a first session that has joined; ``None`` outside of Crossbar's containers."""
    factory = getattr(session.transport, "factory", None)
    # Crossbar passes the node's directory to every component. Those in a router's process have no connection.
    if factory is None or "cbdir" not in (session.config.extra or {}):
        return None
    component = Component(session, reactor, lambda: _components.pop(factory))
    _components[factory] = component
    return component


def _as_before(protocol: Any, reactor: Any) -> tuple[str, Callable[[], Deferred[Any]]]:
    """The router that a protocol is connected to, for the log, and a function that connects there again."""
    factory, transport = protocol.factory, protocol.transport
    wrapper: Any = None
    if isinstance(transport, TLSMemoryBIOProtocol):
        wrapper, transport = transport.factory, transport.transport
    # By name, so that it is resolved again.
    destination = transport.connector.getDestination()
    endpoint: Any
    if isinstance(destination, UNIXAddress):
        name = str(destination.name)
        endpoint = UNIXClientEndpoint(reactor, destination.name, timeout=CONNECT_TIMEOUT)
    else:
        name = f"{destination.host}:{destination.port}"
        endpoint = HostnameEndpoint(reactor, destination.host, destination.port, timeout=CONNECT_TIMEOUT)

    def connect() -> Deferred[Any]:
        if wrapper is None:
            connecting: Deferred[Any] = endpoint.connect(factory)
            return connecting
        # Check the router's certificate in the same way.
        again = copy.copy(wrapper)
        again.wrappedFactory, again.protocols = factory, {}
        connecting = endpoint.connect(again)
        return connecting.addCallback(lambda protocol: protocol.wrappedProtocol)

    return name, connect
