"""The process-wide half of the bridge: what outlives a WAMP session.

Autobahn makes a new session object at each reconnect. The connection to the broker, the tasks in
flight and the statistics belong to no session, so they are here, and each session looks its bridge
up by its configuration.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from twisted.internet import defer
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorCore
from twisted.logger import Logger

from twistedcelery import TwistedCelery
from twistedcelery.wamp.callers.api import CallerApi
from twistedcelery.wamp.callers.known_tasks import KnownTasks
from twistedcelery.wamp.callers.neighbours import Neighbours
from twistedcelery.wamp.config import Configuration
from twistedcelery.wamp.context import Context
from twistedcelery.wamp.errors import CallErrors
from twistedcelery.wamp.events.feed import EventFeed, needs_leader
from twistedcelery.wamp.events.stories import Stories
from twistedcelery.wamp.events.topics import EventPublisher, PublishingSession
from twistedcelery.wamp.leadership import Leadership, ProvidingSession
from twistedcelery.wamp.presence import describe_process
from twistedcelery.wamp.procedures import Procedures
from twistedcelery.wamp.tasks.calls import TaskCalls
from twistedcelery.wamp.tasks.exposed import ExposedTask, ExposedTasks, load_application
from twistedcelery.wamp.tasks.in_flight import InFlight
from twistedcelery.wamp.tasks.task_ids import TaskIds
from twistedcelery.wamp.triggers import SubscribingSession, Triggers, check_triggers
from twistedcelery.wamp.uris import Uris
from twistedcelery.wamp.workers.discovery import Discovery
from twistedcelery.wamp.workers.operator_api import OperatorApi

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from celery import Celery
    from twisted.python.failure import Failure

    class WampSession(PublishingSession, ProvidingSession, SubscribingSession, Protocol):
        """What a bridge needs of its session."""

        def leave(self) -> Deferred[None]:
            """Let the calls in flight end, then leave; fires once it is gone. Never fails."""

        def call(self, procedure: str, *args: Any, **kwargs: Any) -> Deferred[Any]:
            """As `autobahn.wamp.interfaces.ICaller.call`."""


__all__ = ["Bridge", "bridge_for", "check"]

#: Seconds that the process waits at its end for the client to take leave of the broker.
STOP_TIMEOUT = 5.0

_log = Logger()


class Bridge:
    """One Celery application on one realm.

    :param reactor: for the time, and for the end of the process
    :param client: makes the calls; the bridge disconnects it when it stops
    :param wall_clock: seconds since the epoch, for the events
    :param realm: where the sessions are
    :raise ConfigurationError: where a trigger does not fit the application
    :ivar procedures: what answers each procedure, by its URI
    """

    def __init__(
        self,
        config: Configuration,
        app: Celery,
        reactor: Any,
        client: TwistedCelery,
        wall_clock: Callable[[], float] = time.time,
        *,
        realm: str,
    ) -> None:
        self.config = config
        self.uris = Uris(config.prefix)
        self.errors = CallErrors(self.uris, config.tracebacks)
        self._reactor = reactor
        self._client = client
        self._session: WampSession | None = None
        self._events = EventPublisher(config, self.uris)
        context = Context(
            config,
            reactor,
            wall_clock,
            self.errors,
            self._events,
            Stories(reactor, self._events.publish),
            TaskIds(realm, config.prefix),
        )
        self._in_flight = InFlight(client, context)
        self._tasks = ExposedTasks(app, config, self.uris, self._task_changed)
        self._calls = TaskCalls(context, self._tasks, self._in_flight, self._is_gone)
        self._discovery = None
        if config.discover != "app":
            self._discovery = Discovery(client, reactor, self._tasks.announced)
        self._triggers = Triggers(context, self._tasks, self._in_flight, self.uris)
        self._feed = EventFeed(client, context, self.uris)
        self._leadership: Leadership[WampSession] = Leadership(
            self.uris.admin("leader"),
            lambda _: describe_process(),
            reactor,
            self._elected,
            self._feed.follow_again,
        )
        known = KnownTasks(context, self._in_flight)
        neighbours = Neighbours(client, context, self.uris, known, lambda: self._session)
        api = CallerApi(client, context, self._tasks, self._in_flight, known, neighbours, self._describe)
        admin = OperatorApi(app, client, context, self.uris)
        self.procedures = Procedures(
            {
                **{self.uris.api(name): handler for name, handler in api.handlers().items()},
                **{self.uris.admin(name): handler for name, handler in admin.handlers().items()},
                neighbours.uri: neighbours.answer,
            }
        )
        for task in self._tasks.values():
            self._task_changed(task, True)

    def attach(self, session: WampSession) -> None:
        """A session has joined the realm and has registered the procedures."""
        self._session = session
        self._events.attach(session)
        self._feed.follow()
        if needs_leader(self.config):
            self._leadership.attach(session)
        if self._discovery is not None:
            self._discovery.start()

    def detach(self, session: WampSession) -> None:
        """A session is gone. The calls in flight go on."""
        self._events.detach(session)
        self._leadership.detach(session)
        if self._session is session:
            self._session = None

    def withdraw(self, session: WampSession) -> None:
        """A session is about to leave: it is good for publishing still, and for nothing new."""
        self._leadership.detach(session)

    def stop(self) -> Deferred[None]:
        """Let the session leave, then disconnect from the broker; a later session gets a new bridge.

        :return: fires within `STOP_TIMEOUT` of the session's end, whatever the broker does
        """
        for key in [key for key, bridge in _bridges.items() if bridge is self]:
            del _bridges[key]
        if self._discovery is not None:
            self._discovery.stop()

        def unfinished(failure: Failure) -> None:
            failure.trap(defer.TimeoutError)
            _log.warn("the broker connection did not close within {seconds} s", seconds=STOP_TIMEOUT)

        def disconnect(_: object) -> Deferred[None]:
            return self._client.disconnect().addTimeout(STOP_TIMEOUT, self._reactor).addErrback(unfinished)

        left = succeed(None) if self._session is None else self._session.leave()
        return left.addCallback(disconnect)

    def _describe(self) -> dict[str, Any]:
        return {
            "router_connected": self._session is not None and self._session.is_attached(),
            "leader": self._leadership.leads,
            "workers": None if self._discovery is None else len(self._discovery),
            "version": _installed_version(),
        }

    def _elected(self, session: WampSession) -> None:
        self._triggers.start(session)
        self._feed.lead()

    def _task_changed(self, task: ExposedTask, exposed: bool) -> None:
        if task.uri is not None and exposed:
            self.procedures.add(task.uri, self._calls.handler(task.name))
        elif task.uri is not None:
            self.procedures.discard(task.uri)
        elif exposed:
            _log.info(
                "task {name!r:.255} has no procedure of its own, since its name makes no URI: {reason}",
                name=task.name,
                reason=task.reason,
            )

    def _is_gone(self, session_id: int | None) -> Deferred[bool]:
        """Whether a caller has left, as far as the router tells."""
        if session_id is None or self._session is None or not self._session.is_attached():
            return succeed(True)

        # "no_such_session" says that it left. Where the bridge may not ask, or has lost its session
        # meanwhile, nobody can tell: the configuration wants tasks kept, so they are.
        asked = self._session.call("wamp.session.get", session_id)
        return asked.addCallbacks(lambda _: False, lambda _: True)


def _installed_version() -> str | None:
    try:
        return version("twistedcelery")
    except PackageNotFoundError:
        # Run from its source.
        return None


def check(extra: Mapping[str, Any] | None) -> None:
    """Check a configuration, and the application it names, without starting anything.

    :param extra: as `Configuration.parse` takes it
    :raise ConfigurationError: says what is wrong
    """
    config = Configuration.parse(extra)
    uris = Uris(config.prefix)
    check_triggers(config, ExposedTasks(load_application(config.app), config, uris), uris)


_bridges: dict[tuple[str, str, int], Bridge] = {}


def bridge_for(realm: str, extra: Mapping[str, Any] | None, reactor: Any) -> Bridge:
    """The bridge for a realm and a configuration; it is made at the first call.

    :param extra: the component's configuration, as `Configuration.parse` takes it
    :raise ConfigurationError: where the configuration, or the application it names, is wrong
    """
    config = Configuration.parse(extra)
    key = (realm, json.dumps([config.app, extra], sort_keys=True, default=repr), id(reactor))
    if key not in _bridges:
        app = load_application(config.app)
        client = TwistedCelery(
            app,
            reactor,
            publish_timeout=config.publish_timeout,
            terminate=config.terminate,
            disconnect_at_shutdown=False,
        )
        bridge = _bridges[key] = Bridge(config, app, reactor, client, realm=realm)
        if IReactorCore.providedBy(reactor):
            reactor.addSystemEventTrigger("before", "shutdown", bridge.stop)
    return _bridges[key]
