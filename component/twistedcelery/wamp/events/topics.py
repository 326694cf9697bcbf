"""What happens to tasks, published on WAMP topics.

Each event goes to two topics: that of its task and kind, and that of the one run. On the latter the
router retains it, for those who come late.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from autobahn.exception import PayloadExceededError
from autobahn.wamp.exception import SerializationError, TransportLost
from autobahn.wamp.types import PublishOptions
from twisted.logger import Logger

from twistedcelery.wamp.uris import Uris, why_not_a_uri
from twistedcelery.wamp.values import Unencodable, normalise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twistedcelery.wamp.config import Configuration

__all__ = ["FINAL_EVENTS", "EventPublisher", "PublishingSession", "TaskEvent"]

#: Nothing follows these, but for a task that is rejected to run once more.
FINAL_EVENTS = frozenset({"succeeded", "failed", "revoked", "rejected"})

#: Details that an event can do without: how a task went matters more than what it was given or has returned.
_VALUES = frozenset({"args", "kwargs", "result"})

#: Final events kept while there is no session; the oldest are dropped first.
_MAX_KEPT = 1000

_log = Logger()


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """Something that happened to one run of a task.

    :ivar event: one of `twistedcelery.wamp.config.EVENTS`
    :ivar task: the task's name
    :ivar task_id: as Celery writes it
    :ivar state: Celery's name of the state, or the task's own
    :ivar timestamp: seconds since the epoch
    :ivar caller: the WAMP session that called; ``None``: not known
    :ivar details: what this kind of event has besides; still to be normalised
    :ivar overtaken: whether a later one was published before it: then it is not for the topic of the
        run, whose last event tells how things are
    """

    event: str
    task: str
    task_id: str
    state: str
    timestamp: float
    caller: int | None
    details: Mapping[str, Any]
    overtaken: bool = False

    @property
    def begins_anew(self) -> bool:
        """Whether the task is to run once more."""
        # A task that is rejected may go back to its queue.
        return self.event == "retried" or (self.event == "rejected" and bool(self.details.get("requeue")))

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self.event in FINAL_EVENTS and not self.begins_anew

    def payload(self) -> dict[str, Any]:
        """The keyword payload.

        :raise Unencodable: where WAMP cannot carry the details
        """
        payload: dict[str, Any] = normalise(
            {
                "task_id": self.task_id,
                "task": self.task,
                "state": self.state,
                "timestamp": self.timestamp,
                **self.details,
            }
        )
        return payload


class PublishingSession(Protocol):
    """What the publisher needs of a WAMP session."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""

    def publish(self, topic: str, *args: Any, **kwargs: Any) -> Any:
        """As `autobahn.wamp.interfaces.IPublisher.publish`."""


class EventPublisher:
    """Publishes events over whatever session the bridge has.

    Without a session final events wait for the next one, since they say how things ended; what
    leads up to them is dropped, since it would be out of date.
    """

    def __init__(self, config: Configuration, uris: Uris) -> None:
        self._config = config
        self._uris = uris
        self._session: PublishingSession | None = None
        self._kept: deque[TaskEvent] = deque(maxlen=_MAX_KEPT)

    def attach(self, session: PublishingSession) -> None:
        """Publish over this session from now on, beginning with what was kept."""
        self._session = session
        kept = list(self._kept)
        self._kept.clear()
        for event in kept:
            self.publish(event)

    def detach(self, session: PublishingSession) -> None:
        """A session is gone. One that another has replaced already is ignored."""
        if self._session is session:
            self._session = None

    def wants(self, event: str) -> bool:
        """Whether events of this kind are published at all."""
        return event in self._config.events

    def publish(self, event: TaskEvent, keep: bool = True) -> None:
        """Publish an event, if the configuration wants it and somebody may see it.

        :param keep: whether the end of a task waits for the next session where there is none
        """
        if not self.wants(event.event):
            return
        only_caller = self._config.event_audience == "caller"
        if only_caller and event.caller is None:
            # The router does not disclose its callers. Nobody sees the event, rather than everybody.
            return
        if self._session is None or not self._session.is_attached():
            if keep and event.is_final:
                self._kept.append(event)
            return
        payload = _payload(event)
        if payload is None:
            return
        self._send(
            self._session, self._uris.event(event.task, event.event), payload, event.caller, retain=False
        )
        # The router keeps a restricted event beside the earlier ones, not in place of them.
        retain = not only_caller or event.is_final
        run_topic = self._uris.task_events(event.task_id)
        if run_topic is not None and not event.overtaken:
            self._send(self._session, run_topic, payload, event.caller, retain=retain)

    def announce(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Publish what is about no task. Without a session it is dropped."""
        if self._session is None or not self._session.is_attached():
            return
        try:
            normal = normalise(payload)
        except Unencodable as unencodable:
            _log.warn("an event on {topic} cannot be published: {reason}", topic=topic, reason=unencodable)
            return
        self._publish(self._session, topic, normal, PublishOptions(acknowledge=False))

    def _send(
        self,
        session: PublishingSession,
        topic: str,
        payload: dict[str, Any],
        caller: int | None,
        retain: bool,
    ) -> None:
        if why_not_a_uri(topic):
            return
        options = PublishOptions(acknowledge=False, retain=retain)
        if self._config.event_audience == "caller":
            # Without an empty exclude list Crossbar stumbles over the retained event.
            options = PublishOptions(acknowledge=False, retain=retain, eligible=[caller], exclude=[])
        self._publish(session, topic, payload, options)

    def _publish(
        self, session: PublishingSession, topic: str, payload: dict[str, Any], options: PublishOptions
    ) -> None:
        try:
            session.publish(topic, options=options, **payload)
        except (PayloadExceededError, SerializationError, TransportLost) as error:
            _log.warn("an event on {topic} was lost: {error}", topic=topic, error=type(error).__name__)


def _payload(event: TaskEvent) -> dict[str, Any] | None:
    """What is published of an event, if need be without `_VALUES`; ``None``: WAMP cannot carry it."""
    try:
        return event.payload()
    except Unencodable as unencodable:
        reason = str(unencodable)
    bare = {name: value for name, value in event.details.items() if name not in _VALUES}
    try:
        payload = replace(event, details=bare).payload()
    except Unencodable:
        said, payload = "cannot be published", None
    else:
        said = "is published without its values"
    _log.warn(
        "a {event} event of {task} {said}: {reason}",
        event=event.event,
        task=event.task,
        said=said,
        reason=reason,
    )
    return payload
