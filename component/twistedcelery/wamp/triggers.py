"""Triggers: a WAMP event on a topic submits a task."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from autobahn.wamp.exception import ApplicationError
from twisted.logger import Logger

from twistedcelery.errors import ConfigurationError
from twistedcelery.wamp.invocation import Caller
from twistedcelery.wamp.options import KNOWN_OPTIONS, OptionError, parse_options
from twistedcelery.wamp.throttle import Throttle
from twistedcelery.wamp.uris import why_not_a_pattern

if TYPE_CHECKING:
    from autobahn.wamp.types import EventDetails
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.exposed import ExposedTask
    from twistedcelery.wamp.in_flight import InFlight
    from twistedcelery.wamp.uris import Uris

__all__ = ["Listener", "SubscribingSession", "Trigger", "Triggers", "check_triggers", "parse_triggers"]

#: Seconds between two lines in the log about the same trigger.
LOG_INTERVAL = 5.0

_KEYS = ("topic", "match", "task", "options")
_MATCHES = ("exact", "prefix", "wildcard")

_log = Logger()


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event on ``topic`` submits ``task``.

    :ivar topic: a topic, or a pattern of topics, as ``match`` says
    :ivar match: ``"exact"``, ``"prefix"`` or ``"wildcard"``, with WAMP's meaning
    :ivar task: the name of an exposed task
    :ivar options: keywords of ``send_task``
    """

    topic: str
    task: str
    match: str = "exact"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task!r} on {self.topic!r} ({self.match})"


class Listener(Protocol):
    """What takes the events of a subscription."""

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: EventDetails) -> None:
        """Take one event. Must not raise."""


class SubscribingSession(Protocol):
    """What triggers need of a WAMP session."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""

    def listen(self, topic: str, match: str, listener: Listener) -> Deferred[Any]:
        """Subscribe; fails with an `ApplicationError` where the router refuses."""


class Triggers:
    """Submits the tasks of one bridge's triggers.

    :param tasks: the exposed tasks by name
    :raise ConfigurationError: where a trigger's task is none of them, or its topic is the bridge's own
    """

    def __init__(
        self, context: Context, tasks: Mapping[str, ExposedTask], in_flight: InFlight, uris: Uris
    ) -> None:
        self._context = context
        self._in_flight = in_flight
        self._uris = uris
        check_triggers(context.config.triggers, tasks, uris)
        self._triggers = [(trigger, tasks[trigger.task]) for trigger in context.config.triggers]

    def start(self, session: SubscribingSession) -> None:
        """Subscribe. The subscriptions end with the session."""
        for trigger, task in self._triggers:
            listener = _Listener(trigger, task, self._context, self._in_flight, self._uris)
            session.listen(trigger.topic, trigger.match, listener).addErrback(
                self._not_subscribed, trigger, session
            )

    def _not_subscribed(self, failure: Failure, trigger: Trigger, session: SubscribingSession) -> None:
        # The loss of the session says itself why.
        if session.is_attached():
            reason = getattr(failure.value, "error", type(failure.value).__name__)
            _log.error("the trigger {trigger} does not work: {reason}", trigger=trigger, reason=reason)


class _Listener:
    """One trigger's subscription."""

    def __init__(
        self, trigger: Trigger, task: ExposedTask, context: Context, in_flight: InFlight, uris: Uris
    ) -> None:
        self._trigger = trigger
        self._task = task
        self._in_flight = in_flight
        self._uris = uris
        # Whoever publishes decides how often that is.
        self._trouble: Throttle[str] = Throttle(context.clock, LOG_INTERVAL, self._log)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: EventDetails) -> None:
        if self._uris.owns(details.topic or ""):
            # A pattern may cover the bridge's own topics, too.
            return
        publisher = Caller(
            details.publisher, details.publisher_authid, details.publisher_authrole, details.topic
        )
        try:
            followed = self._in_flight.start(self._task, args, kwargs, self._trigger.options, publisher)
        except ApplicationError as error:
            self._trouble.offer(str(error))
        else:
            followed.published().addErrback(lambda failure: self._trouble.offer(str(failure.value)))

    def _log(self, trouble: str) -> None:
        _log.warn(
            "the trigger {trigger} submitted nothing: {trouble}", trigger=self._trigger, trouble=trouble
        )


def parse_triggers(found: Any) -> tuple[Trigger, ...]:
    """Check what a user wrote under ``triggers``, as far as that does not depend on the application.

    :raise ConfigurationError: names the key, what was found, and what is accepted
    """
    if not isinstance(found, list | tuple):
        raise ConfigurationError(
            f"configuration key 'triggers': found {found!r:.80}, accepted is a list of objects "
            f"with the keys {', '.join(_KEYS)}"
        )
    return tuple(_parse(number, one) for number, one in enumerate(found))


def check_triggers(triggers: Sequence[Trigger], tasks: Mapping[str, ExposedTask], uris: Uris) -> None:
    """Check what depends on the application and on the prefix.

    :param tasks: the exposed tasks by name
    :raise ConfigurationError: where a trigger's task is none of them, or its topic is the bridge's own
    """
    for number, trigger in enumerate(triggers):
        if trigger.task not in tasks:
            close = difflib.get_close_matches(trigger.task, tasks, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            _refuse(number, "task", trigger.task, f"the name of a task that this bridge exposes{hint}")
        if uris.owns(trigger.topic):
            # A router does not send a session what it publishes itself, so that such a trigger
            # would act on some events and not on others; and it could go in circles.
            _refuse(number, "topic", trigger.topic, "a topic outside of the bridge's own URIs")


def _parse(number: int, found: Any) -> Trigger:
    if not isinstance(found, Mapping):
        _refuse(number, None, found, f"an object with the keys {', '.join(_KEYS)}")
    for key in found:
        if key not in _KEYS:
            _refuse(number, None, key, f"only the keys {', '.join(_KEYS)}")
    for key in ("topic", "task"):
        if not isinstance(found.get(key), str) or not found[key]:
            _refuse(number, key, found.get(key), "text that is not empty")
    match = found.get("match", "exact")
    if match not in _MATCHES:
        _refuse(number, "match", match, f"one of {', '.join(map(repr, _MATCHES))}")
    reason = why_not_a_pattern(found["topic"], match)
    if reason is not None:
        _refuse(number, "topic", found["topic"], f"a WAMP topic for the match {match!r}; {reason}")
    try:
        options = parse_options(found.get("options"), KNOWN_OPTIONS)
    except OptionError as error:
        _refuse(number, "options", found["options"], f"an object of Celery's options; {error}")
    return Trigger(found["topic"], found["task"], match, options)


def _refuse(number: int, key: str | None, found: object, accepted: str) -> NoReturn:
    where = f"triggers[{number}]" + (f".{key}" if key else "")
    raise ConfigurationError(f"configuration key {where!r}: found {found!r:.80}, accepted is {accepted}")
