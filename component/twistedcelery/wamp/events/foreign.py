"""Publishes the events of tasks that no bridge sent, from Celery's event stream."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twistedcelery.wamp.events.order import EventOrder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twistedcelery._types import Clock
    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.events.celery_events import Observation
    from twistedcelery.wamp.events.topics import EventPublisher, TaskEvent

__all__ = ["MAX_REMEMBERED", "ForeignTasks"]

#: Tasks whose names and events are remembered, as many as in Celery's own ``State``. The one whose last
#: event is the oldest is forgotten first.
MAX_REMEMBERED = 10_000

#: Events that are kept until the names of their tasks are known.
MAX_UNNAMED = 1000


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    #: ``None`` for a task that is not exposed.
    order: EventOrder | None


class ForeignTasks:
    """Publishes what happens to them, as far as the configuration exposes them.

    Celery gives a task's name when the task is sent (``task_send_sent_event``) and when it is received,
    and in no later event. So names are remembered. A task without a known name is skipped: whether it
    is exposed is not known either.
    """

    def __init__(self, config: Configuration, clock: Clock, events: EventPublisher) -> None:
        self._config = config
        self._clock = clock
        self._events = events
        self._known: OrderedDict[str, _Task] = OrderedDict()
        #: ``None`` unless workers are being asked for names.
        self._unnamed: list[Observation] | None = None

    def keep_unnamed(self) -> None:
        """Keep the events of tasks without a name, until `learn_names`."""
        self._unnamed = []

    def learn_names(self, names: Mapping[str, str]) -> None:
        """Learn the names of tasks, by id, that were received before the stream was opened."""
        for task_id, name in names.items():
            if task_id not in self._known:
                self._remember(task_id, name)
        unnamed, self._unnamed = self._unnamed or [], None
        for observation in unnamed:
            self.observe(observation)

    def observe(self, observation: Observation) -> None:
        """Publish what has happened to a task."""
        task_id, name = observation.task_id, observation.name
        task = self._known.get(task_id)
        if name is not None and (task is None or task.name != name):
            # A task that replaces itself with another passes its id on.
            task = self._remember(task_id, name)
        if task is None:
            if self._unnamed is not None and len(self._unnamed) < MAX_UNNAMED:
                self._unnamed.append(observation)
            return
        self._known.move_to_end(task_id)
        if task.order is not None:
            task.order.publish(observation.of(task.name))

    def forget(self) -> None:
        """Forget all tasks, and publish nothing more of them."""
        for task in self._known.values():
            _stop(task)
        self._known.clear()
        self._unnamed = None

    def _remember(self, task_id: str, name: str) -> _Task:
        order = EventOrder(self._clock, self._publish) if self._config.exposes(name) else None
        earlier = self._known.pop(task_id, None)
        if earlier is not None:
            _stop(earlier)
        task = self._known[task_id] = _Task(name, order)
        if len(self._known) > MAX_REMEMBERED:
            _stop(self._known.popitem(last=False)[1])
        return task

    def _publish(self, event: TaskEvent) -> None:
        # What this bridge cannot publish now may reach the next leader, and would be published twice.
        self._events.publish(event, keep=False)


def _stop(task: _Task) -> None:
    if task.order is not None:
        task.order.stop()
