"""Connects to a router, and reconnects whenever the connection ends."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedcelery._logging import RepeatedWarnings

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

__all__ = ["FIRST_DELAY", "MAX_DELAY", "ReconnectingClient"]

#: Seconds until the next attempt: at first, and at most. Each failure doubles them; a session that joins
#: resets them.
FIRST_DELAY, MAX_DELAY = 0.5, 5.0

_log = Logger()


class ReconnectingClient:
    """Connects and reconnects until it is stopped.

    :param router: the router's name in the log
    :param connect: connects once; fires with Autobahn's protocol, which makes the session
    :ivar ended: fires once it is stopped and the last connection has ended
    """

    def __init__(self, reactor: Any, router: str, connect: Callable[[], Deferred[Any]]) -> None:
        self.ended: Deferred[None] = Deferred()
        self._reactor = reactor
        self._router = router
        self._connect = connect
        self._running: Deferred[None] | None = None
        self._stopped = False
        self._joined = False
        self._answered = False
        self._warnings = RepeatedWarnings(_log, reactor.seconds)

    def start(self, delay: float = 0) -> None:
        """Connect. No failure ends the attempts.

        :param delay: seconds until the first attempt, about
        """
        self._joined = False
        self._running = ensureDeferred(self._run(delay))
        self._running.addErrback(_cancelled).chainDeferred(self.ended)

    def stop(self) -> None:
        """Stop reconnecting. A session that has joined stays; the end of its connection is the last."""
        self._stopped = True
        if self._running is not None and not self._joined:
            self._running.cancel()

    def answered(self) -> None:
        """To be called when the router has refused the session of the current connection.

        The session logs why.
        """
        self._answered = True

    def joined(self, realm: str | None) -> None:
        """To be called when the router has accepted the session of the current connection."""
        self._joined = True
        self._warnings.reset()
        _log.info("joined {realm} at {router}", realm=realm, router=self._router)

    async def _run(self, delay: float) -> None:
        following = FIRST_DELAY
        while not self._stopped:
            if delay:
                # With jitter, since all clients of a router lose it at once.
                await deferLater(self._reactor, delay * random.uniform(0.5, 1))  # noqa: S311  # no secret
            if await self._once():
                following = FIRST_DELAY
            delay, following = following, min(2 * following, MAX_DELAY)

    async def _once(self) -> bool:
        """Connect once, and wait for the end of the connection.

        :return: whether the router accepted the session
        """
        joined = self._joined = self._answered = False
        try:
            protocol = await self._connect()
        except Exception as error:
            # A name does not resolve, a port is closed: all kinds of errors, and all may pass.
            self._warn(str(error) or type(error).__name__, "Is it running, and is that its address?")
            return False
        closed: Deferred[None] = Deferred()
        protocol.is_closed.addBoth(lambda _: closed.callback(None))
        try:
            await closed
        finally:
            joined, self._joined = self._joined, False
        # Autobahn's WebSocket protocol keeps the reason, in some cases only after it has reported the end.
        if getattr(protocol, "wasNotCleanReason", "") is None:
            await deferLater(self._reactor, 0)
        reason = getattr(protocol, "wasNotCleanReason", None) or "the connection was closed"
        if joined and not self._stopped:
            _log.warn("the connection to {router} is lost: {reason}", router=self._router, reason=reason)
        elif not joined and not self._answered:
            self._warn(reason, "Check the host, the port and the path of the URL.")
        return joined

    def _warn(self, reason: str, advice: str) -> None:
        if not self._stopped:
            reason = reason.rstrip(".")
            self._warnings.warn(f"no router at {self._router}: {reason}. {advice} The bridge keeps trying.")


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
