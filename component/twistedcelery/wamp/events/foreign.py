"""The tasks that no bridge has sent, as Celery's event stream tells of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twistedcelery.wamp.events.story import Story
from twistedcelery.wamp.tasks.exposed import is_exposed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twistedcelery._types import Clock
    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.events.celery_events import Observation
    from twistedcelery.wamp.events.topics import EventPublisher, TaskEvent

__all__ = ["MAX_REMEMBERED", "ForeignTasks"]

#: Tasks whose names and events are remembered, as many as in Celery's own ``State``; the one heard of least
#: recently is forgotten first.
MAX_REMEMBERED = 10_000

#: Events that are kept while the names of their tasks are asked for.
MAX_NAMELESS = 1000


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    #: ``None`` for a task that is not exposed.
    story: Story | None


class ForeignTasks:
    """Publishes what happens to them, as far as the configuration exposes them.

    Celery tells a task's name when the task is sent (``task_send_sent_event``) and received, and
    with nothing that follows. So names are remembered, and tasks whose names are not known are
    passed over: whether they are exposed is not known either.
    """

    def __init__(self, config: Configuration, clock: Clock, events: EventPublisher) -> None:
        self._config = config
        self._clock = clock
        self._events = events
        self._known: OrderedDict[str, _Task] = OrderedDict()
        #: ``None`` unless names are being asked for.
        self._nameless: list[Observation] | None = None

    def expect_names(self) -> None:
        """From now on keep what is heard of tasks without a name, until `learn`."""
        self._nameless = []

    def learn(self, names: Mapping[str, str]) -> None:
        """Take the names of tasks, by id, that were received before anybody listened."""
        for task_id, name in names.items():
            if task_id not in self._known:
                self._remember(task_id, name)
        nameless, self._nameless = self._nameless or [], None
        for observation in nameless:
            self.take(observation)

    def take(self, observation: Observation) -> None:
        """Something has happened to a task."""
        task_id, name = observation.task_id, observation.name
        task = self._known.get(task_id)
        if name is not None and (task is None or task.name != name):
            # A task that replaces itself with another passes its id on.
            task = self._remember(task_id, name)
        if task is None:
            if self._nameless is not None and len(self._nameless) < MAX_NAMELESS:
                self._nameless.append(observation)
            return
        self._known.move_to_end(task_id)
        if task.story is not None:
            task.story.tell(observation.of(task.name))

    def forget(self) -> None:
        """Publish nothing more of any task heard of so far."""
        for task in self._known.values():
            _end(task)
        self._known.clear()
        self._nameless = None

    def _remember(self, task_id: str, name: str) -> _Task:
        story = Story(self._clock, self._publish) if is_exposed(name, self._config) else None
        earlier = self._known.pop(task_id, None)
        if earlier is not None:
            _end(earlier)
        task = self._known[task_id] = _Task(name, story)
        if len(self._known) > MAX_REMEMBERED:
            _end(self._known.popitem(last=False)[1])
        return task

    def _publish(self, event: TaskEvent) -> None:
        # What is not published now is the next leader's to publish, if it hears of it.
        self._events.publish(event, keep=False)


def _end(task: _Task) -> None:
    if task.story is not None:
        task.story.stop()
