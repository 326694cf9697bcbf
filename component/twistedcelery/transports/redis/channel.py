"""Makes kombu's own Redis channel on a client that records commands instead of sending them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kombu.transport import virtual
from kombu.transport.redis import (
    Channel,
    GlobalKeyPrefixMixin,
    SentinelChannel,
    SentinelTransport,
    Transport,
)
from redis.commands.core import Script

from twistedcelery.transports.redis.recorded_client import RecordedClient, RecordedPipeline, Tape

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["ChannelTape", "offline_channel"]


class ChannelTape(Tape):
    """Carries commands from kombu's channel, and to it what a connection of ours has received.

    :ivar popped: the reply to BRPOP that the channel reads
    :ivar published: the channel and the payload of the message that kombu's channel reads
    """

    popped: Any = None
    published: tuple[bytes, bytes] = (b"", b"")


def offline_channel(connection: Connection, tape: ChannelTape) -> Any:
    """Make kombu's channel for a connection, which is never connected."""
    if issubclass(connection.get_transport_cls(), SentinelTransport):
        return _OfflineSentinelChannel(_OfflineSentinelTransport(connection), tape)
    return _OfflineChannel(_OfflineTransport(connection), tape)


class _WithoutPoller:
    """A transport of kombu's without its poller, which holds a file descriptor."""

    def __init__(self, client: Connection) -> None:
        transport: Any = self
        virtual.Transport.__init__(transport, client)
        self.cycle: Any = set()


class _OfflineTransport(_WithoutPoller, Transport):
    """kombu's Redis transport."""


class _OfflineSentinelTransport(_WithoutPoller, SentinelTransport):
    """The one that asks sentinels for the master."""


class _Recorded:
    """A channel of kombu's on a client that records."""

    global_keyprefix: str

    def __init__(self, transport: Any, tape: ChannelTape) -> None:
        self._tape = tape
        super().__init__(transport)  # type: ignore[call-arg]  # of the class mixed into
        # It begins with a PING.
        tape.take()

    def _get_client(self) -> Any:
        return partial(_ChannelClient, tape=self._tape, global_keyprefix=self.global_keyprefix)

    def _size(self, queue: str) -> int:
        # Declaring returns a queue's length, which is not used here.
        return 0


class _OfflineChannel(_Recorded, Channel):
    """kombu's Redis channel."""


class _OfflineSentinelChannel(_Recorded, SentinelChannel):
    """The one behind sentinels."""


class _Received(RecordedClient):
    """Below kombu's prefixes: replies to BRPOP as they came."""

    _tape: ChannelTape

    def parse_response(self, *_: Any, **__: Any) -> Any:
        return self._tape.popped


class _ChannelClient(GlobalKeyPrefixMixin, _Received):
    """The client that a channel uses, with the prefix that kombu's own adds to keys."""

    def __init__(self, tape: ChannelTape, global_keyprefix: str, connection_pool: Any = None) -> None:
        super().__init__(tape)
        self.global_keyprefix = global_keyprefix
        self.connection = _Socket(tape)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> _ChannelPipeline:
        return _ChannelPipeline(self._tape, self.global_keyprefix)

    def pubsub(self) -> _PubSub:
        return _PubSub(self._tape, self.global_keyprefix)

    def register_script(self, script: str) -> Script:
        self._tape.execute(("SCRIPT", "LOAD", script))
        return Script(self, script.encode())


class _ChannelPipeline(GlobalKeyPrefixMixin, RecordedPipeline):
    """A transaction with prefixed keys."""

    def __init__(self, tape: Tape, global_keyprefix: str) -> None:
        super().__init__(tape)
        self.global_keyprefix = global_keyprefix


class _PubSub:
    """As much of redis-py's subscriptions as kombu uses, with the prefix that kombu's own adds."""

    def __init__(self, tape: ChannelTape, global_keyprefix: str) -> None:
        self._tape = tape
        self._prefix = global_keyprefix
        self.connection = _Socket(tape)

    def psubscribe(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            self._tape.execute(("PSUBSCRIBE", self._prefix + pattern))

    def parse_response(self) -> tuple[bytes, bytes, bytes]:
        channel, payload = self._tape.published
        return b"message", channel[len(self._prefix.encode()) :], payload


class _Socket:
    """kombu takes it for an open connection of redis-py's."""

    _sock = True

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def send_command(self, *command: Any) -> None:
        self._tape.execute(command)

    def disconnect(self) -> None:
        """It is never open."""
