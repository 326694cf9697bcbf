"""Triggers: a WAMP event on a topic submits a task."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Protocol

from autobahn.wamp.exception import ApplicationError
from twisted.logger import Logger

from twistedcelery.wamp.events.throttle import Throttle
from twistedcelery.wamp.invocation import Caller
from twistedcelery.wamp.trigger import refuse_trigger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from autobahn.wamp.types import EventDetails
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.tasks.exposed import ExposedTask
    from twistedcelery.wamp.tasks.in_flight import InFlight
    from twistedcelery.wamp.trigger import Trigger
    from twistedcelery.wamp.uris import Uris

__all__ = ["Listener", "SubscribingSession", "Triggers", "check_triggers"]

#: Seconds between two lines in the log about the same trigger.
LOG_INTERVAL = 5.0

_log = Logger()


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
        check_triggers(context.config, tasks, uris)
        self._tasks = tasks

    def start(self, session: SubscribingSession) -> None:
        """Subscribe. The subscriptions end with the session."""
        for trigger in self._context.config.triggers:
            listener = _Listener(trigger, self._tasks, self._context, self._in_flight, self._uris)
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
        self,
        trigger: Trigger,
        tasks: Mapping[str, ExposedTask],
        context: Context,
        in_flight: InFlight,
        uris: Uris,
    ) -> None:
        self._trigger = trigger
        self._tasks = tasks
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
        task = self._tasks.get(self._trigger.task)
        if task is None:
            self._trouble.offer("no worker has the task")
            return
        try:
            followed = self._in_flight.start(task, args, kwargs, self._trigger.options, publisher)
        except ApplicationError as error:
            self._trouble.offer(str(error))
        else:
            followed.published().addErrback(lambda failure: self._trouble.offer(str(failure.value)))

    def _log(self, trouble: str) -> None:
        _log.warn(
            "the trigger {trigger} submitted nothing: {trouble}", trigger=self._trigger, trouble=trouble
        )


def check_triggers(config: Configuration, tasks: Mapping[str, ExposedTask], uris: Uris) -> None:
    """Check what depends on the application and on the prefix.

    :param tasks: the exposed tasks by name
    :raise ConfigurationError: where a trigger's task is none of them, and no worker can bring it, or where
        its topic is the bridge's own
    """
    for number, trigger in enumerate(config.triggers):
        if config.discover == "app" and trigger.task not in tasks:
            close = difflib.get_close_matches(trigger.task, tasks, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            refuse_trigger(number, "task", trigger.task, f"the name of a task that this bridge exposes{hint}")
        if uris.owns(trigger.topic):
            # A router does not send a session what it publishes itself, so that such a trigger
            # would act on some events and not on others; and it could go in circles.
            refuse_trigger(number, "topic", trigger.topic, "a topic outside of the bridge's own URIs")
