"""Spaces attempts to reach a server that fails."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Backoff"]

#: Seconds to wait after the first failure; doubled after each further one.
FIRST_DELAY = 0.1


class Backoff:
    """Says when to try again, later after each failure in a row.

    :param clock: seconds
    :param longest: the most seconds between two attempts
    """

    def __init__(self, clock: Callable[[], float], longest: float = 5.0) -> None:
        self._clock = clock
        self._longest = longest
        self._delay = 0.0
        self._retry_at = 0.0

    @property
    def remaining(self) -> float:
        """Seconds until the next attempt; 0: now."""
        return max(self._retry_at - self._clock(), 0.0) if self._delay else 0.0

    def failed(self) -> float:
        """Note that an attempt has failed.

        :return: seconds until the next one
        """
        self._delay = min(self._delay * 2 or FIRST_DELAY, self._longest)
        self._retry_at = self._clock() + self._delay
        return self._delay

    def succeeded(self) -> None:
        """Note that an attempt has succeeded."""
        self._delay = 0.0
