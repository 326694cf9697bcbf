"""Publishes messages to Redis, each confirmed by the replies to its commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer
from twistedcelery.errors import BrokerUnavailable, PublishRejected, TwistedCeleryError
from twistedcelery.transports.connection import Refused, RefusedForNow, backoff, caused
from twistedcelery.transports.publishing import Publication, QueuedPublisher
from twistedcelery.transports.redis.link import Command, RedisLink
from twistedcelery.transports.redis.message_writer import MessageWriter

__all__ = ["RedisPublisher"]

#: Sends commands over a link; fires with the reply to the last one.
Ask = Callable[[Sequence[Command]], Deferred[Any]]

#: The longest time, in seconds, until a message that Redis could not take for the moment is sent again.
_MAX_DELAY = 1.0


class RedisPublisher(QueuedPublisher[RedisLink, Publication]):
    """A `twistedcelery.transports.publishing.QueuedPublisher` whose messages Redis' replies confirm.

    While Redis cannot take messages, since it cannot write to its disk for example, they wait. One of them
    is sent now and then; once Redis has taken it, the others follow.

    :param make_writer: makes what turns messages into commands, for each link
    :param limits: further parameters of the queue
    """

    def __init__(
        self,
        reactor: Clock,
        publish_timeout: float,
        make_writer: Callable[[Ask], MessageWriter],
        **limits: Any,
    ) -> None:
        super().__init__(reactor, publish_timeout, **limits)
        self._make_writer = make_writer
        self._link: RedisLink | None = None
        self._writer: MessageWriter | None = None
        # What Redis could not take, until it has answered everything that was sent.
        self._refused: list[Publication] = []
        self._refusal: RefusedForNow | None = None
        self._refusals = 0
        self._next_try: Timer | None = None

    def close(self) -> Deferred[None]:
        """As `twistedcelery.transports.interface.Publisher.close`."""
        self._stop_trying()
        return super().close()

    def prepare(self, link: RedisLink) -> Deferred[None]:
        """Begin anew: another link may lead to a server without the declarations of the last one."""
        self._link = link
        self._renew_writer(link)
        return succeed(None)

    def _renew_writer(self, link: RedisLink) -> None:
        self._writer = self._make_writer(
            lambda commands: link.send(commands).addCallback(lambda replies: replies[-1])
        )

    def _has_link(self) -> bool:
        return self._link is not None

    def _let_go(self) -> None:
        self._link = self._writer = None
        self._refused.clear()
        self._stop_trying()

    def _dispatch(self, publication: Publication) -> None:
        link = self._link
        assert link is not None
        assert self._writer is not None
        try:
            commands = self._writer.write(publication.message)
        except (TwistedCeleryError, Refused) as error:
            self._renew_writer(link)
            publication.fail(_unwritable(publication, error))
            return
        if isinstance(commands, Deferred):
            self._preparing[publication] = None
            commands.addCallbacks(
                self._written,
                self._not_written,
                callbackArgs=(publication, link),
                errbackArgs=(publication, link),
            )
        else:
            self._send(publication, commands, link)

    def _written(self, commands: list[Command], publication: Publication, link: RedisLink) -> None:
        if link is self._link:
            if publication in self._preparing:
                del self._preparing[publication]
                self._send(publication, commands, link)
            if publication not in self._unconfirmed:
                self._answered()
            elif self._blocked is None:
                self._pump()

    def _not_written(self, failure: Failure, publication: Publication, link: RedisLink) -> None:
        if failure.check(Refused):
            self._not_taken(failure, publication, link)
        elif not failure.check(BrokerUnavailable) and link is self._link:
            self._preparing.pop(publication, None)
            publication.fail(_unwritable(publication, failure.value))
            self._answered()

    def _send(self, publication: Publication, commands: list[Command], link: RedisLink) -> None:
        if not commands:
            # Nothing is bound, and the message is not mandatory.
            publication.succeed()
            return
        if not link.is_alive:
            # The message waits for the next link: `connection_lost` follows.
            self._waiting.prepend([publication])
            self._link = None
            link.abort()
            return
        publication.sent = True
        self._unconfirmed[publication] = publication
        link.send(commands).addCallbacks(
            self._taken,
            self._not_taken,
            callbackArgs=(publication, link),
            errbackArgs=(publication, link),
        )

    def _taken(self, _replies: object, publication: Publication, link: RedisLink) -> None:
        if link is not self._link:
            return
        self._unconfirmed.pop(publication, None)
        self._refusals = 0
        publication.succeed()
        self._answered()

    def _not_taken(self, failure: Failure, publication: Publication, link: RedisLink) -> None:
        if link is not self._link or failure.check(BrokerUnavailable):
            # `connection_lost` follows, or came already.
            return
        self._unconfirmed.pop(publication, None)
        self._preparing.pop(publication, None)
        # Redis may have refused a declaration: declare it again.
        self._renew_writer(link)
        error = failure.value
        if isinstance(error, RefusedForNow) and not error.partly:
            # One that may be sent again may have been sent over an earlier link, too.
            publication.sent = publication.message.resend
            if not publication.settled:
                self._preparing[publication] = None
                self._refused.append(publication)
            self._answered(error)
        else:
            publication.fail(caused(PublishRejected(f"{publication}: Redis says {error}"), error))
            self._answered()

    # A Redis that takes nothing for the moment

    def _answered(self, refusal: RefusedForNow | None = None) -> None:
        """Go on after a reply.

        :param refusal: the reply says that Redis cannot take messages for the moment
        """
        self._refusal = refusal
        if refusal is not None:
            self.link_blocked(f"Redis says {refusal}")
        if self._blocked is None:
            self._pump()
            return
        if self._unconfirmed:
            # The reply to the last message decides.
            return
        refused = [publication for publication in self._refused if publication in self._preparing]
        self._refused.clear()
        for publication in refused:
            del self._preparing[publication]
        self._waiting.prepend(refused)
        if refusal is None:
            self._stop_trying()
            self.link_unblocked()
        elif self._next_try is None:
            delay = min(_MAX_DELAY, backoff(self._refusals))
            self._refusals += 1
            self._next_try = self._reactor.callLater(delay, self._try_again)

    def _try_again(self) -> None:
        self._next_try = None
        if str(self._refusal).startswith("READONLY"):
            # It is a replica now. The next link may lead to the new master.
            self._connection.drop()
            return
        if self._waiting:
            self._dispatch(self._waiting.pop())
        if not (self._unconfirmed or self._preparing):
            self.link_unblocked()

    def _stop_trying(self) -> None:
        if self._next_try is not None:
            self._next_try.cancel()
            self._next_try = None


def _unwritable(publication: Publication, error: Any) -> TwistedCeleryError:
    cls = PublishRejected if isinstance(error, Refused) else type(error)
    return caused(cls(f"{publication}: {error}"), error)
