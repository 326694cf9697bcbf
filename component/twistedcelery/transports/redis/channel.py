"""kombu's own Redis channel, on a client that keeps commands instead of sending them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from kombu.transport import virtual
from kombu.transport.redis import (
    Channel,
    GlobalKeyPrefixMixin,
    SentinelChannel,
    SentinelTransport,
    Transport,
)
from redis.commands import CoreCommands
from redis.commands.core import Script

from twistedcelery.transports.redis.link import Command

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["AnswerNeeded", "Tape", "offline_channel"]

#: Commands whose answer decides what follows: where a message goes is read from the bindings.
_READS = frozenset({"SMEMBERS"})


class AnswerNeeded(Exception):
    """Send these commands first, and call again with the reply to the last one.

    :ivar question: the command whose reply is needed
    :ivar before: what has to be declared before it
    """

    def __init__(self, question: Command) -> None:
        super().__init__(question)
        self.question = question
        self.before: list[Command] = []


class Tape:
    """What crosses between kombu's channel and a connection of ours.

    :ivar commands: what the channel has sent since it was last taken
    :ivar answers: the replies that are known
    :ivar executed: the reply to the next transaction
    :ivar popped: the reply to BRPOP that the channel reads
    :ivar published: the channel and the payload of the message that kombu's channel reads
    """

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.answers: Mapping[Command, Any] = {}
        self.executed: Sequence[Any] = ()
        self.popped: Any = None
        self.published: tuple[bytes, bytes] = (b"", b"")

    def take(self) -> list[Command]:
        """The commands since the last time."""
        taken, self.commands = self.commands, []
        return taken


def offline_channel(connection: Connection, tape: Tape) -> Any:
    """Make kombu's channel for a connection, which is never connected."""
    if issubclass(connection.get_transport_cls(), SentinelTransport):
        return _OfflineSentinelChannel(_OfflineSentinelTransport(connection), tape)
    return _OfflineChannel(_OfflineTransport(connection), tape)


class _WithoutPoller:
    """What a transport of kombu's is without its poller, which holds a file descriptor."""

    def __init__(self, client: Connection) -> None:
        transport: Any = self
        virtual.Transport.__init__(transport, client)
        self.cycle: Any = set()


class _OfflineTransport(_WithoutPoller, Transport):
    """kombu's Redis transport."""


class _OfflineSentinelTransport(_WithoutPoller, SentinelTransport):
    """The one that asks sentinels for the master."""


class _Recorded:
    """What a channel of kombu's is on a client that records."""

    global_keyprefix: str

    def __init__(self, transport: Any, tape: Tape) -> None:
        self._tape = tape
        super().__init__(transport)  # type: ignore[call-arg]  # of the class mixed into
        # A PING, which it begins with.
        tape.take()

    def _get_client(self) -> Any:
        return partial(_Client, tape=self._tape, global_keyprefix=self.global_keyprefix)

    def _size(self, queue: str) -> int:
        # Declaring answers with a queue's length, which nobody here asks for.
        return 0


class _OfflineChannel(_Recorded, Channel):
    """kombu's Redis channel."""


class _OfflineSentinelChannel(_Recorded, SentinelChannel):
    """The one behind sentinels."""


class _Tee:
    """The end of a recording client: what reaches it has its final form."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def execute_command(self, *command: Any, **_options: Any) -> Any:
        if command[0] in _READS:
            if command not in self._tape.answers:
                raise AnswerNeeded(command)
            return self._tape.answers[command]
        self._tape.commands.append(command)
        return None

    def parse_response(self, *_: Any, **__: Any) -> Any:
        return self._tape.popped


class _Client(GlobalKeyPrefixMixin, _Tee, CoreCommands):
    """As much of redis-py's client as kombu uses."""

    def __init__(self, tape: Tape, global_keyprefix: str, connection_pool: Any = None) -> None:
        super().__init__(tape)
        self.global_keyprefix = global_keyprefix
        self.connection = _Socket(tape)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> _Pipeline:
        return _Pipeline(self._tape, self.global_keyprefix)

    def pubsub(self) -> _PubSub:
        return _PubSub(self._tape, self.global_keyprefix)

    def register_script(self, script: str) -> Script:
        self._tape.commands.append(("SCRIPT", "LOAD", script))
        return Script(self, script.encode())


class _Pipeline(_Client):
    """A transaction, which is on the tape once it is executed."""

    def __init__(self, tape: Tape, global_keyprefix: str) -> None:
        super().__init__(Tape(), global_keyprefix)
        self._target = tape

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Nothing is held."""

    def execute_command(self, *command: Any, **options: Any) -> _Pipeline:
        super().execute_command(*command, **options)  # type: ignore[no-untyped-call]  # as all of kombu
        return self

    def execute(self) -> Sequence[Any]:
        self._target.commands += [("MULTI",), *self._tape.take(), ("EXEC",)]
        return self._target.executed


class _PubSub:
    """As much of redis-py's subscriptions as kombu uses, with the prefix that kombu's own adds."""

    def __init__(self, tape: Tape, global_keyprefix: str) -> None:
        self._tape = tape
        self._prefix = global_keyprefix
        self.connection = _Socket(tape)

    def psubscribe(self, patterns: Sequence[str]) -> None:
        self._tape.commands += [("PSUBSCRIBE", self._prefix + pattern) for pattern in patterns]

    def parse_response(self) -> tuple[bytes, bytes, bytes]:
        channel, payload = self._tape.published
        return b"message", channel[len(self._prefix.encode()) :], payload


class _Socket:
    """What kombu takes for a connection of redis-py's that is open."""

    _sock = True

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def send_command(self, *command: Any) -> None:
        self._tape.commands.append(command)

    def disconnect(self) -> None:
        """It is never open."""
