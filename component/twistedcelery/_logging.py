"""Keeps a log short while the same trouble goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from twisted.logger import Logger

__all__ = ["LOG_INTERVAL", "CountedWarnings", "RepeatedWarnings", "first_few"]

#: Seconds until the same line is logged again.
LOG_INTERVAL = 60.0

#: Names that `first_few` shows.
_FEW = 3

#: Different lines within `LOG_INTERVAL`. The reasons of servers may differ in each attempt.
MAX_LINES = 10


def first_few(names: Sequence[str]) -> str:
    """Some of many names, and how many more there are."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


class RepeatedWarnings:
    """Logs warnings that may come many times, each text once a minute.

    :param log: where they go
    :param seconds: tells the time, as a reactor's ``seconds`` does
    """

    def __init__(self, log: Logger, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._logged: dict[str, float] = {}

    def warn(self, text: str) -> None:
        """Log a line, unless it was logged within the last minute."""
        now = self._seconds()
        self._logged = {line: at for line, at in self._logged.items() if now - at < LOG_INTERVAL}
        if text not in self._logged and len(self._logged) < MAX_LINES:
            self._logged[text] = now
            self._log.warn("{text}", text=text)

    def reset(self) -> None:
        """The trouble is over: the next line is news again."""
        self._logged.clear()


class CountedWarnings:
    """Logs warnings that others can cause, one line of each kind a minute, with the number of those between.

    :param log: where they go
    :param seconds: tells the time, as a reactor's ``seconds`` does
    """

    def __init__(self, log: Logger, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        #: Of each kind, when the last line was logged, and how many were not since.
        self._kinds: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, reason: str = "") -> None:
        """Log a line, unless one of its kind was logged within the last minute.

        :param kind: what has happened: the code's own words
        :param reason: the rest of the line; it may differ each time
        """
        now = self._seconds()
        logged, left_out = self._kinds.get(kind, (-math.inf, 0))
        if now - logged < LOG_INTERVAL:
            self._kinds[kind] = logged, left_out + 1
            return
        self._kinds[kind] = now, 0
        text = f"{kind}: {reason}" if reason else kind
        if left_out:
            text += f" (and {left_out} more since the last such line)"
        self._log.warn("{text}", text=text)
