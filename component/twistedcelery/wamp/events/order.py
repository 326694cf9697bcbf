"""Publishes the events of one task in order, each once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from twistedcelery.wamp.event_kinds import SENT, Ends
from twistedcelery.wamp.events.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

    from twistedcelery._types import Clock
    from twistedcelery.wamp.events.topics import TaskEvent

__all__ = ["EventOrder"]

#: Seconds between two progress events of one task: 20 in a second, counting the first.
PROGRESS_INTERVAL = 1 / 19


class EventOrder:
    """Drops events that are duplicates, late, too frequent, or after the end of the task.

    A worker may get a task a second time, and its events may arrive out of order. Another attempt may
    repeat every event but ``sent``.
    """

    def __init__(self, clock: Clock, publish: Callable[[TaskEvent], None]) -> None:
        self._clock = clock
        self._publish = publish
        self._rank = -1
        self._sent = self._ended = False
        #: Events of the next attempt that arrived early.
        self._next_attempt: list[TaskEvent] = []
        self._throttle: Throttle[TaskEvent] | None = None

    def publish(self, event: TaskEvent) -> None:
        """Publish an event, unless it comes too late."""
        if self._ended:
            return
        kind = event.kind
        if kind.is_throttled:
            self._rank = kind.rank
            self._offer(event)
        elif kind.ends is Ends.NOTHING and kind.rank <= self._rank:
            self._overtaken(event)
        else:
            self._sent = self._sent or kind is SENT
            self._advance(event)

    def stop(self) -> None:
        """Publish nothing more."""
        self._ended = True
        if self._throttle is not None:
            self._throttle.stop()

    def _advance(self, event: TaskEvent) -> None:
        next_attempt: list[TaskEvent] = []
        if event.is_final:
            self.stop()
        else:
            if self._throttle is not None:
                self._throttle.supersede()
            self._rank = event.kind.rank
            if event.is_retry:
                self._rank = SENT.rank
                next_attempt, self._next_attempt = self._next_attempt, []
        self._publish(event)
        for later in next_attempt:
            self.publish(later)

    def _overtaken(self, event: TaskEvent) -> None:
        if not event.kind.may_be_late:
            # A duplicate, or of the next attempt: a worker requeues a task before it reports that.
            if all(event.kind is not earlier.kind for earlier in self._next_attempt):
                self._next_attempt.append(event)
        elif not self._sent:
            # A client reports a task after it has sent it. A worker may be faster.
            self._sent = True
            self._publish(replace(event, overtaken=True))

    def _offer(self, event: TaskEvent) -> None:
        if self._throttle is None:
            self._throttle = Throttle(self._clock, PROGRESS_INTERVAL, self._publish)
        self._throttle.offer(event)
