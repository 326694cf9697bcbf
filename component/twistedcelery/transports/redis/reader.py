"""One queue as kombu's own Redis transport declares, consumes and deletes it: commands out, messages in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from twistedcelery.errors import PublishRejected
from twistedcelery.transports.interface import IncomingMessage
from twistedcelery.transports.redis.channel import Tape, offline_channel
from twistedcelery.transports.redis.link import Command

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["QueueReader", "is_fanout"]

_log = Logger()


def is_fanout(queue: Any) -> bool:
    """Whether a queue's messages are published to subscribers; those of any other are in a list."""
    return bool(queue.exchange is not None and queue.exchange.type == "fanout")


class QueueReader:
    """A queue over one connection to Redis.

    :param connection: from ``app.connection_for_read()``; it is never connected
    :param queue: a kombu ``Queue``, not bound to a channel
    """

    def __init__(self, connection: Connection, queue: Any) -> None:
        self._tape = Tape()
        self._channel: Any = offline_channel(connection, self._tape)
        self._queue = queue
        self._taken_in: list[IncomingMessage] = []

    def declare(self) -> list[Command]:
        """What declares the queue and binds it.

        :raises PublishRejected: it cannot be declared
        """
        try:
            self._queue.bind(self._channel).declare(channel=self._channel)
        except Exception as error:
            # Such as a type of exchange that kombu does not know.
            raise PublishRejected(f"{self._queue!r} cannot be declared: {error}") from error
        return self._tape.take()

    def consume(self) -> list[Command]:
        """What subscribes to a fanout queue. For any other there is `pop`, again and again."""
        name = self._queue.name
        self._channel.basic_consume(name, no_ack=True, callback=self._take_in, consumer_tag=name)
        # What kombu's poller calls; none of this has a public name.
        self._channel._subscribe()  # noqa: SLF001  # see above
        return self._tape.take()

    def pop(self) -> Command:
        """What takes a message from the queue's lists, or waits for one for a second."""
        self._channel._brpop_start()  # noqa: SLF001  # as in consume
        (command,) = self._tape.take()
        return command

    def popped(self, reply: Any) -> IncomingMessage | None:
        """The message in the reply to `pop`; ``None`` where there is none, or none of kombu's."""
        self._tape.popped = reply
        return self._read(self._channel._brpop_read)  # noqa: SLF001  # as in consume

    def published(self, channel: bytes, payload: bytes) -> IncomingMessage | None:
        """The message that came over a subscription; ``None`` where it is none of kombu's."""
        self._tape.published = channel, payload
        return self._read(
            lambda: self._channel._receive_one(self._channel.subclient)  # noqa: SLF001  # as in consume
        )

    def refresh(self) -> list[Command]:
        """What keeps a queue that expires alive, now and then: for kombu 5.7 and newer, its bindings."""
        refresh = getattr(self._channel, "maybe_refresh_binding_expiry", None)
        if refresh is not None:
            refresh()
        return self._tape.take()

    def delete(self) -> list[Command]:
        """What deletes the queue and its bindings. It was declared here."""
        self._channel.queue_delete(self._queue.name)
        return self._tape.take()

    def purge(self) -> list[Command]:
        """What discards all messages."""
        self._channel.queue_purge(self._queue.name)
        return self._tape.take()

    def purged(self, replies: Sequence[Any]) -> int:
        """The number of messages that `purge` has discarded.

        :param replies: those to its commands
        """
        self._tape.executed = replies[-1]
        count: int = self._channel.queue_purge(self._queue.name)
        self._tape.take()
        return count

    def _read(self, step: Callable[[], object]) -> IncomingMessage | None:
        try:
            step()
        except Empty:
            # kombu's way to say that nothing came, or that it has logged something it cannot read.
            pass
        except Exception as error:
            # Whoever may publish may write anything there.
            _log.warn(
                "what came to queue {queue} is dropped, as it is no message of kombu's: {error!r}",
                queue=self._queue.name,
                error=error,
            )
        finally:
            taken_in, self._taken_in = self._taken_in, []
            self._tape.take()
        return taken_in[0] if taken_in else None

    def _take_in(self, message: Any) -> None:
        self._taken_in.append(
            IncomingMessage(message.body, message.content_type, message.content_encoding, message.headers)
        )
