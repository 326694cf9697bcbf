"""Merges the two sources of events of the tasks that this bridge sent.

Results report return values, progress and a task's own states. Celery's event stream reports what results
do not: that a worker received, requeued or, with ``task_track_started`` off, started a task. Each has a
connection of its own, so either may be ahead. Where the configuration wants events that only the stream
reports, what results report of an attempt waits for them, for at most `PATIENCE` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from twistedcelery.wamp.event_kinds import EVENT_KINDS, SENT
from twistedcelery.wamp.events.order import EventOrder
from twistedcelery.wamp.events.topics import TaskEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.event_kinds import EventKind
    from twistedcelery.wamp.events.celery_events import Observation

__all__ = ["PATIENCE", "EventMerger", "EventMergers", "OwnTask"]

#: Seconds that an event waits for the event stream to report what belongs before it.
PATIENCE = 1.0

#: From this rank on, the stream has reported everything that belongs before results.
_OPENED = max(kind.rank for kind in EVENT_KINDS.values() if kind.opens_attempt)


@dataclass(frozen=True, slots=True)
class OwnTask:
    """A task that this bridge sent, as its events describe it.

    :ivar task_id: as Celery writes it
    :ivar caller: the WAMP session that called; ``None``: not known
    :ivar arguments: details of each event but progress: the task's arguments, if they may be published
    """

    name: str
    task_id: str
    caller: int | None
    arguments: Mapping[str, Any]

    def event(
        self, kind: EventKind, timestamp: float, details: Mapping[str, Any], state: str | None = None
    ) -> TaskEvent:
        """The event of something that results, or the broker, report.

        :param state: Celery's name of the state; ``None``: that of the kind
        """
        if not kind.is_throttled:
            details = {**self.arguments, **details}
        return TaskEvent(kind, self.name, self.task_id, state or kind.state, timestamp, self.caller, details)

    def observed(self, observation: Observation) -> TaskEvent:
        """The event of something that the stream reports."""
        # The other details are shortened text. Results have the values.
        requeue = {key: value for key, value in observation.details.items() if key == "requeue"}
        return replace(observation.of(self.name, self.caller), details={**self.arguments, **requeue})


class EventMergers:
    """The mergers of the tasks that have not ended.

    :param wall_clock: seconds since the epoch
    """

    def __init__(
        self, clock: Clock, wall_clock: Callable[[], float], publish: Callable[[TaskEvent], None]
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._publish = publish
        self._open: dict[str, EventMerger] = {}
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

    def begin(self, task: OwnTask) -> EventMerger:
        """Make the merger of a new task."""
        order = EventOrder(self._clock, self._publish)
        merger = self._open[task.task_id] = EventMerger(task, order, self, self._clock, self._wall_clock)
        return merger

    def find(self, task_id: str) -> EventMerger | None:
        """The merger of a task, until the task's end is published."""
        return self._open.get(task_id)

    def ended(self, task_id: str) -> None:
        """Forget a task."""
        self._open.pop(task_id, None)


class EventMerger:
    """Merges the events of one task.

    It counts attempts in both sources, since either may be the first to report a retry.
    """

    def __init__(
        self,
        task: OwnTask,
        order: EventOrder,
        mergers: EventMergers,
        clock: Clock,
        wall_clock: Callable[[], float],
    ) -> None:
        self._task = task
        self._order = order
        self._mergers = mergers
        self._clock = clock
        self._wall_clock = wall_clock
        self._is_sent = False
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

    def confirm_sent(self) -> None:
        """Publish that the task is sent: the broker, a state or a worker's event proves it."""
        if not self._is_sent:
            self._is_sent = True
            self.publish(SENT, {})

    def publish(self, kind: EventKind, details: Mapping[str, Any], state: str | None = None) -> None:
        """Publish, in its turn, what results or the broker report now."""
        self._merge(self._task.event(kind, self._wall_clock(), details, state))

    def observe(self, observation: Observation) -> None:
        """Take an event of a worker: publish it in its turn, or release what waits for it."""
        self.confirm_sent()
        event = self._task.observed(observation)
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

    def _merge(self, event: TaskEvent) -> None:
        if event.kind.is_immediate:
            if event.is_final:
                # The task may never start.
                self._release()
        elif self._waiting or (not self._is_open and self._mergers.has_to_wait(event)):
            self._wait(event)
            return
        self._publish(event)

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
            self._merge(event)

    def _close(self) -> None:
        self._stop_timer()
        self._mergers.ended(self._task.task_id)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
