"""Messages in, Redis commands out: kombu's own Redis transport, recorded.

The envelope around a body, the names of queues, priorities, bindings and fanout channels, key
prefixes and transport options are those of the installed kombu.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twistedcelery.encoding.message import OutgoingMessage
from twistedcelery.errors import EncodeError, PublishRejected, Unroutable
from twistedcelery.transports.redis.channel import AnswerNeeded, Tape, offline_channel
from twistedcelery.transports.redis.link import Command

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["Recorder"]


class Recorder:
    """What kombu's client does to a server over one connection, as commands.

    It remembers what it has declared, as kombu does for a connection.

    :param connection: from ``app.connection_for_write()``; it is never connected
    """

    def __init__(self, connection: Connection) -> None:
        self._tape = Tape()
        self._channel: Any = offline_channel(connection, self._tape)
        # By identity, which is cheap; the entities are kept, so that no identity is used twice.
        self._declared: dict[int, Any] = {}

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
