"""The little of Twisted's interfaces that this package needs, for type checkers.

Twisted's own are zope interfaces, which mypy does not check against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Clock", "Timer"]


class Timer(Protocol):
    """As `twisted.internet.interfaces.IDelayedCall`."""

    def active(self) -> bool: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """As `twisted.internet.interfaces.IReactorTime`: a reactor, or `twisted.internet.task.Clock`."""

    def seconds(self) -> float: ...

    def callLater(
        self, delay: float, function: Callable[..., object], /, *args: Any, **kwargs: Any
    ) -> Timer: ...
