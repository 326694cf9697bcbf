"""Merges the two sources of events of the tasks that this bridge sent.

Results report return values, progress and a task's own states. Celery's event stream reports what results
do not: that a worker received, requeued or, with ``task_track_started`` off, started a task. Each has a
connection of its own, so either may be ahead. Where the configuration wants events that only the stream
reports, what results report of an attempt waits for them, for at most `PATIENCE` seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twistedcelery.wamp.event_kinds import EVENT_KINDS
from twistedcelery.wamp.events.order import EventOrder

if TYPE_CHECKING:
    from collections.abc import Callable

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.events.celery_events import Observation
    from twistedcelery.wamp.events.topics import TaskEvent

__all__ = ["PATIENCE", "EventMerger", "EventMergers"]

#: Seconds that an event waits for the event stream to report what belongs before it.
PATIENCE = 1.0

#: From this rank on, the stream has reported everything that belongs before results.
_OPENED = max(kind.rank for kind in EVENT_KINDS.values() if kind.opens_attempt)


class EventMergers:
    """The mergers of the tasks that have not ended."""

    def __init__(self, clock: Clock, publish: Callable[[TaskEvent], None]) -> None:
        self._clock = clock
        self._publish = publish
        self._observers: dict[str, Callable[[Observation], None]] = {}
        self._is_connected: Callable[[], bool] = lambda: False
        #: Whether workers send events of tasks; ``None``: not known yet. Events wait in vain only once.
        self._workers_report: bool | None = None

    def wait_for_stream(self, is_connected: Callable[[], bool]) -> None:
        """From now on, wait for the event stream.

        :param is_connected: whether it is connected
        """
        self._is_connected = is_connected

    def workers_report(self, reporting: bool) -> None:
        """Workers have sent an event of a task, or have not although it was time."""
        self._workers_report = reporting

    def has_to_wait(self, event: TaskEvent) -> bool:
        """Whether the stream is expected to report something that belongs before an event."""
        # While it is not known, only ends of attempts wait.
        expected = self._workers_report
        if expected is None:
            expected = event.is_final or event.is_retry
        return expected and self._is_connected()

    def begin(self, task_id: str, observer: Callable[[Observation], None]) -> EventMerger:
        """Make the merger of a new task.

        :param observer: takes what the stream reports of the task
        """
        self._observers[task_id] = observer
        return EventMerger(self, EventOrder(self._clock, self._publish), self._clock, task_id)

    def observer(self, task_id: str) -> Callable[[Observation], None] | None:
        """The observer of a task, until the task's end is published."""
        return self._observers.get(task_id)

    def ended(self, task_id: str) -> None:
        """Forget a task."""
        self._observers.pop(task_id, None)


class EventMerger:
    """Merges the events of one task.

    It counts attempts in both sources, since either may be the first to report a retry.
    """

    def __init__(self, mergers: EventMergers, order: EventOrder, clock: Clock, task_id: str) -> None:
        self._mergers = mergers
        self._order = order
        self._clock = clock
        self._task_id = task_id
        #: Attempts before the current one: as published, and in the stream.
        self._published_attempts = self._stream_attempts = 0
        #: Names of the opening events that the stream has reported of that attempt, and of the next one.
        self._opened: set[str] = set()
        self._opened_next: set[str] = set()
        #: Whether results have nothing to wait for.
        self._is_open = False
        self._stream_ended = False
        #: Results that wait for the stream, and events of the stream whose attempt results have not reached.
        self._waiting: list[TaskEvent] = []
        self._ahead: list[tuple[int, TaskEvent]] = []
        self._timer: Timer | None = None

    def publish(self, event: TaskEvent) -> None:
        """Publish an event that results, or the broker, report, in its turn."""
        if event.kind.is_immediate:
            if event.is_final:
                # The task may never start.
                self._release()
        elif self._waiting or (not self._is_open and self._mergers.has_to_wait(event)):
            self._wait(event)
            return
        self._publish(event)

    def observe(self, event: TaskEvent) -> None:
        """Publish an event that the stream reports, in its turn, or let it release what waits for it."""
        attempt = self._stream_attempts
        if event.kind.opens_attempt:
            # A second one is of the next attempt: a worker requeues a task before it reports that.
            attempt += event.kind.name in self._opened
            opened = self._opened if attempt == self._stream_attempts else self._opened_next
            opened.add(event.kind.name)
        if attempt > self._published_attempts:
            self._ahead.append((attempt, event))
            self._release()
        elif attempt == self._published_attempts:
            self._observe_current(event)
        if event.is_retry:
            self._stream_attempts += 1
            self._opened, self._opened_next = self._opened_next, set()

    def stop(self) -> None:
        """Publish nothing more: the task's end is unknown."""
        self._order.stop()
        self._close()

    def _observe_current(self, event: TaskEvent) -> None:
        """The stream reports something of the attempt that is being published."""
        if event.kind.opens_attempt:
            self._order.publish(event)
        if event.kind.rank >= _OPENED:
            self._release()
        # Results do not report this one. After the end of the task it only repeats it.
        if event.kind.from_stream and not event.kind.opens_attempt and not self._stream_ended:
            self._publish(event)
        self._stream_ended = self._stream_ended or event.is_final

    def _publish(self, event: TaskEvent) -> None:
        self._order.publish(event)
        if event.is_final:
            self._close()
        elif event.is_retry:
            self._published_attempts += 1
            self._is_open = self._stream_attempts > self._published_attempts
            ahead, self._ahead = self._ahead, []
            for attempt, observed in ahead:
                if attempt > self._published_attempts:
                    self._ahead.append((attempt, observed))
                else:
                    self._observe_current(observed)

    def _wait(self, event: TaskEvent) -> None:
        if event.kind.is_throttled and self._waiting and self._waiting[-1].kind is event.kind:
            self._waiting.pop()
        self._waiting.append(event)
        if self._timer is None:
            self._timer = self._clock.callLater(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self._mergers.workers_report(False)
        self._release()

    def _release(self) -> None:
        self._is_open = True
        self._stop_timer()
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            # After a retry, the rest waits for the next attempt.
            self.publish(event)

    def _close(self) -> None:
        self._stop_timer()
        self._mergers.ended(self._task_id)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
