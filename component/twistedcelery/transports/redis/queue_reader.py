"""Gives the Redis commands that declare, consume and delete a queue, by kombu's own Redis transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedcelery.encoding.replay import Replay
from twistedcelery.transports.connection import Refused
from twistedcelery.transports.interface import IncomingMessage, QueueState
from twistedcelery.transports.redis.channel import ChannelTape, offline_channel
from twistedcelery.transports.redis.link import Command

if TYPE_CHECKING:
    from kombu.connection import Connection

__all__ = ["QueueReader", "is_fanout"]

_log = Logger()


def is_fanout(queue: Any) -> bool:
    """Whether a queue's messages are published to subscribers; other queues are lists."""
    return bool(queue.exchange is not None and queue.exchange.type == "fanout")


class QueueReader:
    """A queue over one connection to Redis. What a method returns is to be sent over it.

    :param connection: from ``app.connection_for_read()``; it is never connected
    :param queue: a kombu ``Queue``, not bound to a channel
    """

    def __init__(self, connection: Connection, queue: Any) -> None:
        self._tape = ChannelTape()
        self._channel: Any = offline_channel(connection, self._tape)
        self._queue = queue
        self._taken_in: list[IncomingMessage] = []
        self._pidbox_suffix = ""

    def declare(self) -> list[Command]:
        """Declare the queue and bind it.

        :raises Refused: kombu cannot declare it
        """
        try:
            self._queue.bind(self._channel).declare(channel=self._channel)
        except Exception as error:
            # For example, a type of exchange that kombu does not know.
            raise Refused(f"{self._queue!r} cannot be declared: {error}") from error
        return self._tape.take()

    def consume(self) -> list[Command]:
        """Subscribe to a fanout queue. For any other queue, `pop` takes each message."""
        name = self._queue.name
        self._channel.basic_consume(name, no_ack=True, callback=self._take_in, consumer_tag=name)
        # kombu's poller calls this; none of it has a public name.
        self._channel._subscribe()  # noqa: SLF001  # see above
        return self._tape.take()

    def pop(self) -> Command:
        """Take a message from the queue's lists, or wait for one for a second."""
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
        """Keep the bindings of a queue that expires (kombu 5.7 and newer); nothing if it is too early."""
        refresh = getattr(self._channel, "maybe_refresh_binding_expiry", None)
        if refresh is not None:
            refresh()
        return self._tape.take()

    def delete(self) -> list[Command]:
        """Delete the queue, which was declared here, and its bindings."""
        self._channel.queue_delete(self._queue.name)
        return self._tape.take()

    def purge(self, ask: Callable[[Sequence[Command]], Deferred[Any]]) -> Deferred[int]:
        """Discard all messages.

        :param ask: sends commands; fires with the reply to the last one
        :return: fires with how many messages there were
        """
        replay = Replay(ask)
        self._tape.ask, self._tape.questions = replay.step, {"EXEC"}
        return replay.run(lambda: self._channel.queue_purge(self._queue.name))

    def look(self, pidbox: str) -> list[Command]:
        """Ask how many messages wait, how many are unacknowledged, and which workers there are.

        :param pidbox: the exchange that every worker binds a queue to, until it stops in good order
        """
        channel = self._channel
        for step in channel.priority_steps:
            channel.client.llen(channel._q_for_pri(self._queue.name, step))  # noqa: SLF001  # as in consume
        channel.client.hlen(channel.unacked_key)
        channel.client.smembers(channel.keyprefix_queue % pidbox)
        self._pidbox_suffix = f".{pidbox}"
        return self._tape.take()

    def looked(self, replies: Sequence[Any]) -> QueueState:
        """:param replies: those to the commands of `look`"""
        *counts, bindings = replies
        bound = [member.decode().split(self._channel.sep)[-1] for member in bindings]
        names = frozenset(queue.removesuffix(self._pidbox_suffix) for queue in bound)
        return QueueState(sum(counts), workers=names)

    def _read(self, step: Callable[[], object]) -> IncomingMessage | None:
        try:
            step()
        except Empty:
            # kombu's way to say that nothing came, or that it has logged something it cannot read.
            pass
        except Exception as error:
            # Other clients may write anything there.
            _log.warn(
                "dropped from queue {queue}, as it is no message of kombu's: {error!r}",
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
