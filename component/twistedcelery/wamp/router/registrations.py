"""Keeps the procedures of a bridge registered in its session."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from twistedcelery._deferreds import Waiters
from twistedcelery._logging import first_few

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery.wamp.interfaces import WampSession
    from twistedcelery.wamp.invocation import Handler

__all__ = ["Procedures", "Registrations"]

#: Requests that wait for the router at once, so that ten thousand new tasks do not hold up everything else.
MAX_REQUESTS = 100

_log = Logger()


class Procedures(Mapping[str, "Handler"]):
    """The handler of each procedure, by its URI. Watchers are called at each change."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)
        self._watchers: list[Callable[[str], None]] = []

    def __getitem__(self, uri: str) -> Handler:
        return self._handlers[uri]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._handlers))

    def __len__(self) -> int:
        return len(self._handlers)

    def add(self, uri: str, handler: Handler) -> None:
        """Offer a procedure."""
        self._handlers[uri] = handler
        self._changed(uri)

    def discard(self, uri: str) -> None:
        """Stop offering a procedure."""
        if self._handlers.pop(uri, None) is not None:
            self._changed(uri)

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call a function with the URI of each procedure that changes."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[str], None]) -> None:
        """Undo `watch`. Does nothing for an unknown function."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def _changed(self, uri: str) -> None:
        for watcher in tuple(self._watchers):
            watcher(uri)


class Registrations:
    """Registers and unregisters procedures in one session, as a bridge offers them or stops offering them.

    Procedures that the router refuses are logged together, and not tried again in this session.

    :param invoke: WAMP's registration policy
    """

    def __init__(self, session: WampSession, procedures: Procedures, invoke: str) -> None:
        self._session = session
        self._procedures = procedures
        self._invoke = invoke
        #: URIs to check.
        self._due: deque[str] = deque()
        self._registered: dict[str, Any] = {}
        self._refused: set[str] = set()
        #: Of all refusals.
        self._reasons: set[str] = set()
        #: By reason: those to be logged.
        self._unlogged: dict[str, list[str]] = {}
        #: URIs with a request on its way. Each is checked again after its answer.
        self._busy: set[str] = set()
        self._working = False
        self._idle: Waiters[None] = Waiters()

    def __len__(self) -> int:
        return len(self._registered)

    def __contains__(self, uri: object) -> bool:
        return uri in self._registered

    @property
    def are_forbidden(self) -> bool:
        """Whether the router has authorised none, so that the session is of no use."""
        return not self._registered and self._reasons == {ApplicationError.NOT_AUTHORIZED}

    def start(self) -> Deferred[None]:
        """Register everything, and follow the changes.

        :return: fires once the router has answered all requests
        """
        waiter = self._idle.wait()
        self._procedures.watch(self._check)
        self._due.extend(self._procedures)
        self._work()
        return waiter

    def stop(self) -> None:
        """Change nothing more. What is registered stays registered."""
        self._procedures.unwatch(self._check)
        self._due.clear()

    def _check(self, uri: str) -> None:
        self._due.append(uri)
        self._work()

    def _work(self) -> None:
        if self._working:
            # An answer came at once. The loop below goes on with it.
            return
        self._working = True
        while self._due and len(self._busy) < MAX_REQUESTS and self._session.is_attached():
            uri = self._due.popleft()
            if uri not in self._busy:
                self._reconcile(uri)
        self._working = False
        if not self._busy:
            self._log_refusals()
            self._idle.fire(None)

    def _reconcile(self, uri: str) -> None:
        handler = self._procedures.get(uri)
        if handler is not None and uri not in self._registered and uri not in self._refused:
            request = maybeDeferred(self._session.provide, uri, handler, self._invoke)
            request.addCallbacks(self._has_registered, self._not_registered, (uri,), {}, (uri,), {})
        elif handler is None and uri in self._registered:
            request = maybeDeferred(self._session.withdraw, self._registered.pop(uri))
            request.addErrback(self._not_withdrawn, uri)
        else:
            return
        self._busy.add(uri)
        request.addCallback(self._answered, uri)

    def _answered(self, _: object, uri: str) -> None:
        self._busy.discard(uri)
        self._due.append(uri)
        self._work()

    def _has_registered(self, registration: Any, uri: str) -> None:
        self._registered[uri] = registration

    def _not_registered(self, failure: Failure, uri: str) -> None:
        # The others are registered all the same.
        self._refused.add(uri)
        reason = _reason(failure)
        self._reasons.add(reason)
        self._unlogged.setdefault(reason, []).append(uri)

    def _not_withdrawn(self, failure: Failure, uri: str) -> None:
        # A lost session is logged elsewhere.
        if self._session.is_attached():
            _log.error("{uri} could not be unregistered: {reason}", uri=uri, reason=_reason(failure))

    def _log_refusals(self) -> None:
        refused, self._unlogged = self._unlogged, {}
        # The session logs why it is of no use.
        if self._session.is_attached() and not self.are_forbidden:
            for reason, uris in refused.items():
                _log.error("{uris} could not be registered: {reason}", uris=first_few(uris), reason=reason)


def _reason(failure: Failure) -> str:
    return str(getattr(failure.value, "error", type(failure.value).__name__))
