"""Messages to Redis, each confirmed by the replies to its commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from twistedcelery._types import Clock
from twistedcelery.errors import (
    BrokerUnavailable,
    PublishRejected,
    TwistedCeleryError,
)
from twistedcelery.transports.publication import Publication
from twistedcelery.transports.queued import QueuedPublisher
from twistedcelery.transports.redis.channel import AnswerNeeded
from twistedcelery.transports.redis.link import Command, RedisLink
from twistedcelery.transports.redis.recorder import Recorder

__all__ = ["RedisPublisher"]


class RedisPublisher(QueuedPublisher[RedisLink, Publication]):
    """A `twistedcelery.transports.queued.QueuedPublisher` whose messages Redis' replies confirm.

    :param make_recorder: makes what turns messages into commands, for each link
    :param limits: further parameters of the queue
    """

    def __init__(
        self, reactor: Clock, publish_timeout: float, make_recorder: Callable[[], Recorder], **limits: Any
    ) -> None:
        super().__init__(reactor, publish_timeout, **limits)
        self._make_recorder = make_recorder
        self._link: RedisLink | None = None
        self._recorder: Recorder | None = None

    def prepare(self, link: RedisLink) -> Deferred[None]:
        """Begin anew: what was declared over another link may be gone with another server's data."""
        self._recorder = self._make_recorder()
        self._link = link
        return succeed(None)

    def _has_link(self) -> bool:
        return self._link is not None

    def _let_go(self) -> None:
        self._link = self._recorder = None

    def _dispatch(self, publication: Publication) -> None:
        self._record(publication, {})

    def _record(self, publication: Publication, answers: Mapping[Command, Any]) -> None:
        assert self._recorder is not None
        try:
            commands = self._recorder.record(publication.message, answers)
        except AnswerNeeded as needed:
            self._ask(publication, needed)
        except TwistedCeleryError as error:
            described = type(error)(f"{publication}: {error}")
            described.__cause__ = error
            publication.fail(described)
        else:
            self._send(publication, commands)

    def _ask(self, publication: Publication, needed: AnswerNeeded) -> None:
        link = self._link
        assert link is not None
        self._preparing[publication] = None
        if needed.before:
            link.send(needed.before).addErrback(self._not_taken, publication, link)
        link.ask(needed.question).addCallbacks(
            self._answered,
            self._not_taken,
            callbackArgs=(publication, link, needed.question),
            errbackArgs=(publication, link),
        )

    def _answered(self, reply: Any, publication: Publication, link: RedisLink, question: Command) -> None:
        if link is self._link and publication in self._preparing:
            del self._preparing[publication]
            self._record(publication, {question: reply})

    def _send(self, publication: Publication, commands: list[Command]) -> None:
        link = self._link
        assert link is not None
        if not commands:
            # Nothing is bound, and nobody wants to be told.
            publication.succeed()
            return
        if not link.is_alive:
            # The message waits for the next link, which this one's end, about to be told, brings.
            self._wait_first([publication])
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
        publication.succeed()
        self._pump()

    def _not_taken(self, failure: Failure, publication: Publication, link: RedisLink) -> None:
        if link is not self._link or failure.check(BrokerUnavailable):
            # The connection tells of its end itself.
            return
        self._unconfirmed.pop(publication, None)
        self._preparing.pop(publication, None)
        # What was declared may have been among what Redis refused: declare it again.
        self._recorder = self._make_recorder()
        error = PublishRejected(f"{publication}: Redis says {failure.value}")
        error.__cause__ = failure.value
        publication.fail(error)
        self._pump()
