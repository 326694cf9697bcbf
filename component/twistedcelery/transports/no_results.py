"""Takes the place of a result source where the application has no result backend."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

__all__ = ["NoResults"]


class NoResults:
    """A `twistedcelery.transports.interface.ResultSource` that never reports anything."""

    available = False
    connected = True
    reply_to: str | None = None

    def watch(self, task_id: str) -> Deferred[None] | None:
        """Nothing needs waiting for."""
        return None

    def forget(self, task_id: str) -> None:
        """Nothing was watched."""

    def close(self) -> Deferred[None]:
        """Nothing is open."""
        return succeed(None)
