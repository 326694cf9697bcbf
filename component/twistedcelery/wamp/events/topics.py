"""Publishes task events on WAMP topics.

Each event goes to the topic of its task and kind, and to the topic of the one run. On the latter
the router retains it for late subscribers, if the configuration says so.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autobahn.exception import PayloadExceededError
from autobahn.wamp.exception import SerializationError, TransportLost
from autobahn.wamp.types import PublishOptions
from twisted.logger import Logger

from twistedcelery.wamp.items import TooManyItems, check_items
from twistedcelery.wamp.uris import Uris, why_not_a_uri
from twistedcelery.wamp.values import Unencodable, normalise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.event_kinds import EventKind
    from twistedcelery.wamp.interfaces import WampSession

__all__ = ["EventPublisher", "TaskEvent"]

#: Details that an event can do without: how a task ended matters more than its arguments and its result.
_VALUES = frozenset({"args", "kwargs", "result"})

#: Final events that are kept while there is no session. The oldest are dropped first.
_MAX_KEPT = 1000

_log = Logger()


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """Something that happened to one run of a task.

    :ivar task: the task's name
    :ivar task_id: as Celery writes it
    :ivar state: Celery's name of the state, or the task's own
    :ivar timestamp: seconds since the epoch
    :ivar caller: the WAMP session that called; ``None``: not known
    :ivar details: what this kind of event has besides; not yet normalised
    :ivar overtaken: whether a later event was published before it. Then it does not go to the topic of the
        run, whose last event is the current state
    """

    kind: EventKind
    task: str
    task_id: str
    state: str
    timestamp: float
    caller: int | None
    details: Mapping[str, Any]
    overtaken: bool = False

    @property
    def is_retry(self) -> bool:
        """Whether another attempt follows."""
        return self.kind.is_retry(self.details)

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self.kind.is_final(self.details)

    def payload(self, max_items: int) -> dict[str, Any]:
        """The keyword payload, normalised.

        :param max_items: items that the details may have
        :raise TooManyItems: if they have more
        :raise Unencodable: if WAMP cannot carry the details
        """
        check_items(max_items, **self.details)
        payload = {
            "task_id": self.task_id,
            "task": self.task,
            "state": self.state,
            "timestamp": self.timestamp,
            **self.details,
        }
        normal: dict[str, Any] = normalise(payload)
        return normal


class EventPublisher:
    """Publishes events over the bridge's current session.

    Without a session, final events wait for the next one. Others are dropped, since they would be out
    of date.
    """

    def __init__(self, config: Configuration, uris: Uris) -> None:
        self._config = config
        self._uris = uris
        self._session: WampSession | None = None
        self._kept: deque[TaskEvent] = deque(maxlen=_MAX_KEPT)
        if config.retain_events:
            _log.warn(
                "'retain_events' is on: the router keeps an event of each task, about 2 KB, until it stops"
            )

    def attach(self, session: WampSession) -> None:
        """Publish over this session from now on, beginning with the events that were kept."""
        self._session = session
        kept = list(self._kept)
        self._kept.clear()
        for event in kept:
            self.publish(event)

    def detach(self, session: WampSession) -> None:
        """A session has ended. Does nothing if another has replaced it already."""
        if self._session is session:
            self._session = None

    def publish(self, event: TaskEvent, keep: bool = True) -> None:
        """Publish an event, if the configuration wants it and somebody may see it.

        :param keep: whether a final event waits for the next session where there is none
        """
        if event.kind.name not in self._config.events:
            return
        only_caller = self._config.event_audience == "caller"
        if only_caller and event.caller is None:
            # The router does not disclose its callers. Better no subscriber than every subscriber.
            return
        if self._session is None or not self._session.is_attached():
            if keep and event.is_final:
                self._kept.append(event)
            return
        payload = _payload(event, self._config.max_items)
        if payload is None:
            return
        topic = self._uris.event(event.task, event.kind.name)
        self._send(self._session, topic, payload, event.caller, retain=False)
        # The router keeps a restricted event beside the earlier ones, not in place of them.
        retain = self._config.retain_events and (not only_caller or event.is_final)
        run_topic = self._uris.task_events(event.task_id)
        if run_topic is not None and not event.overtaken:
            self._send(self._session, run_topic, payload, event.caller, retain=retain)

    def announce(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Publish an event that is about no task. Without a session it is dropped."""
        if self._session is None or not self._session.is_attached():
            return
        try:
            normal = normalise(payload)
        except Unencodable as unencodable:
            _log.warn("an event on {topic} cannot be published: {reason}", topic=topic, reason=unencodable)
            return
        self._publish(self._session, topic, normal, PublishOptions(acknowledge=False))

    def _send(
        self, session: WampSession, topic: str, payload: dict[str, Any], caller: int | None, retain: bool
    ) -> None:
        if why_not_a_uri(topic):
            return
        options = PublishOptions(acknowledge=False, retain=retain)
        if self._config.event_audience == "caller":
            # Without an empty exclude list Crossbar fails on the retained event.
            options = PublishOptions(acknowledge=False, retain=retain, eligible=[caller], exclude=[])
        self._publish(session, topic, payload, options)

    def _publish(
        self, session: WampSession, topic: str, payload: dict[str, Any], options: PublishOptions
    ) -> None:
        try:
            session.publish(topic, options=options, **payload)
        except (PayloadExceededError, SerializationError, TransportLost) as error:
            _log.warn("an event on {topic} was lost: {error}", topic=topic, error=type(error).__name__)


def _payload(event: TaskEvent, max_items: int) -> dict[str, Any] | None:
    """The payload, without `_VALUES` if they cannot be sent; ``None`` if the rest cannot be sent."""
    try:
        return event.payload(max_items)
    except (TooManyItems, Unencodable) as error:
        reason = str(error)
    bare = {name: value for name, value in event.details.items() if name not in _VALUES}
    try:
        payload = replace(event, details=bare).payload(max_items)
    except (TooManyItems, Unencodable):
        said, payload = "cannot be published", None
    else:
        said = "is published without its values"
    _log.warn(
        "a {event} event of {task} {said}: {reason}",
        event=event.kind.name,
        task=event.task,
        said=said,
        reason=reason,
    )
    return payload
