"""The procedures that a bridge offers, and one session's registrations of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from twistedcelery.wamp.invocation import Handler

__all__ = ["Procedures", "RegisteringSession", "Registrations"]

#: Requests to the router that may be without an answer at once. Ten thousand tasks that appear
#: together are registered while everything else goes on.
MAX_REQUESTS = 100

_log = Logger()


class Procedures(Mapping[str, "Handler"]):
    """What answers each procedure, by its URI; with those who want to know what changes."""

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
        self._tell(uri)

    def discard(self, uri: str) -> None:
        """Offer a procedure no longer, if it was."""
        if self._handlers.pop(uri, None) is not None:
            self._tell(uri)

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Have a function called with the URI of each procedure that changes."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[str], None]) -> None:
        """Undo `watch`, if that was done."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def _tell(self, uri: str) -> None:
        for watcher in tuple(self._watchers):
            watcher(uri)


class RegisteringSession(Protocol):
    """What registrations need of a WAMP session."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""

    def provide(self, uri: str, handler: Handler, invoke: str) -> Deferred[Any]:
        """Register a procedure; fires with the registration."""

    def take_back(self, registration: Any) -> Deferred[Any]:
        """Undo `provide`."""


class Registrations:
    """Has one session register what a bridge offers, and take back what it offers no longer.

    A procedure that the router refuses is logged, and left alone until the next session.

    :param invoke: WAMP's registration policy
    """

    def __init__(self, session: RegisteringSession, procedures: Procedures, invoke: str) -> None:
        self._session = session
        self._procedures = procedures
        self._invoke = invoke
        #: URIs to be looked at.
        self._due: deque[str] = deque()
        self._registered: dict[str, Any] = {}
        self._refused: set[str] = set()
        #: Those with a request on its way. One that changes meanwhile is looked at again.
        self._busy: set[str] = set()
        self._working = False
        self._waiter: Deferred[None] | None = None

    def __len__(self) -> int:
        return len(self._registered)

    def start(self) -> Deferred[None]:
        """Register everything, and follow what changes.

        :return: fires once the router has answered all requests
        """
        waiter: Deferred[None] = Deferred()
        self._waiter = waiter
        self._procedures.watch(self._look_at)
        self._due.extend(self._procedures)
        self._work()
        return waiter

    def stop(self) -> None:
        """Change nothing any more. What is registered stays so."""
        self._procedures.unwatch(self._look_at)
        self._due.clear()

    def _look_at(self, uri: str) -> None:
        self._due.append(uri)
        self._work()

    def _work(self) -> None:
        if self._working:
            # An answer that was there at once; the loop below goes on with it.
            return
        self._working = True
        while self._due and len(self._busy) < MAX_REQUESTS and self._session.is_attached():
            uri = self._due.popleft()
            if uri not in self._busy:
                self._reconcile(uri)
        self._working = False
        if not self._busy and self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter.callback(None)

    def _reconcile(self, uri: str) -> None:
        handler = self._procedures.get(uri)
        if handler is not None and uri not in self._registered and uri not in self._refused:
            request = maybeDeferred(self._session.provide, uri, handler, self._invoke)
            request.addCallbacks(self._has_registered, self._not_registered, (uri,), {}, (uri,), {})
        elif handler is None and uri in self._registered:
            request = maybeDeferred(self._session.take_back, self._registered.pop(uri))
            request.addErrback(self._not_taken_back, uri)
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
        # One procedure less is no reason to withhold the others.
        self._refused.add(uri)
        self._log_failure("{uri} could not be registered: {reason}", failure, uri)

    def _not_taken_back(self, failure: Failure, uri: str) -> None:
        self._log_failure("{uri} could not be unregistered: {reason}", failure, uri)

    def _log_failure(self, text: str, failure: Failure, uri: str) -> None:
        # The loss of the session says itself why.
        if self._session.is_attached():
            reason = getattr(failure.value, "error", type(failure.value).__name__)
            _log.error(text, uri=uri, reason=reason)
