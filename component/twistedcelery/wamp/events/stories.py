"""What happens to the tasks that this bridge has sent, as two sources tell it.

Results come with what tasks return, with their progress and with states of their own. Celery's event
stream tells what results do not: that a worker has received a task or given it back, and that it has
begun, where ``task_track_started`` is off. Both come over connections of their own, so either may
be ahead. Where the configuration wants what only the stream tells, what results say of an attempt
waits until the stream has told of its beginning, for `PATIENCE` at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twistedcelery.wamp.events.story import Story

if TYPE_CHECKING:
    from collections.abc import Callable

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.events.celery_events import Observation
    from twistedcelery.wamp.events.topics import TaskEvent

__all__ = ["PATIENCE", "OwnStory", "Stories"]

#: Seconds that an event waits for what the event stream has to tell before it.
PATIENCE = 1.0


class Stories:
    """The stories that have not ended."""

    def __init__(self, clock: Clock, publish: Callable[[TaskEvent], None]) -> None:
        self._clock = clock
        self._publish = publish
        self._open: dict[str, OwnStory] = {}
        self._can_hear: Callable[[], bool] = lambda: False
        #: Whether workers tell of tasks, as far as that is known. Those that do not are not waited for
        #: again and again.
        self._heard: bool | None = None

    def is_early(self, event: TaskEvent) -> bool:
        """Whether workers are expected to tell something that belongs before an event."""
        # While it is not known, what comes in between does not wait.
        expected = event.is_final or event.begins_anew if self._heard is None else self._heard
        return expected and self._can_hear()

    def listen(self, can_hear: Callable[[], bool]) -> None:
        """From now on wait for what the event stream has to tell.

        :param can_hear: whether it is connected
        """
        self._can_hear = can_hear

    def begin(self, task_id: str, as_event: Callable[[Observation], TaskEvent]) -> OwnStory:
        """A new task's, with the parameters of `OwnStory`."""
        told = Story(self._clock, self._publish)
        story = self._open[task_id] = OwnStory(task_id, as_event, self, told, self._clock)
        return story

    def find(self, task_id: str) -> OwnStory | None:
        """A task's, until its end was told."""
        return self._open.get(task_id)

    def heard(self, something: bool) -> None:
        """Whether workers have told something of a task, or nothing although it was time."""
        self._heard = something

    def over(self, task_id: str) -> None:
        """Nothing more is told of a task."""
        self._open.pop(task_id, None)


class OwnStory:
    """One task's story, made of both sources.

    Attempts are counted on both sides, since either may be the first to tell of a retry.

    :param as_event: makes the event to tell of what the stream has told
    """

    def __init__(
        self,
        task_id: str,
        as_event: Callable[[Observation], TaskEvent],
        stories: Stories,
        story: Story,
        clock: Clock,
    ) -> None:
        self._task_id = task_id
        self._as_event = as_event
        self._stories = stories
        self._story = story
        self._clock = clock
        #: How often the task began anew: as told, and as heard from the stream.
        self._attempts_told = self._attempts_heard = 0
        #: What was heard of that attempt already, and of the next one.
        self._kinds: set[str] = set()
        self._next_kinds: set[str] = set()
        #: Whether the stream has said all that it has to say before what results tell now.
        self._is_heard = False
        self._end_heard = False
        #: Results that wait for the stream; and what it tells of attempts that results know nothing of yet.
        self._waiting: list[TaskEvent] = []
        self._ahead: list[tuple[int, TaskEvent]] = []
        self._timer: Timer | None = None

    def tell(self, event: TaskEvent) -> None:
        """Results, or the broker, have told something."""
        if event.event == "revoked":
            # Whoever revokes it knows, and it may never begin.
            self._release()
        elif event.event != "sent" and (
            self._waiting or (not self._is_heard and self._stories.is_early(event))
        ):
            self._wait(event)
            return
        self._tell(event)

    def hear(self, observation: Observation) -> None:
        """The event stream has told something."""
        if observation.event == "sent":
            # The client has said so itself; the broker has not.
            return
        event = self._as_event(observation)
        attempt = self._attempts_heard
        if event.event in {"received", "started"}:
            # Twice in one attempt: a worker gives a task back before it tells so.
            attempt += event.event in self._kinds
            (self._kinds if attempt == self._attempts_heard else self._next_kinds).add(event.event)
        if attempt > self._attempts_told:
            self._ahead.append((attempt, event))
            self._release()
        elif attempt == self._attempts_told:
            self._hear(event)
        if event.begins_anew:
            self._attempts_heard += 1
            self._kinds, self._next_kinds = self._next_kinds, set()

    def stop(self) -> None:
        """Tell nothing more; nobody knows how it ends."""
        self._story.stop()
        self._close()

    def _hear(self, event: TaskEvent) -> None:
        """The stream has told something of the attempt that is told of now."""
        if event.event in {"received", "started"}:
            self._story.tell(event)
        if event.event != "received":
            self._release()
        # Of this, results do not tell. Where it follows the end of a task, it is but a part of that.
        if event.event == "rejected" and not self._end_heard:
            self._tell(event)
        self._end_heard = self._end_heard or event.is_final

    def _tell(self, event: TaskEvent) -> None:
        self._story.tell(event)
        if event.is_final:
            self._close()
        elif event.begins_anew:
            self._attempts_told += 1
            self._is_heard = self._attempts_heard > self._attempts_told
            ahead, self._ahead = self._ahead, []
            for attempt, heard in ahead:
                if attempt > self._attempts_told:
                    self._ahead.append((attempt, heard))
                else:
                    self._hear(heard)

    def _wait(self, event: TaskEvent) -> None:
        if event.event == "progress" and self._waiting and self._waiting[-1].event == "progress":
            self._waiting.pop()
        self._waiting.append(event)
        if self._timer is None:
            self._timer = self._clock.callLater(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self._stories.heard(something=False)
        self._release()

    def _release(self) -> None:
        self._is_heard = True
        self._stop_timer()
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            # After a retry the rest waits for the next attempt.
            self.tell(event)

    def _close(self) -> None:
        self._stop_timer()
        self._stories.over(self._task_id)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
