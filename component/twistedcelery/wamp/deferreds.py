"""Small helpers for Deferreds."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

__all__ = ["fork"]


def fork(deferred: Deferred[Any]) -> Deferred[None]:
    """A Deferred of one's own, which fires when another has ended, however it did.

    What is added to it, its cancellation included, changes nothing for those who wait for the other.
    """
    own: Deferred[None] = Deferred()

    def ended(result: Any) -> Any:
        if not own.called:
            own.callback(None)
        return result

    deferred.addBoth(ended)
    return own
