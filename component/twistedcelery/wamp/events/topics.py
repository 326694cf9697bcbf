"""Publishes task events on WAMP topics.

Each event goes to the topic of its task and kind, and to the topic of the one run. On the latter
the router retains it for late subscribers, if the configuration says so.

Only topics with subscribers get events. The bridge learns of a new subscription a moment late, and a client
may subscribe and call without waiting. So the publisher keeps the events of the last second that had no
subscriber, and publishes those that are newer than a subscription of which it learns.
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
from twistedcelery.wamp.router.audience import Audience, Pattern
from twistedcelery.wamp.uris import Uris, why_not_a_uri
from twistedcelery.wamp.values import Unencodable, normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.event_kinds import EventKind
    from twistedcelery.wamp.interfaces import WampSession

__all__ = ["EventPublisher", "TaskEvent"]

#: Details that an event can do without: how a task ended matters more than its arguments and its result.
_VALUES = frozenset({"args", "kwargs", "result"})

#: Final events that are kept while there is no session. The oldest are dropped first.
_MAX_KEPT = 1000

#: How long, in seconds, and how many events without a subscriber are kept.
_RECENT = 1.0
_MAX_RECENT = 1000

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

    :param clock: for ``callLater``
    :param wall_clock: seconds since the epoch, by a clock that agrees with the router's
    """

    def __init__(
        self, config: Configuration, uris: Uris, clock: Clock, wall_clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._uris = uris
        self._clock = clock
        self._wall_clock = wall_clock
        self._audience = Audience(uris.owns, self._subscribed)
        #: Events without a subscriber: when they were due, and their topic.
        self._recent: deque[tuple[float, str, TaskEvent]] = deque(maxlen=_MAX_RECENT)
        self._forgetting: Timer | None = None
        self._session: WampSession | None = None
        self._kept: deque[TaskEvent] = deque(maxlen=_MAX_KEPT)
        if config.retain_events:
            _log.warn(
                "'retain_events' is on: the router keeps an event of each task, about 2 KB, until it stops"
            )

    def attach(self, session: WampSession) -> None:
        """Publish over this session from now on, beginning with the events that were kept."""
        self._session = session
        self._forget_all()
        self._audience.attach(session)
        kept = list(self._kept)
        self._kept.clear()
        for event in kept:
            self.publish(event)

    def detach(self, session: WampSession) -> None:
        """A session has ended. Does nothing if another has replaced it already."""
        self._audience.detach(session)
        if self._session is session:
            self._session = None
            self._forget_all()

    def drain(self, session: WampSession) -> None:
        """Publish every event from now on: a session that is about to leave learns of no subscriptions."""
        self._audience.detach(session)

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
        topics = {self._uris.event(event.task, event.kind.name): False}
        run_topic = self._uris.task_events(event.task_id)
        if run_topic is not None and not event.overtaken:
            # The router keeps a restricted event beside the earlier ones, not in place of them.
            topics[run_topic] = self._config.retain_events and (not only_caller or event.is_final)
        for topic in [
            topic for topic, retain in topics.items() if not retain and not self._audience.has(topic)
        ]:
            del topics[topic]
            self._recent.append((self._wall_clock(), topic, event))
            if self._forgetting is None:
                self._forgetting = self._clock.callLater(_RECENT, self._forget)
        self._publish_on(self._session, topics, event)

    def _publish_on(self, session: WampSession, topics: Mapping[str, bool], event: TaskEvent) -> None:
        """Publish an event on topics, each with whether the router retains it there."""
        payload = _payload(event, self._config.max_items) if topics else None
        if payload is not None:
            for topic, retain in topics.items():
                self._send(session, topic, payload, event.caller, retain=retain)

    def _subscribed(self, pattern: Pattern) -> None:
        """Publish the events of the last second that are newer than a subscription."""
        if self._session is None:
            return
        recent = list(self._recent)
        self._recent.clear()
        since = max(pattern.created, self._wall_clock() - _RECENT)
        for at, topic, event in recent:
            if at >= since and pattern.matches(topic):
                self._publish_on(self._session, {topic: False}, event)
            else:
                self._recent.append((at, topic, event))

    def _forget_all(self) -> None:
        self._recent.clear()
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None

    def _forget(self) -> None:
        """Keep nothing for long: a result may be large."""
        self._forgetting = None
        since = self._wall_clock() - _RECENT
        while self._recent and self._recent[0][0] <= since:
            self._recent.popleft()
        if self._recent:
            self._forgetting = self._clock.callLater(_RECENT, self._forget)

    def announce(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Publish an event that is about no task. Without a session it is dropped."""
        if self._session is None or not self._session.is_attached() or not self._audience.has(topic):
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
