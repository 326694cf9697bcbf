"""A connection to a router that is made again whenever it ends."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

__all__ = ["FIRST_DELAY", "MAX_DELAY", "KeptConnection"]

#: Seconds until the next attempt: the first, and at most. Each failure doubles them; a session that
#: has joined begins anew.
FIRST_DELAY, MAX_DELAY = 0.5, 5.0

_log = Logger()


class KeptConnection:
    """Connects, and connects again, until it is stopped.

    :param router: what the log calls the router
    :param connect: makes one connection; fires with Autobahn's protocol, which makes the session
    :ivar ended: fires once it was stopped and has ended
    """

    def __init__(self, reactor: Any, router: str, connect: Callable[[], Deferred[Any]]) -> None:
        self.ended: Deferred[None] = Deferred()
        self._reactor = reactor
        self._router = router
        self._connect = connect
        self._running: Deferred[None] | None = None
        self._stopped = False
        self._joined = False
        self._said: str | None = None

    def start(self, delay: float = 0) -> None:
        """Begin. Nothing that goes wrong on the way ends it.

        :param delay: seconds until the first attempt, about
        """
        self._joined = False
        self._running = ensureDeferred(self._run(delay))
        self._running.addErrback(_cancelled).chainDeferred(self.ended)

    def stop(self) -> None:
        """Connect no more. A session that has joined is left alone; with its connection all has ended."""
        self._stopped = True
        if self._running is not None and not self._joined:
            self._running.cancel()

    def joined(self, realm: str | None) -> None:
        """To be called when the router has taken the session of the connection that there is."""
        self._joined = True
        _log.info("joined {realm} at {router}", realm=realm, router=self._router)

    async def _run(self, delay: float) -> None:
        following = FIRST_DELAY
        while not self._stopped:
            if delay:
                # With jitter, for routers have many clients who have all lost it at once.
                await deferLater(self._reactor, delay * random.uniform(0.5, 1))  # noqa: S311  # no secret
            if await self._once():
                following = FIRST_DELAY
            delay, following = following, min(2 * following, MAX_DELAY)

    async def _once(self) -> bool:
        """One connection, from its beginning to its end.

        :return: whether the router took the bridge
        """
        joined = self._joined = False
        try:
            protocol = await self._connect()
        except Exception as error:
            # Names that do not resolve, ports that nobody listens on: all kinds of errors, of which
            # none is a reason to give up. Each is said once, not with each attempt.
            reason = str(error) or type(error).__name__
            if reason != self._said and not self._stopped:
                _log.warn(
                    "no router at {router}: {reason}; trying on, in silence",
                    router=self._router,
                    reason=reason,
                )
                self._said = reason
            return False
        self._said = None
        closed: Deferred[None] = Deferred()
        protocol.is_closed.addBoth(lambda _: closed.callback(None))
        try:
            await closed
        finally:
            joined, self._joined = self._joined, False
        if joined and not self._stopped:
            _log.warn("the connection to {router} is lost", router=self._router)
        return joined


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
