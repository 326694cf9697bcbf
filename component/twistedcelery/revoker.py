"""Revoking tasks: many at once cost one broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twistedcelery._types import Clock, Timer

__all__ = ["Revoker"]

#: ``send(task_ids, terminate, signal)``
Send = Callable[[Sequence[str], bool, str], Deferred[None]]


class Revoker:
    """Gathers the revokes of one reactor turn into one control message.

    A caller who goes away may leave thousands of calls to revoke, and every worker hears every
    control message. Celery's ``revoke`` command takes a list of ids.

    :param reactor: for ``callLater``
    :param send: broadcasts one command
    """

    def __init__(self, reactor: Clock, send: Send) -> None:
        self._reactor = reactor
        self._send = send
        self._gathered: dict[tuple[bool, str], list[tuple[str, Deferred[None]]]] = {}
        self._turn: Timer | None = None

    def revoke(self, task_id: str, terminate: bool, signal: str) -> Deferred[None]:
        """Revoke a task.

        :return: fires once the broker has taken the command, or fails with a ``PublishError``
        """
        done: Deferred[None] = Deferred()
        self._gathered.setdefault((terminate, signal), []).append((task_id, done))
        if self._turn is None:
            self._turn = self._reactor.callLater(0, self.flush)
        return done

    def flush(self) -> None:
        """Send what is gathered, now."""
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._turn = None
        gathered, self._gathered = self._gathered, {}
        for (terminate, signal), revokes in gathered.items():
            waiting = [done for _, done in revokes]
            self._send([task_id for task_id, _ in revokes], terminate, signal).addBoth(_fire_all, waiting)


def _fire_all(outcome: Failure | None, waiting: Sequence[Deferred[None]]) -> None:
    for done in waiting:
        if done.called:
            # Its holder has cancelled it.
            continue
        if isinstance(outcome, Failure):
            done.errback(outcome)
        else:
            done.callback(None)
