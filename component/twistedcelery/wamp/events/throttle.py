"""Limits how often items are passed on; the latest wins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from twistedcelery._types import Clock, Timer

__all__ = ["Throttle"]

T = TypeVar("T")


class Throttle(Generic[T]):
    """Passes the first item on at once, then the latest one every ``interval`` seconds.

    :param interval: seconds between two items
    :param forward: called with each item that is passed on
    """

    def __init__(self, clock: Clock, interval: float, forward: Callable[[T], object]) -> None:
        self._clock = clock
        self._interval = interval
        self._forward = forward
        self._latest: list[T] = []
        self._timer: Timer | None = None
        self._stopped = False

    def offer(self, item: T) -> None:
        """Forward the item now or later, unless a newer one replaces it."""
        if self._stopped:
            return
        if self._timer is None:
            self._timer = self._clock.callLater(self._interval, self._interval_over)
            self._forward(item)
        else:
            self._latest = [item]

    def supersede(self) -> None:
        """Drop the item that waits, because it is out of date."""
        self._latest = []

    def stop(self) -> None:
        """Forward nothing more; an item that waits is dropped."""
        self._stopped = True
        self._latest = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _interval_over(self) -> None:
        self._timer = None
        if self._latest:
            item = self._latest.pop()
            self.offer(item)
