"""Messages in, Redis commands out: kombu's own Redis transport, recorded.

kombu's channel runs on a Redis client that keeps commands instead of sending them. The envelope
around a body, the names of queues, priorities, bindings and fanout channels, key prefixes and
transport options are those of the installed kombu.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from kombu.transport import virtual
from kombu.transport.redis import Channel, GlobalKeyPrefixMixin, Transport
from redis.commands import CoreCommands
from redis.commands.core import Script

from twistedcelery.errors import EncodeError, PublishRejected, Unroutable
from twistedcelery.message import OutgoingMessage
from twistedcelery.transports.redis.link import Command

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["AnswerNeeded", "Recorder"]

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


class Recorder:
    """What kombu's client does to a server over one connection, as commands.

    It remembers what it has declared, as kombu does for a connection.

    :param connection: from ``app.connection_for_write()``; it is never connected
    """

    def __init__(self, connection: Connection) -> None:
        self._tape = _Tape()
        self._channel: Any = _OfflineChannel(_OfflineTransport(connection), self._tape)
        # By identity, which is cheap; the entities are kept, so that no identity is used twice.
        self._declared: dict[int, Any] = {}
        self._tape.take()

    @property
    def pool(self) -> Any:
        """The redis-py connection pool that kombu would use."""
        return self._channel.pool

    def record(self, message: OutgoingMessage, answers: Mapping[Command, Any]) -> list[Command]:
        """Everything that kombu's client would send for a message, declarations first.

        :param answers: the replies to the commands of earlier `AnswerNeeded`
        :raises AnswerNeeded: the bindings must be read first
        :raises EncodeError: the message does not fit into kombu's envelope
        :raises PublishRejected: what the message needs cannot be declared
        :raises Unroutable: for a ``mandatory`` message that no queue is bound for
        """
        self._tape.answers = answers
        declared: list[Command] = []
        try:
            declared = self._declare(message)
            routed = self._publish(message)
        except AnswerNeeded as needed:
            needed.before = declared
            raise
        finally:
            self._tape.answers = {}
            self._tape.take()
        if message.mandatory and not routed:
            raise Unroutable(
                f"no queue is bound to exchange {message.exchange!r} with routing key {message.routing_key!r}"
            )
        return declared + routed

    def _declare(self, message: OutgoingMessage) -> list[Command]:
        for entity in message.declare:
            if id(entity) in self._declared:
                continue
            try:
                entity.bind(self._channel).declare(channel=self._channel)
            except Exception as error:
                # Such as an exchange that was declared with another type.
                raise PublishRejected(f"{entity!r} cannot be declared: {error}") from error
            if entity.can_cache_declaration:
                self._declared[id(entity)] = entity
        return self._tape.take()

    def _publish(self, message: OutgoingMessage) -> list[Command]:
        properties = dict(message.properties)
        content_encoding = properties.pop("content_encoding", None)
        try:
            prepared = self._channel.prepare_message(
                message.body_for_kombu,
                priority=properties.pop("priority", None),
                content_type=properties.pop("content_type", None),
                content_encoding=content_encoding,
                headers=dict(message.headers),
                properties=properties,
            )
            self._channel.basic_publish(prepared, exchange=message.exchange, routing_key=message.routing_key)
        except AnswerNeeded:
            raise
        except Exception as error:
            # Serialising the envelope runs the methods of whatever is in the headers.
            raise EncodeError(f"the message cannot be put into kombu's envelope: {error}") from error
        return self._tape.take()


class _Tape:
    """The commands since the last time, and the replies that are known."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.answers: Mapping[Command, Any] = {}

    def take(self) -> list[Command]:
        taken, self.commands = self.commands, []
        return taken


class _OfflineTransport(Transport):
    """kombu's Redis transport without its poller, which holds a file descriptor."""

    def __init__(self, client: Connection) -> None:
        virtual.Transport.__init__(self, client)
        self.cycle: Any = set()


class _OfflineChannel(Channel):
    """kombu's Redis channel on a client that records."""

    def __init__(self, transport: _OfflineTransport, tape: _Tape) -> None:
        self._tape = tape
        super().__init__(transport)  # type: ignore[no-untyped-call]  # as all of kombu

    def _get_client(self) -> Any:
        return partial(_Client, tape=self._tape, global_keyprefix=self.global_keyprefix)

    def _size(self, queue: str) -> int:
        # Declaring answers with a queue's length, which nobody here asks for.
        return 0


class _Tee:
    """The end of a recording client: what reaches it has its final form."""

    def __init__(self, tape: _Tape) -> None:
        self._tape = tape

    def execute_command(self, *command: Any, **_options: Any) -> Any:
        if command[0] in _READS:
            if command not in self._tape.answers:
                raise AnswerNeeded(command)
            return self._tape.answers[command]
        self._tape.commands.append(command)
        return None


class _Client(GlobalKeyPrefixMixin, _Tee, CoreCommands):
    """As much of redis-py's client as kombu uses for sending."""

    def __init__(self, tape: _Tape, global_keyprefix: str, connection_pool: Any = None) -> None:
        super().__init__(tape)
        self.global_keyprefix = global_keyprefix

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> _Pipeline:
        return _Pipeline(self._tape, self.global_keyprefix)

    def register_script(self, script: str) -> Script:
        self._tape.commands.append(("SCRIPT", "LOAD", script))
        return Script(self, script.encode())


class _Pipeline(_Client):
    """A transaction, which is on the tape once it is executed."""

    def __init__(self, tape: _Tape, global_keyprefix: str) -> None:
        super().__init__(_Tape(), global_keyprefix)
        self._target = tape

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Nothing is held."""

    def execute_command(self, *command: Any, **options: Any) -> _Pipeline:
        super().execute_command(*command, **options)  # type: ignore[no-untyped-call]  # as all of kombu
        return self

    def execute(self) -> list[Any]:
        self._target.commands += [("MULTI",), *self._tape.take(), ("EXEC",)]
        return []
