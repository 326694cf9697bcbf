"""WAMP sessions for tests: callers, and a bridge in the tests' own process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from autobahn.twisted.wamp import ApplicationRunner, ApplicationSession
from autobahn.twisted.websocket import WampWebSocketClientFactory
from autobahn.wamp.message import Cancel
from autobahn.wamp.serializer import CBORSerializer, JsonSerializer, MsgPackSerializer
from autobahn.wamp.types import ComponentConfig, SubscribeOptions
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import deferLater

from twistedcelery.wamp import CeleryBridge
from twistedcelery.wamp.bridge import Bridge, bridge_for

__all__ = ["Client", "RunningBridge", "connect", "wait_for_procedure"]

SERIALIZERS = {"json": JsonSerializer, "msgpack": MsgPackSerializer, "cbor": CBORSerializer}

#: Larger than every limit on the way, so that the limit under test is not the client's.
LIMIT = 64 * 1024 * 1024


class Client(ApplicationSession):
    """A session that says when it has joined and when it has gone."""

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        self.joined: Deferred[Client] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def onJoin(self, details: Any) -> None:
        self.joined.callback(self)

    def onLeave(self, details: Any) -> Any:
        if not self.joined.called:
            self.joined.errback(ConnectionError(f"{details.reason}: {details.message}"))
        return super().onLeave(details)

    def onDisconnect(self) -> None:
        super().onDisconnect()
        self.gone.callback(None)

    async def events(self, topic: str, match: str = "exact", retained: bool = False) -> DeferredQueue[Any]:
        """Subscribe: a queue of the topics and keyword payloads that come."""
        queue: DeferredQueue[Any] = DeferredQueue()
        await self.subscribe(
            lambda *_, **payload: queue.put((payload.pop("_details").topic, payload)),
            topic,
            SubscribeOptions(match=match, get_retained=retained, details_arg="_details"),
        )
        return queue

    def cancel_call(self, call: Deferred[Any], mode: str) -> None:
        """Cancel a call of this session the way one mode says, and go on waiting for its end."""
        for request in self._call_reqs.values():
            if request.on_reply is call:
                self._transport.send(Cancel(request.request_id, mode=mode))

    async def vanish(self) -> None:
        """Drop the connection without a word."""
        self._transport.transport.abortConnection()
        await self.gone

    async def close(self) -> None:
        """Leave in good order, unless it has gone already."""
        if self.is_attached():
            self.leave()
        if not self.gone.called:
            await self.gone


async def connect(url: str, serializer: str = "json") -> Client:
    """Join ``realm1`` anonymously."""
    from twisted.internet import reactor

    port = urlsplit(url).port
    session = Client(ComponentConfig("realm1"))
    factory = WampWebSocketClientFactory(lambda: session, url=url, serializers=[SERIALIZERS[serializer]()])
    factory.setProtocolOptions(maxFramePayloadSize=0, maxMessagePayloadSize=LIMIT)
    await HostnameEndpoint(reactor, "127.0.0.1", port).connect(factory)
    return await session.joined


async def wait_for_procedure(client: Client, uri: str, seconds: float = 20) -> None:
    """Wait until somebody has registered a procedure."""
    from twisted.internet import reactor

    deadline = reactor.seconds() + seconds
    while await client.call("wamp.registration.match", uri) is None:
        assert reactor.seconds() < deadline, f"{uri} was not registered"
        await deferLater(reactor, 0.05, lambda: None)


class RunningBridge:
    """A bridge in this process, which reconnects by itself.

    :ivar prefix: its URI prefix
    """

    def __init__(self, url: str, extra: Mapping[str, Any]) -> None:
        self.prefix: str = extra["prefix"]
        self._extra = dict(extra)
        self._runner = ApplicationRunner(
            url,
            "realm1",
            self._extra,
            serializers=[MsgPackSerializer()],
            websocket_options={"maxFramePayloadSize": 0, "maxMessagePayloadSize": 0},
        )
        self._waiters: list[Deferred[None]] = []

    @property
    def bridge(self) -> Bridge:
        """The half that outlives its sessions."""
        from twisted.internet import reactor

        return bridge_for("realm1", self._extra, reactor)

    async def start(self) -> None:
        """Return once it has joined and registered everything."""
        ready = self.ready()
        await self._runner.run(self._make, start_reactor=False, auto_reconnect=True)
        await ready

    def ready(self) -> Deferred[None]:
        """Fires the next time that a session has registered everything."""
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    async def stop(self) -> None:
        """End the session and the connection to the broker."""
        await self._runner.stop()
        await self.bridge.stop()

    def uri(self, name: str) -> str:
        """A URI below the prefix."""
        return f"{self.prefix}.{name}"

    def api(self, name: str) -> str:
        """A URI of the procedures for callers."""
        return f"{self.prefix}_api.{name}"

    def _make(self, config: ComponentConfig) -> CeleryBridge:
        session = CeleryBridge(config)
        session.on("ready", self._is_ready)
        return session

    def _is_ready(self, _: CeleryBridge) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
