"""Which one of several bridges in a realm does what only one of them may do.

The bridges compete for one procedure, registered with the policy ``single``. The router lets one
session have it and takes it back when that session ends, however it ends; those who did not get it
try again every `RETRY_INTERVAL`.

Whatever the leader does must hang on the session that holds the procedure, as a subscription does,
and a publication over that session. Then the router itself sees to it that no two bridges do it for
the same event: it removes the one's subscriptions together with its procedure, takes nothing more
from it, and the next leader begins later than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from autobahn.wamp.exception import ApplicationError
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.invocation import Handler

__all__ = ["RETRY_INTERVAL", "Leadership", "ProvidingSession"]

#: Seconds between two attempts to become the leader.
RETRY_INTERVAL = 1.0

_log = Logger()


class ProvidingSession(Protocol):
    """What leadership needs of a WAMP session."""

    def is_attached(self) -> bool:
        """Whether the session can send now."""

    def provide(self, uri: str, handler: Handler, invoke: str) -> Deferred[Any]:
        """Register a procedure; fails with an `ApplicationError` where the router refuses."""


S = TypeVar("S", bound=ProvidingSession)


class Leadership(Generic[S]):
    """Makes one bridge the leader among those who compete for the same procedure.

    :param uri: the procedure; the leader answers it
    :param handler: with this
    :param elected: called each time that this bridge becomes the leader, with the session that it leads on
    :param deposed: called each time that it stops leading: before it gives the procedure back, or when
        the session that held it is gone
    """

    def __init__(
        self,
        uri: str,
        handler: Handler,
        clock: Clock,
        elected: Callable[[S], None],
        deposed: Callable[[], None],
    ) -> None:
        self._uri = uri
        self._handler = handler
        self._clock = clock
        self._elected = elected
        self._deposed = deposed
        self._leads = False
        self._session: S | None = None
        self._retry: Timer | None = None
        self._refused: str | None = None

    @property
    def leads(self) -> bool:
        """Whether this bridge is the leader now."""
        return self._leads

    def attach(self, session: S) -> None:
        """Compete over this session from now on."""
        self._step_down()
        self._session = session
        self._compete()

    def detach(self, session: S) -> None:
        """A session is gone. One that another has replaced already is ignored."""
        if self._session is session:
            self._session = None
            self._step_down()

    def _step_down(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._leads:
            self._leads = False
            self._deposed()

    def _compete(self) -> None:
        self._retry = None
        session = self._session
        if session is not None and session.is_attached():
            session.provide(self._uri, self._handler, "single").addCallbacks(
                self._won, self._lost, callbackArgs=(session,), errbackArgs=(session,)
            )

    def _won(self, _: object, session: S) -> None:
        if self._session is session:
            self._refused = None
            self._leads = True
            _log.info("this bridge leads: it has {uri}", uri=self._uri)
            self._elected(session)

    def _lost(self, failure: Failure, session: S) -> None:
        if self._session is not session or not session.is_attached():
            return
        reason = getattr(failure.value, "error", type(failure.value).__name__)
        if reason not in {ApplicationError.PROCEDURE_ALREADY_EXISTS, self._refused}:
            # Said once, not with each attempt.
            self._refused = reason
            _log.error("{uri} could not be registered: {reason}", uri=self._uri, reason=reason)
        self._retry = self._clock.callLater(RETRY_INTERVAL, self._compete)
