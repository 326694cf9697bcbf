"""Detects a silent broker: one behind a network that drops every packet.

TCP notices it after a quarter of an hour or never, AMQP after two heartbeats: with Celery's default settings,
four minutes. So the client sends a request to a broker that is silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twistedcelery._types import Clock, Timer

__all__ = ["SilenceWatch"]

#: The time allowed has so many parts: in one nothing comes, after which the broker is asked; in the next
#: there is no answer; and what came early in the first one counted as a sign of life.
_PARTS = 3


class Peer(Protocol):
    """An open connection."""

    @property
    def received(self) -> int:
        """How many bytes have come."""

    def ask(self) -> None:
        """Send something that the peer answers."""

    def give_up(self, why: str) -> None:
        """End the connection."""


class SilenceWatch:
    """Ends a connection whose peer has said nothing for a time, and does not answer.

    :param peer: is watched from now on, until `stop`
    :param reactor: for time
    :param seconds: the time allowed
    :ivar is_normal: whether silence means nothing at the moment
    """

    def __init__(self, peer: Peer, reactor: Clock, seconds: float) -> None:
        self.is_normal: Callable[[], bool] = lambda: False
        self._peer = peer
        self._reactor = reactor
        self._part = seconds / _PARTS
        self._received = peer.received
        self._is_asked = False
        self._timer: Timer = reactor.callLater(self._part, self._check)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer.active():
            self._timer.cancel()

    def _check(self) -> None:
        if self._is_alive():
            self._is_asked = False
        elif not self._is_asked:
            self._is_asked = True
            self._peer.ask()
        else:
            # What came while the reactor was busy has not been read yet.
            self._timer = self._reactor.callLater(0, self._check_again)
            return
        self._timer = self._reactor.callLater(self._part, self._check)

    def _check_again(self) -> None:
        if self._is_alive():
            self._is_asked = False
            self._timer = self._reactor.callLater(self._part, self._check)
        else:
            self._peer.give_up(f"the broker has said nothing for {self._part * _PARTS:g} s")

    def _is_alive(self) -> bool:
        before, self._received = self._received, self._peer.received
        return self._received != before or self.is_normal()
