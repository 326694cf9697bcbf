"""The bridge as a component of a Crossbar container.

Crossbar connects a component when the node starts, and with ``restart-always`` once more when that
connection has ended. Where the router is not back by then, or takes the connection and does not serve
it yet, Crossbar does not try again. So once a router has taken its first session, the bridge sees to
its connection itself: that session's end is kept from Crossbar, for which the component runs on, and
further connections are made as the first one was, with Crossbar's own factory and options.
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
from twistedcelery.wamp.process.keeping import FIRST_DELAY, KeptConnection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from twisted.internet.defer import Deferred

    class ComponentSession(Protocol):
        """What a component needs of its sessions."""

        @property
        def config(self) -> Any:
            """As `autobahn.wamp.protocol.ApplicationSession`."""

        @property
        def transport(self) -> Any:
            """As `autobahn.wamp.interfaces.ISession`."""

        def off(self, event: str) -> None:
            """As `autobahn.util.ObservableMixin.off`."""

        def leave(self) -> Deferred[None]:
            """Let the calls in flight end, then leave; fires once it is gone. Never fails."""


__all__ = ["Component", "component_of", "joined_component"]

#: Seconds for a connection.
CONNECT_TIMEOUT = 10.0


class Component:
    """What is one component to Crossbar, over all its sessions.

    :param session: the first that has joined
    :param ended: called once no session follows
    """

    def __init__(self, session: ComponentSession, reactor: Any, ended: Callable[[], object]) -> None:
        self._first = self._session = session
        self._reactor = reactor
        self._ended = ended
        self._kept = KeptConnection(reactor, *_as_before(session.transport, reactor))
        self._trigger: Any = None
        if IReactorCore.providedBy(reactor):
            self._trigger = reactor.addSystemEventTrigger("before", "shutdown", self._shut_down)

    def takes(self, session: ComponentSession) -> None:
        """A new session has its transport."""
        self._session = session
        # Crossbar listens to every session that its factory makes. It is told of the first one's end.
        session.off("disconnect")

    def joined(self) -> None:
        """The router has taken the session."""
        self._kept.joined(self._session.config.realm)

    def closed(self, session: ComponentSession) -> Deferred[None] | None:
        """A session's transport is gone.

        :return: fires once Crossbar may know of that
        """
        if session is not self._first:
            return None
        self._kept.start(FIRST_DELAY)
        # Later, for Crossbar is not prepared to hear of it while it asks for it.
        ended = fork(self._kept.ended).addCallback(lambda _: deferLater(self._reactor, 0))
        return ended.addCallback(lambda _: self._forget())

    def stop(self) -> None:
        """Crossbar wants the component to end: leave in good order, and do not come back."""
        self._kept.stop()
        self._session.leave()

    def _shut_down(self) -> None:
        # The bridge sees to the session.
        self._trigger = None
        self._kept.stop()

    def _forget(self) -> None:
        if self._trigger is not None:
            self._reactor.removeSystemEventTrigger(self._trigger)
        self._ended()


#: By Crossbar's factory, which makes the sessions and knows nothing of any of them.
_components: dict[Any, Component] = {}


def component_of(session: ComponentSession) -> Component | None:
    """The component that a session with a new transport belongs to; ``None`` where it is the first."""
    component = _components.get(getattr(session.transport, "factory", None))
    if component is not None:
        component.takes(session)
    return component


def joined_component(session: ComponentSession, reactor: Any) -> Component | None:
    """The component of a first session that has joined; ``None`` outside of Crossbar's containers."""
    factory = getattr(session.transport, "factory", None)
    # Crossbar tells every component where the node is. Those in a router's process have no connection.
    if factory is None or "cbdir" not in (session.config.extra or {}):
        return None
    component = Component(session, reactor, lambda: _components.pop(factory))
    _components[factory] = component
    return component


def _as_before(protocol: Any, reactor: Any) -> tuple[str, Callable[[], Deferred[Any]]]:
    """Where a protocol is connected to, for the log, and what connects another one of its factory."""
    factory, transport = protocol.factory, protocol.transport
    wrapper: Any = None
    if isinstance(transport, TLSMemoryBIOProtocol):
        wrapper, transport = transport.factory, transport.transport
    # As it was asked for: a name is looked up again.
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
        # The same checks of the router's certificate, around another connection.
        again = copy.copy(wrapper)
        again.wrappedFactory, again.protocols = factory, {}
        connecting = endpoint.connect(again)
        return connecting.addCallback(lambda protocol: protocol.wrappedProtocol)

    return name, connect
