"""The bridge's place at Celery's event stream.

Every bridge reads what it has to know of its own tasks. The leader reads everything, and publishes
also what concerns no bridge: the tasks of others, and the workers.

For that each new leader opens a stream anew, with a queue that is declared after its election. Its
predecessor's session ended at the router before it, so whatever the predecessor has published was
sent before that queue was there, and does not come again. No clocks are compared for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from twistedcelery.errors import TwistedCeleryError
from twistedcelery.wamp.events.celery_events import observe
from twistedcelery.wamp.events.foreign import ForeignTasks
from twistedcelery.wamp.events.worker_topics import WorkerTopics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.python.failure import Failure

    from twistedcelery import EventStream, TwistedCelery
    from twistedcelery.wamp.config import Configuration
    from twistedcelery.wamp.context import Context
    from twistedcelery.wamp.uris import Uris

__all__ = ["EventFeed", "needs_leader"]

#: What results do not tell of a bridge's own tasks, or not always.
_OWN_EVENTS = frozenset({"received", "started", "rejected"})
#: For these of them, what results tell waits.
_EARLY_EVENTS = frozenset({"received", "started"})

_log = Logger()


def wants_foreign(config: Configuration) -> bool:
    """Whether events of tasks that no bridge has sent are to be published."""
    return config.foreign_events and bool(config.events) and config.event_audience == "all"


def needs_leader(config: Configuration) -> bool:
    """Whether there is anything that one bridge has to do for all."""
    return bool(config.triggers) or wants_foreign(config) or config.worker_events or config.enable_events


class _Tap:
    """One stream, and whether it is the leader's."""

    def __init__(self, leads: bool) -> None:
        self.leads = leads
        self.stream: EventStream


class EventFeed:
    """Reads the event stream, as far as this bridge has to."""

    def __init__(self, client: TwistedCelery, context: Context, uris: Uris) -> None:
        self._client = client
        self._config = context.config
        self._context = context
        self._foreign = ForeignTasks(context.config, context.clock, context.events)
        self._workers = WorkerTopics(context.clock, context.wall_clock, context.events, uris)
        self._tap: _Tap | None = None
        #: Workers that were asked to send events.
        self._enabled: set[str] = set()

    def follow(self) -> None:
        """Read what concerns the bridge's own tasks, from now on and for good."""
        if self._tap is None and self._needs_own:
            self._tap = self._open(leads=False)

    def lead(self) -> None:
        """Read everything: the bridge has been elected."""
        tap = self._open(leads=True)
        if tap is None:
            return
        earlier, self._tap = self._tap, tap
        self._enabled.clear()
        if self._config.worker_events:
            self._workers.start(lambda: tap.stream.connected)
        if wants_foreign(self._config):
            self._foreign.expect_names()
        # What concerns own tasks is told twice by two streams rather than not at all.
        tap.stream.ready.addErrback(_not_ready).addCallback(lambda _: _close(earlier))

    def follow_again(self) -> None:
        """Publish only what is the bridge's own, at once: it leads no more."""
        self._foreign.forget()
        self._workers.stop()
        if self._tap is not None:
            self._tap.leads = False
            if not self._needs_own:
                _close(self._tap)
                self._tap = None

    @property
    def _needs_own(self) -> bool:
        return bool(self._config.events & _OWN_EVENTS)

    def _open(self, leads: bool) -> _Tap | None:
        tap = _Tap(leads)
        try:
            tap.stream = self._client.events(
                {"*": lambda event: self._take(tap, event)}, routing_key=self._routing_key(leads)
            )
        except TwistedCeleryError as error:
            _log.error("Celery's events cannot be read: {error}", error=error)
            return None
        tap.stream.ready.addCallbacks(self._opened, _not_ready, callbackArgs=(tap,))
        return tap

    def _routing_key(self, leads: bool) -> str:
        of_workers = leads and (self._config.worker_events or self._config.enable_events)
        of_tasks = self._needs_own or (leads and wants_foreign(self._config))
        return "#" if of_workers and of_tasks else "worker.#" if of_workers else "task.#"

    def _take(self, tap: _Tap, event: Mapping[str, Any]) -> None:
        if event["type"].startswith("worker-"):
            if tap.leads:
                self._take_worker(event)
            return
        observation = observe(event, self._config)
        if observation is None:
            return
        stories = self._context.stories
        if observation.event != "sent":
            stories.heard(something=True)
        story = stories.find(observation.task_id)
        if story is not None:
            story.hear(observation)
        elif tap.leads and wants_foreign(self._config) and not self._context.ids.made(observation.task_id):
            self._foreign.take(observation)

    def _take_worker(self, event: Mapping[str, Any]) -> None:
        if self._config.worker_events:
            self._workers.take(event)
        hostname = event.get("hostname")
        if not self._config.enable_events or not isinstance(hostname, str):
            return
        if event["type"] != "worker-heartbeat":
            # It says that it is there just before it begins to listen.
            self._enabled.discard(hostname)
        elif hostname not in self._enabled:
            self._enabled.add(hostname)
            self._enable(hostname)

    def _opened(self, _: None, tap: _Tap) -> None:
        if self._config.events & _EARLY_EVENTS:
            self._context.stories.listen(lambda: tap.stream.connected)
        if not tap.leads:
            return
        if wants_foreign(self._config):
            _names_of_tasks(self._client).addCallback(self._named, tap)

    def _named(self, names: Mapping[str, str], tap: _Tap) -> None:
        if tap.leads:
            self._foreign.learn(names)

    def _enable(self, hostname: str) -> None:
        def failed(failure: Failure) -> None:
            self._enabled.discard(hostname)
            _log.warn(
                "the worker {name} could not be asked for events: {error}",
                name=hostname,
                error=failure.value,
            )

        self._client.control.enable_events(destination=[hostname]).addErrback(failed)


def _names_of_tasks(client: TwistedCelery) -> Deferred[dict[str, str]]:
    """The names of the tasks that workers have received and not ended, by id. Never fails."""
    inspect = client.control.inspect()
    asking = DeferredList([inspect.active(), inspect.reserved(), inspect.scheduled()], consumeErrors=True)

    def collect(answers: list[tuple[bool, Any]]) -> dict[str, str]:
        names = {}
        for succeeded, workers in answers:
            for tasks in (workers or {}).values() if succeeded else ():
                for task in tasks:
                    # Those that are scheduled come with when they are.
                    request = task.get("request", task)
                    names[request["id"]] = request["name"]
        return names

    def failed(failure: Failure) -> dict[str, str]:
        _log.warn("what workers say of their tasks cannot be read: {error}", error=failure.value)
        return {}

    return asking.addCallback(collect).addErrback(failed)


def _not_ready(failure: Failure) -> None:
    # Its queue was refused, which the stream has logged, or the client was disconnected.
    _log.debug("Celery's events will not be read: {error}", error=failure.value)


def _close(tap: _Tap | None) -> None:
    if tap is not None:
        tap.stream.close()
