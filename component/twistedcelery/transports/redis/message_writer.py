"""Turns messages into Redis commands, by kombu's own Redis transport.

The envelope around a body, the names of queues, priorities, bindings and fanout channels, key
prefixes and transport options are those of the installed kombu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.encoding.replay import Replay
from twistedcelery.errors import EncodeError, TwistedCeleryError, Unroutable
from twistedcelery.transports.connection import Refused
from twistedcelery.transports.redis.channel import ChannelTape, offline_channel
from twistedcelery.transports.redis.link import Command

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["MessageWriter"]

#: Commands whose reply decides what follows: where a message goes is read from the bindings.
_QUESTIONS = frozenset({"SMEMBERS"})


class MessageWriter:
    """The commands that kombu's client sends over one connection.

    It remembers what it has declared, as kombu does for a connection.

    :param connection: from ``app.connection_for_write()``; it is never connected
    :param ask: sends commands; fires with the reply to the last one
    """

    def __init__(self, connection: Connection, ask: Callable[[Sequence[Command]], Deferred[Any]]) -> None:
        self._replay = Replay(ask)
        self._tape = ChannelTape(self._replay.step, _QUESTIONS)
        self._channel: Any = offline_channel(connection, self._tape)
        # By identity, which is cheap; the entities are kept, so that no identity is used twice.
        self._declared: dict[int, Any] = {}

    def write(self, message: OutgoingMessage) -> list[Command] | Deferred[list[Command]]:
        """Everything that kombu's client would send for a message, declarations first.

        After an error the writer may take something for declared that was not sent: make another one.

        :return: a Deferred if the bindings must be read first; what was declared goes out before that.
            It may fail with what ``ask`` failed with, and with `EncodeError` or `Unroutable`.
        :raises EncodeError: the message does not fit into kombu's envelope
        :raises Refused: kombu cannot declare what the message needs
        :raises Unroutable: for a ``mandatory`` message that no queue is bound for
        """
        declared = self._declare(message)
        commands = self._replay.start(self._publish, message)
        if isinstance(commands, Deferred):
            # The declarations go out with the question.
            return commands.addCallback(_check_route, message, 0)
        return _check_route(commands, message, declared)

    def _declare(self, message: OutgoingMessage) -> int:
        """:return: how many commands that has recorded"""
        for entity in message.declare:
            if id(entity) in self._declared:
                continue
            try:
                entity.bind(self._channel).declare(channel=self._channel)
            except Exception as error:
                # For example, an exchange that was declared with another type.
                self._tape.take()
                raise Refused(f"{entity!r} cannot be declared: {error}") from error
            if entity.can_cache_declaration:
                self._declared[id(entity)] = entity
        return len(self._tape.commands)

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
            return self._tape.take()
        except Exception as error:
            self._tape.take()
            if isinstance(error, TwistedCeleryError | Refused):
                # The question failed.
                raise
            # Serialising the envelope runs the methods of whatever is in the headers.
            raise EncodeError(f"the message cannot be put into kombu's envelope: {error}") from error


def _check_route(commands: list[Command], message: OutgoingMessage, declared: int) -> list[Command]:
    if message.mandatory and len(commands) == declared:
        raise Unroutable(
            f"no queue is bound to exchange {message.exchange!r} with routing key {message.routing_key!r}"
        )
    return commands
