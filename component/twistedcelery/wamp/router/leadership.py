"""Elects one of the bridges in a realm, for what only one of them may do.

The bridges compete for one procedure, registered with the policy ``single``. The router gives it to one
session, and unregisters it when that session ends. The others try again every `RETRY_INTERVAL`.

Whatever the leader does must depend on the session that holds the procedure, as its subscriptions and
publications do. Then no two bridges handle the same event: the router removes the session's
subscriptions together with its procedure, before the next leader begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autobahn.wamp.exception import ApplicationError
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from twistedcelery._types import Clock, Timer
    from twistedcelery.wamp.interfaces import WampSession
    from twistedcelery.wamp.invocation import Handler

__all__ = ["RETRY_INTERVAL", "Leadership"]

#: Seconds between two attempts to become the leader.
RETRY_INTERVAL = 1.0

_log = Logger()


class Leadership:
    """Makes one bridge the leader among those who compete for the same procedure.

    :param uri: the procedure
    :param handler: answers it
    :param elected: called with the session each time that this bridge becomes the leader
    :param deposed: called each time that it stops leading: before the procedure is unregistered, or after
        the session has ended
    """

    def __init__(
        self,
        uri: str,
        handler: Handler,
        clock: Clock,
        elected: Callable[[WampSession], None],
        deposed: Callable[[], None],
    ) -> None:
        self._uri = uri
        self._handler = handler
        self._clock = clock
        self._elected = elected
        self._deposed = deposed
        self._leads = False
        self._session: WampSession | None = None
        self._retry: Timer | None = None
        self._refused: str | None = None

    @property
    def leads(self) -> bool:
        """Whether this bridge is the leader now."""
        return self._leads

    def attach(self, session: WampSession) -> None:
        """Compete over this session from now on."""
        self._step_down()
        self._session = session
        self._compete()

    def detach(self, session: WampSession) -> None:
        """A session has ended. Does nothing if another has replaced it already."""
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

    def _won(self, _: object, session: WampSession) -> None:
        if self._session is session:
            self._refused = None
            self._leads = True
            _log.info("this bridge leads: it has {uri}", uri=self._uri)
            self._elected(session)

    def _lost(self, failure: Failure, session: WampSession) -> None:
        if self._session is not session or not session.is_attached():
            return
        reason = getattr(failure.value, "error", type(failure.value).__name__)
        if reason not in {ApplicationError.PROCEDURE_ALREADY_EXISTS, self._refused}:
            # Logged once, not with each attempt.
            self._refused = reason
            _log.error("{uri} could not be registered: {reason}", uri=self._uri, reason=reason)
        self._retry = self._clock.callLater(RETRY_INTERVAL, self._compete)
