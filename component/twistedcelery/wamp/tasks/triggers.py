"""Submits tasks at WAMP events: the triggers of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.logger import Logger

from twistedcelery.errors import did_you_mean
from twistedcelery.wamp.config import refuse_trigger
from twistedcelery.wamp.events.throttle import Throttle
from twistedcelery.wamp.invocation import Caller

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from autobahn.wamp.types import EventDetails
    from twisted.python.failure import Failure

    from twistedcelery.wamp.config import Configuration, Trigger
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.interfaces import WampSession
    from twistedcelery.wamp.tasks.exposed import ExposedTask
    from twistedcelery.wamp.tasks.in_flight import InFlight
    from twistedcelery.wamp.uris import Uris

__all__ = ["Triggers", "check_triggers"]

#: Seconds between two lines in the log about the same trigger.
LOG_INTERVAL = 5.0

_log = Logger()


class Triggers:
    """Submits the tasks of one bridge's triggers.

    :param tasks: the exposed tasks, by name
    :raise ConfigurationError: as `check_triggers`
    """

    def __init__(self, context: Context, tasks: Mapping[str, ExposedTask], in_flight: InFlight) -> None:
        check_triggers(context.config, tasks, context.uris)
        self._context = context
        self._tasks = tasks
        self._in_flight = in_flight

    def start(self, session: WampSession) -> None:
        """Subscribe. The subscriptions end with the session."""
        for trigger in self._context.config.triggers:
            subscriber = _Subscriber(trigger, self._context, self._tasks, self._in_flight)
            session.listen(trigger.topic, trigger.match, subscriber).addErrback(
                self._not_subscribed, trigger, session
            )

    def _not_subscribed(self, failure: Failure, trigger: Trigger, session: WampSession) -> None:
        # A lost session is logged elsewhere.
        if session.is_attached():
            reason = getattr(failure.value, "error", type(failure.value).__name__)
            _log.error("the trigger {trigger} does not work: {reason}", trigger=trigger, reason=reason)


class _Subscriber:
    """Takes the events of one trigger."""

    def __init__(
        self, trigger: Trigger, context: Context, tasks: Mapping[str, ExposedTask], in_flight: InFlight
    ) -> None:
        self._trigger = trigger
        self._uris = context.uris
        self._tasks = tasks
        self._in_flight = in_flight
        # Events may come at any rate.
        self._trouble: Throttle[str] = Throttle(context.clock, LOG_INTERVAL, self._log)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: EventDetails) -> None:
        if self._uris.owns(details.topic or ""):
            # A pattern may match the bridge's own topics too.
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
    """Check the triggers, as far as that depends on the application and on the prefix.

    :param tasks: the exposed tasks, by name
    :raise ConfigurationError: if a trigger's task is not exposed and no worker can announce it, or if its
        topic is the bridge's own
    """
    for number, trigger in enumerate(config.triggers):
        if config.discover == "app" and trigger.task not in tasks:
            hint = did_you_mean(trigger.task, tasks)
            refuse_trigger(number, "task", trigger.task, f"the name of a task that this bridge exposes{hint}")
        if uris.owns(trigger.topic):
            # A router does not send a session its own events, so the trigger would miss some of them.
            # It could also trigger itself.
            refuse_trigger(number, "topic", trigger.topic, "a topic outside of the bridge's own URIs")
