"""The events of one run of a task, each told once and in order, whoever tells of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from twistedcelery.wamp.events.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

    from twistedcelery._types import Clock
    from twistedcelery.wamp.events.topics import TaskEvent

__all__ = ["Story"]

#: Seconds between two progress events of one task: 20 in a second, the one that begins it included.
PROGRESS_INTERVAL = 1 / 19

#: The order of what leads up to an end. What has been overtaken is not told any more, but for ``sent``.
_RANKS = {"sent": 0, "received": 1, "started": 2, "progress": 3}


class Story:
    """Passes a task's events on to ``publish``, but not twice, too late, too often, or after its end.

    Workers may be given a task a second time, and their events may come out of order. After an event
    with which a task begins anew (``retried``; ``rejected``, where it goes back to its queue),
    all but ``sent`` may come again.
    """

    def __init__(self, clock: Clock, publish: Callable[[TaskEvent], None]) -> None:
        self._clock = clock
        self._publish = publish
        self._rank = -1
        self._sent = self._ended = False
        #: What may be told once the task begins anew.
        self._again: list[TaskEvent] = []
        self._progress: Throttle[TaskEvent] | None = None

    def tell(self, event: TaskEvent) -> None:
        """Something has happened."""
        if self._ended:
            return
        rank = _RANKS.get(event.event)
        if rank == _RANKS["progress"]:
            self._rank = rank
            self._throttle().offer(event)
        elif rank is not None and rank <= self._rank:
            self._overtaken(event)
        else:
            self._sent = self._sent or event.event == "sent"
            self._tell(event, rank)

    def stop(self) -> None:
        """Tell nothing more."""
        self._ended = True
        if self._progress is not None:
            self._progress.stop()

    def _tell(self, event: TaskEvent, rank: int | None) -> None:
        again: list[TaskEvent] = []
        if event.is_final:
            self.stop()
        else:
            if self._progress is not None:
                self._progress.supersede()
            if rank is None:
                rank = _RANKS["sent"]
                again, self._again = self._again, []
            self._rank = rank
        self._publish(event)
        for later in again:
            self.tell(later)

    def _overtaken(self, event: TaskEvent) -> None:
        if event.event != "sent":
            # It is the same once more, or it belongs to the next attempt: a worker gives a task back
            # before it tells so.
            if all(event.event != earlier.event for earlier in self._again):
                self._again.append(event)
        elif not self._sent:
            # Clients tell that they have sent a task after they have sent it: a worker may be faster.
            self._sent = True
            self._publish(replace(event, overtaken=True))

    def _throttle(self) -> Throttle[TaskEvent]:
        if self._progress is None:
            self._progress = Throttle(self._clock, PROGRESS_INTERVAL, self._publish)
        return self._progress
