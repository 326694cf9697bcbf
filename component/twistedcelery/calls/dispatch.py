"""One call on its way: encoded, watched, published, confirmed, ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedcelery._deferreds import all_done
from twistedcelery._types import Clock
from twistedcelery.calls.call import TaskDeferred
from twistedcelery.calls.doubts import Doubt, Doubts
from twistedcelery.calls.lost import LostCalls
from twistedcelery.encoding.message import Encoded, OutgoingMessage
from twistedcelery.errors import (
    NoResultBackend,
    PublishUnconfirmed,
    ResultBackendUnavailable,
    TwistedCeleryError,
)
from twistedcelery.results.backend import ResultBackend
from twistedcelery.results.join import Join
from twistedcelery.results.pending import PendingResults
from twistedcelery.transports.binding import BoundTransport
from twistedcelery.transports.deadlines import Deadlines

if TYPE_CHECKING:
    from twistedcelery.calls.dispatcher import Pacer
    from twistedcelery.results.result import AnyResult

__all__ = ["TRANSITIONS", "Dispatch", "Event", "Route", "State"]

_log = Logger()


# Integers, which are cheap keys: each call looks up five steps.


class State(IntEnum):
    """Where a call stands."""

    QUEUED = auto()  #: waits for its turn to be encoded
    ENCODED = auto()  #: has its messages; the way back is being prepared
    WATCHED = auto()  #: misses no state of its tasks; waits for its turn to be published
    PUBLISHED = auto()  #: handed to the publisher
    CONFIRMED = auto()  #: the broker has all of it
    ENDED = auto()  #: its caller has the outcome
    CANCELLED = auto()  #: its caller has given it up


class Event(IntEnum):
    """What moves it."""

    ENCODE = auto()
    WATCH = auto()
    PUBLISH = auto()
    CONFIRM = auto()
    END = auto()  #: a value, or any failure: a result can overtake the broker's confirmation
    CANCEL = auto()


#: What does not stand here is ignored: it comes too late.
TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.QUEUED, Event.ENCODE): State.ENCODED,
    (State.ENCODED, Event.WATCH): State.WATCHED,
    (State.WATCHED, Event.PUBLISH): State.PUBLISHED,
    (State.PUBLISHED, Event.CONFIRM): State.CONFIRMED,
    **{(state, Event.END): State.ENDED for state in list(State)[:5]},
    **{(state, Event.CANCEL): State.CANCELLED for state in list(State)[:5]},
}


@dataclass(slots=True)
class Route:
    """What every call of a client goes by.

    :ivar pending: who waits for which task
    :ivar backend: makes results, and joins them
    :ivar pacer: spreads bursts over reactor turns
    :ivar lost: finds out what became of calls that wait long
    :ivar doubts: messages whose confirmation was lost
    :ivar clock: for time limits
    :ivar publish_timeout: seconds for the broker to take messages that set no limit of their own
    :ivar terminate: whether cancelling a call kills the processes that run its tasks
    :ivar in_flight: the calls that have not ended
    :ivar preparing: limits the time in which the way back is prepared
    """

    pending: PendingResults
    backend: ResultBackend
    pacer: Pacer
    lost: LostCalls
    doubts: Doubts
    clock: Clock
    publish_timeout: float
    terminate: bool
    in_flight: dict[Dispatch, None] = field(default_factory=dict)
    preparing: Deadlines[Dispatch] = field(init=False)

    def __post_init__(self) -> None:
        self.preparing = Deadlines(self.clock, Dispatch.give_up_preparing)


class Dispatch:
    """The life of one call.

    A single task waits for its result as itself: this is a `twistedcelery.results.pending.Waiting`.
    For a canvas a `twistedcelery.results.join.Join` waits.

    :param call: what its caller holds
    :param encode: makes the messages, when it is the call's turn
    :ivar state: where it stands; `TRANSITIONS` has the ways
    """

    __slots__ = (
        "_doubts",
        "_encode",
        "_is_revoked",
        "_is_taken",
        "_join",
        "_preparing",
        "_publications",
        "_published_at",
        "_route",
        "_transport",
        "_unconfirmed",
        "_waits",
        "call",
        "state",
        "task_id",
    )

    def __init__(
        self, call: TaskDeferred, encode: Callable[[], Encoded], transport: BoundTransport, route: Route
    ) -> None:
        self.call = call
        self.task_id = call.task_id
        self.state = State.QUEUED
        self._encode = encode
        self._transport = transport
        self._route = route
        self._join: Join | None = None
        self._waits = False
        self._preparing: Deferred[None] | None = None
        self._publications: list[Deferred[None]] = []
        self._published_at = 0.0
        self._doubts: list[Doubt] = []
        self._unconfirmed = 0
        #: Whether the broker has, or may have, any of its messages.
        self._is_taken = False
        self._is_revoked = False
        call.dispatch = self
        route.in_flight[self] = None

    # The way out

    def start(self) -> None:
        """Send it: it is its turn."""
        if self.state is not State.QUEUED:
            # Cancelled while it waited, or the client was disconnected.
            return
        try:
            encoded = self._encode()
        except BaseException as error:
            # An eager task may raise anything; the call is the only way to report it.
            self.refuse(Failure(error))
            return
        if not self._move(Event.ENCODE):
            # A handler of Celery's publish signals has cancelled it.
            return
        preparing = self._prepare(encoded)
        if preparing is None:
            self._move(Event.WATCH)
            self._publish(encoded.messages)
            return
        # Publish within the time for publishing, of which this is a part.
        limits = [message.confirm_timeout for message in encoded.messages if message.confirm_timeout]
        allowed = max(limits, default=self._route.publish_timeout)
        deadline = self._route.clock.seconds() + allowed
        self._preparing = preparing
        self._route.preparing.add(allowed, self)
        preparing.addCallbacks(self._prepared, self.refuse, callbackArgs=(encoded, deadline))

    def _prepare(self, encoded: Encoded) -> Deferred[None] | None:
        """Wait for the results from now on, and prepare the result backend for chords."""
        result: AnyResult | None = None
        if encoded.result is not None:
            result = self.call.async_result = self._route.backend.adopt(encoded.result, encoded.ignored)
        if result is None and self.task_id in encoded.ignored:
            watching = None
        elif result is None or result.is_single:
            self._waits = True
            watching = self._route.pending.add(self)
        else:
            self._join = Join(result, self._joined, self.call.update, in_order=self._transport.in_order)
            watching = self._route.backend.listen(self._join)
        store = self._transport.store
        if not encoded.preparations or store is None:
            return watching
        preparing = store.prepare(encoded.preparations)
        return preparing if watching is None else all_done([watching, preparing])

    @property
    def settled(self) -> bool:
        """Whether it waits for no preparation."""
        return self.state is not State.ENCODED

    def give_up_preparing(self) -> None:
        """The time for it is over."""
        assert self._preparing is not None
        # Its own error says more than Twisted's.
        self._preparing.cancel()

    def _prepared(self, _: object, encoded: Encoded, deadline: float) -> None:
        self._preparing = None
        if not self._move(Event.WATCH):
            return

        def publish() -> None:
            left = max(0.0, deadline - self._route.clock.seconds())
            self._publish([replace(message, confirm_timeout=left) for message in encoded.messages])

        # Thousands may have waited for the same moment.
        if self._route.pacer.has_room():
            publish()
        else:
            self._route.pacer.enqueue(publish)

    def _publish(self, messages: Sequence[OutgoingMessage]) -> None:
        if not self._move(Event.PUBLISH):
            return
        self._published_at = self._route.clock.seconds()
        # One more until all are handed over, so that what is confirmed at once does not end it early.
        self._unconfirmed = 1
        for message in messages:
            if self.state is not State.PUBLISHED:
                # An earlier one was refused at once.
                return
            publication = self._transport.publisher.publish(message)
            if message.task_id is None:
                publication.addErrback(_log_event_lost)
                continue
            self._publications.append(publication)
            self._unconfirmed += 1
            publication.addCallbacks(
                self._confirmed, self._not_published, callbackArgs=(message,), errbackArgs=(message,)
            )
        self._one_less()

    def _confirmed(self, _: object, message: OutgoingMessage) -> None:
        self._is_taken = True
        if self.state is State.PUBLISHED:
            self._route.lost.sent(message)
        self._one_less()

    def _one_less(self) -> None:
        self._unconfirmed -= 1
        if self._unconfirmed or not self._move(Event.CONFIRM):
            # A fast worker's reply can overtake the broker's confirmation.
            return
        self.call.mark_published()
        if self.state is not State.CONFIRMED:
            # A callback of `published` has cancelled the call.
            return
        if self._join is not None:
            self._join.check()
        elif not self._waits:
            self._end(None)
        elif self.call.sent_before:
            # Its end may have come before this call.
            self._route.backend.catch_up(self.task_id).addErrback(self.refuse)
        if self.state is State.CONFIRMED and not self._transport.results.available:
            self.fail(NoResultBackend(f"{self.task_name} was sent; {NoResultBackend.__doc__}"))

    def _not_published(self, failure: Failure, message: OutgoingMessage) -> None:
        if failure.check(CancelledError):
            # Withdrawn before it was sent.
            return
        self._is_taken = True
        if self.state is State.CANCELLED:
            # Its caller cancelled after the message had left: the broker may have the task.
            self._revoke()
            return
        if failure.check(PublishUnconfirmed) and self._may_live(failure, message):
            return
        self._refuse_message(failure, message)

    def _may_live(self, failure: Failure, message: OutgoingMessage) -> bool:
        """Wait, within the time for publishing, for a state of a task whose confirmation was lost."""
        allowed = message.confirm_timeout
        if allowed is None:
            allowed = self._route.publish_timeout
        left = self._published_at + allowed - self._route.clock.seconds()
        expects_states = self._waits or self._join is not None
        if left <= 0 or not expects_states or self.state is not State.PUBLISHED:
            return False
        assert message.task_id is not None

        def settled(is_alive: bool) -> None:
            if is_alive:
                self._confirmed(None, message)
            else:
                self._refuse_message(failure, message)

        self._doubts.append(self._route.doubts.add(message.task_id, left, settled))
        return True

    def _refuse_message(self, failure: Failure, message: OutgoingMessage) -> None:
        if len(self._publications) > 1 and isinstance(failure.value, TwistedCeleryError):
            name = message.headers.get("task", "a task")
            error = type(failure.value)(f"{name} [{message.task_id}]: {failure.value}")
            error.__cause__ = failure.value
            failure = Failure(error)
        self.refuse(failure)

    # The way back: a single task's, as a `twistedcelery.results.pending.Waiting`

    @property
    def task_name(self) -> str:
        """The call's."""
        return self.call.task_name

    @property
    def holder(self) -> TaskDeferred:
        """The call has the final state."""
        return self.call

    def update(self, state: str, meta: Any) -> None:
        """The task has a state that is not final."""
        self.call.update(state, meta)

    def finish(self, meta: Mapping[str, Any]) -> None:
        """The task has ended."""
        # Who calls this waits no more.
        self._waits = False
        if self._move(Event.END):
            self._let_go()
            self.call.finish(meta)

    def fail(self, error: TwistedCeleryError) -> None:
        """The result will not come."""
        if isinstance(error, ResultBackendUnavailable):
            # Nor will a sign of life of what the broker may have.
            for doubt in tuple(self._doubts):
                self._route.doubts.give_up(doubt)
        self.refuse(Failure(error))

    # The end

    def refuse(self, failure: Failure) -> None:
        """End it, and what waits for its publication, with a failure."""
        if self._move(Event.END):
            self._let_go()
            self._withdraw()
            self.call.fail_published(failure)

    def cancel(self) -> None:
        """Keep its tasks from being run: withdraw their messages, or have them revoked."""
        if not self._move(Event.CANCEL):
            return
        self._let_go()
        self._withdraw()
        if self._is_taken:
            self._revoke()

    def _joined(self, outcome: Any) -> None:
        result = self.call.async_result
        assert result is not None
        if result.members is None:
            self.call.meta = result.meta
        self._end(outcome)

    def _end(self, outcome: Any) -> None:
        if self._move(Event.END):
            self._let_go()
            self.call.finish_joined(outcome)

    def _move(self, event: Event) -> bool:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            return False
        self.state = following
        return True

    def _let_go(self) -> None:
        del self._route.in_flight[self]
        if not self.call.sent_before:
            self._route.lost.discard(self.task_id)
        if self._waits:
            self._route.pending.discard(self)
        for doubt in self._doubts:
            self._route.doubts.discard(doubt)
        if self._join is not None:
            for member in self._join.members:
                self._route.lost.discard(member.task_id)
            self._route.backend.dismiss(self._join)
        # Arguments may be large, and the call may be kept.
        self.call.dispatch = None
        del self._encode

    def _withdraw(self) -> None:
        for publication in self._publications:
            # Does nothing to one that has fired.
            publication.cancel()

    def _revoke(self) -> None:
        if self._is_revoked:
            return
        self._is_revoked = True
        self.call.revoke(self._route.terminate).addErrback(self._not_revoked)

    def _not_revoked(self, failure: Failure) -> None:
        # Log it: the caller has gone.
        _log.warn(
            "task {id} was cancelled, but could not be revoked: {error}",
            id=self.task_id,
            error=failure.value,
        )


def _log_event_lost(failure: Failure) -> None:
    # The event is for monitors; the task succeeds or fails without it.
    _log.warn("a task-sent event could not be published: {error}", error=failure.value)
