"""A component in Crossbar's container: Crossbar connects it once, then it reconnects itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory

from twistedcelery.wamp.router import container as module
from twistedcelery.wamp.router.container import component_of, joined_component
from twistedcelery.wamp.router.reconnect import FIRST_DELAY


class Session:
    """A session of the bridge, as far as a component uses it."""

    def __init__(self, factory: Any, extra: Any) -> None:
        self.config = SimpleNamespace(realm="realm1", extra=extra)
        self.transport = SimpleNamespace(factory=factory)
        #: The events that Crossbar does not hear of any more.
        self.silenced: list[str] = []
        self.left = False

    def off(self, event: str) -> None:
        self.silenced.append(event)

    def leave(self) -> Deferred[None]:
        self.left = True
        return Deferred()


class Container:
    """A container, the router it connects to, and a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.factory = object()
        self.attempts: list[Deferred[Any]] = []
        self.is_closed: Deferred[None] = Deferred()

    def connect(self) -> Deferred[Any]:
        self.attempts.append(Deferred())
        return self.attempts[-1]

    def session(self, extra: Any = None) -> Session:
        return Session(self.factory, {"cbdir": "/node"} if extra is None else extra)

    def next_session(self) -> Session:
        """The router accepts the latest connection."""
        self.is_closed = Deferred()
        self.attempts[-1].callback(self)
        return self.session()

    def lose(self, component: Any, session: Session) -> Any:
        """The connection of a session ends."""
        closed = component.closed(session)
        self.is_closed.callback(None)
        return closed


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Container:
    new = Container()
    monkeypatch.setattr(module, "_as_before", lambda *_: ("the router", new.connect))
    monkeypatch.setattr(module, "_components", {})
    return new


def test_crossbar_is_not_told_of_a_lost_connection(container):
    """The bridge reconnects as often as necessary, and each session belongs to the same component."""
    first = container.session()
    assert component_of(first) is None
    component = joined_component(first, container.clock)
    component.joined()
    told = component.closed(first)
    for count in range(1, 4):
        container.clock.advance(FIRST_DELAY)
        assert len(container.attempts) == count
        session = container.next_session()
        assert component_of(session) is component
        assert session.silenced == ["disconnect"]
        component.joined()
        assert container.lose(component, session) is None
    assert not told.called
    assert first.silenced == []


def test_crossbar_stops_the_component(container):
    """The current session leaves, none follows, and Crossbar learns that the first one has ended."""
    first = container.session()
    component = joined_component(first, container.clock)
    told: list[None] = []
    component.closed(first).addCallback(told.append)
    container.clock.advance(FIRST_DELAY)
    session = container.next_session()
    assert component_of(session) is component
    component.joined()
    component.stop()
    assert (first.left, session.left) == (False, True)
    container.lose(component, session)
    # While it asks, Crossbar is not prepared for the answer.
    assert told == []
    container.clock.advance(0)
    assert told == [None]
    assert component_of(container.session()) is None
    container.clock.advance(60)
    assert len(container.attempts) == 1


@pytest.mark.parametrize("lost", [False, True])
def test_crossbar_stops_a_component_that_never_came_back(lost, container):
    """Its first session leaves, or it stops reconnecting. Either way Crossbar learns that."""
    first = container.session()
    component = joined_component(first, container.clock)
    component.joined()
    told: list[None] = []
    if lost:
        component.closed(first).addCallback(told.append)
        component.stop()
    else:
        component.stop()
        component.closed(first).addCallback(told.append)
    assert first.left
    container.clock.advance(0)
    assert told == [None]
    container.clock.advance(60)
    assert container.attempts == []


@pytest.mark.parametrize(
    ("factory", "extra"),
    [(object(), {}), (object(), None), (None, {"cbdir": "/node"})],
)
def test_outside_of_a_container(factory, extra, container):
    """Other runners reconnect themselves. In a router's process there is no connection."""
    session = Session(factory, extra)
    if factory is None:
        del session.transport.factory
    assert joined_component(session, container.clock) is None
    assert component_of(session) is None


def connected(transport: Any, destination: Any) -> Any:
    """A protocol that is connected to a destination, over ``transport`` or directly."""
    socket = SimpleNamespace(connector=SimpleNamespace(getDestination=lambda: destination))
    if transport is None:
        return SimpleNamespace(factory=ClientFactory.forProtocol(Protocol), transport=socket)
    transport.transport = socket
    return SimpleNamespace(factory=transport.factory.wrappedFactory, transport=transport)


@pytest.mark.parametrize(
    ("destination", "endpoint", "name"),
    [
        (IPv4Address("TCP", "router.example.com", 9000), HostnameEndpoint, "router.example.com:9000"),
        (UNIXAddress("/run/router"), UNIXClientEndpoint, "/run/router"),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_the_way_of_the_first_connection(destination, endpoint, name, secure, monkeypatch):
    """Reconnecting uses the same host name, and checks the same certificate."""
    connecting = []

    def connect(self, factory):
        connecting.append((self, factory))
        return Deferred()

    monkeypatch.setattr(endpoint, "connect", connect)
    wrapper = None
    if secure:
        creator = optionsForClientTLS("router.example.com")
        wrapper = TLSMemoryBIOFactory(creator, True, ClientFactory.forProtocol(Protocol))
    protocol = connected(wrapper and wrapper.buildProtocol(None), destination)
    router, connect_again = module._as_before(protocol, MemoryReactorClock())
    assert name in router
    arrived = []
    connect_again().addCallback(arrived.append)
    ((_, factory),) = connecting
    if wrapper is None:
        assert factory is protocol.factory
    else:
        assert factory is not wrapper
        assert factory.wrappedFactory is protocol.factory
        assert factory._creatorCallable is wrapper._creatorCallable
